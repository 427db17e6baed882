// Tiles, as AMX has them: 16 rows of 64 bytes, 1 KiB, always stored contiguously.
//
// An "A" tile holds 16 rows of 32 bf16 (or 64 int8). A "B" tile holds 16 columns of the same depth, in groups of two
// (four) along the depth: [depth / 2][16 columns][2]. Products accumulate in 16 x 16 float32 (or int32).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "simd.h"

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

// 1 / the root of the mean square of `count` numbers and epsilon.
inline float inverse_rms(const uint16_t* x, int count, float epsilon) {
  Floats squares = all(0.0f);
  for (int at = 0; at < count; at += 16) {
    const Floats value = load_bf16(x + at);
    squares = fma(value, value, squares);
  }
  return 1.0f / std::sqrt(sum(squares) / count + epsilon);
}

constexpr int kLargestCode = 127;  // of numbers in 8 bits

// The unit that `count` numbers in 8 bits are multiples of, from the largest of them; `load(at)` gives 16. NaN where one is not
// finite.
template <typename Load>
inline float step_of(int count, const Load& load) {
  const Floats infinity = all(std::numeric_limits<float>::infinity());
  Floats most = all(0.0f);
  Mask lost = mask_of(0);  // 8 bits cannot hold what is not finite, and a maximum forgets NaN
  for (int at = 0; at < count; at += 16) {
    const Floats size = abs(load(at));
    lost = lost | not_below(size, infinity);
    most = max(most, size);
  }
  const float widest = any(lost) ? std::numeric_limits<float>::quiet_NaN() : largest(most);
  return std::max(widest, 1e-30f) / kLargestCode;
}

constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x up to 127, to 3e-6: 2^n by exponent, the rest by a minimax polynomial. Below 2^-125 it is 0: a denormal
// result costs more than a hundred cycles.
inline Floats power_of_two(Floats x) {
  const Mask normal = above(x, all(-125.0f));
  const Floats n = round(x);
  const Floats f = x - n;
  Floats y = all(9.6181291e-3f);
  y = fma(y, f, all(5.5504109e-2f));
  y = fma(y, f, all(2.4022651e-1f));
  y = fma(y, f, all(6.9314718e-1f));
  y = fma(y, f, all(1.0f));
  return scale_where(normal, y, n);
}

// 1 / (1 + e^-x); the quotient by an estimate and one step of Newton's, which is a third of a division.
inline Floats sigmoid(Floats x) {
  const Floats power = min(x * all(-kLog2E), all(125.0f));
  const Floats denominator = power_of_two(power) + all(1.0f);
  const Floats estimate = reciprocal_estimate(denominator);
  return estimate * fnma(denominator, estimate, all(2.0f));
}

}  // namespace asurge
