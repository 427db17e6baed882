// AMX tiles: 16 rows of 64 bytes, 1 KiB, always stored contiguously.
//
// An "A" tile holds 16 rows of 32 bf16 (or 64 int8). A "B" tile holds 16 columns of the same depth, in groups of two
// (four) along the depth: [depth / 2][16 columns][2]. Products accumulate in 16 x 16 float32 (or int32).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace asurge {

constexpr int kTile = 1024;
constexpr int kRows = 16;

// The tile registers of this thread belong to the scope; other code on the thread configures its own.
class TileScope {
 public:
  TileScope() {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;
      config[48 + tile] = kRows;
    }
    _tile_loadconfig(config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

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

enum class Depth { kBf16, kInt8 };

// A macro, because the registers' numbers are part of the instruction's text.
#define ASURGE_MULTIPLY(depth, c, a, b)       \
  do {                                        \
    if constexpr ((depth) == Depth::kBf16) {  \
      _tile_dpbf16ps(c, a, b);                \
    } else {                                  \
      _tile_dpbssd(c, a, b);                  \
    }                                         \
  } while (0)

// C [16 * kA rows][16 * kB columns] of float32 or int32 at `out` = sum over `depth_tiles` of A x B. `b(k)` is where the
// k-th tiles of B are, `b_stride` apart.
template <Depth depth, int kA, int kB, typename B>
inline void multiply(const uint8_t* a, size_t a_stride, const B& b, size_t b_stride, int depth_tiles, float* out,
                     int out_columns, int ahead = 0) {
  _tile_zero(0);
  if constexpr (kB == 2) _tile_zero(1);
  if constexpr (kA == 2) _tile_zero(2);
  if constexpr (kA == 2 && kB == 2) _tile_zero(3);
  for (int k = 0; k < depth_tiles; ++k) {
    const uint8_t* b0 = b(k);
    if (ahead) {
      for (int line = 0; line < 16; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(b0 + ahead + 64 * line), _MM_HINT_T0);
        if constexpr (kB == 2) {
          _mm_prefetch(reinterpret_cast<const char*>(b0 + b_stride + ahead + 64 * line), _MM_HINT_T0);
        }
      }
    }
    _tile_loadd(4, a + k * kTile, 64);
    _tile_loadd(6, b0, 64);
    ASURGE_MULTIPLY(depth, 0, 4, 6);
    if constexpr (kB == 2) {
      _tile_loadd(7, b0 + b_stride, 64);
      ASURGE_MULTIPLY(depth, 1, 4, 7);
    }
    if constexpr (kA == 2) {
      _tile_loadd(5, a + a_stride + k * kTile, 64);
      ASURGE_MULTIPLY(depth, 2, 5, 6);
      if constexpr (kB == 2) ASURGE_MULTIPLY(depth, 3, 5, 7);
    }
  }
  const int stride = out_columns * 4;
  _tile_stored(0, out, stride);
  if constexpr (kB == 2) _tile_stored(1, out + kRows, stride);
  if constexpr (kA == 2) _tile_stored(2, out + kRows * out_columns, stride);
  if constexpr (kA == 2 && kB == 2) _tile_stored(3, out + kRows * out_columns + kRows, stride);
}

// The same for one A tile and four B tiles: where rows are few, memory is read faster in more streams at a time.
template <Depth depth, typename B>
inline void multiply_wide(const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* left, float* right,
                          int out_columns, int ahead) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int k = 0; k < depth_tiles; ++k) {
    const uint8_t* b0 = b(k);
    for (int stream = 0; stream < 4; ++stream) {
      for (int line = 0; line < 16; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(b0 + stream * b_stride + ahead + 64 * line), _MM_HINT_T0);
      }
    }
    _tile_loadd(4, a + k * kTile, 64);
    _tile_loadd(5, b0, 64);
    ASURGE_MULTIPLY(depth, 0, 4, 5);
    _tile_loadd(6, b0 + b_stride, 64);
    ASURGE_MULTIPLY(depth, 1, 4, 6);
    _tile_loadd(7, b0 + 2 * b_stride, 64);
    ASURGE_MULTIPLY(depth, 2, 4, 7);
    _tile_loadd(5, b0 + 3 * b_stride, 64);
    ASURGE_MULTIPLY(depth, 3, 4, 5);
  }
  const int stride = out_columns * 4;
  _tile_stored(0, left, stride);
  _tile_stored(1, left + kRows, stride);
  _tile_stored(2, right, stride);
  _tile_stored(3, right + kRows, stride);
}

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
