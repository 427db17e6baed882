// Tiles, as AMX has them: 16 rows of 64 bytes, 1 KiB, always stored contiguously.
//
// An "A" tile holds 16 rows of 32 bf16 (or 64 int8). A "B" tile holds 16 columns of the same depth, in groups of two
// (four) along the depth: [depth / 2][16 columns][2]. Products accumulate in 16 x 16 float32 (or int32).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace asurge {

constexpr int kTile = 1024;
constexpr int kRows = 16;

// Memory a thread keeps between calls.
class Scratch {
 public:
  template <typename T>
  T* get(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + bytes / 2 + 64) & ~size_t{63};
      data_ = std::aligned_alloc(64, size_);
    }
    return static_cast<T*>(data_);
  }
  ~Scratch() { std::free(data_); }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

inline __m512 widen(__m256i bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}
inline __m512 load_bf16(const uint16_t* from) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline __m256i narrow(__m512 value) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)); }
inline void store_bf16(uint16_t* to, __m512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(value));
}
inline __m512 round_bf16(__m512 value) { return widen(narrow(value)); }

// 1 / the root of the mean square of `count` numbers and epsilon.
inline float inverse_rms(const uint16_t* x, int count, float epsilon) {
  __m512 sum = _mm512_setzero_ps();
  for (int at = 0; at < count; at += 16) {
    const __m512 value = load_bf16(x + at);
    sum = _mm512_fmadd_ps(value, value, sum);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / count + epsilon);
}

constexpr int kLargestCode = 127;  // of numbers in 8 bits

// The unit that `count` numbers in 8 bits are multiples of, from the largest of them; `load(at)` gives 16. NaN where one is not
// finite.
template <typename Load>
inline float step_of(int count, const Load& load) {
  const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  __m512 most = _mm512_setzero_ps();
  __mmask16 lost = 0;  // 8 bits cannot hold what is not finite, and a maximum forgets NaN
  for (int at = 0; at < count; at += 16) {
    const __m512 size = _mm512_abs_ps(load(at));
    lost |= _mm512_cmp_ps_mask(size, infinity, _CMP_NLT_UQ);
    most = _mm512_max_ps(most, size);
  }
  const float largest = lost ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(most);
  return std::max(largest, 1e-30f) / kLargestCode;
}

constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x up to 127, to 3e-6: 2^n by exponent, the rest by a minimax polynomial. Below 2^-125 it is 0: a denormal
// result costs more than a hundred cycles.
inline __m512 power_of_two(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-125.0f), _CMP_GT_OQ);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 y = _mm512_set1_ps(9.6181291e-3f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(normal, y, n);
}

}  // namespace asurge
