// Rows of x in 8 bits for products with grouped weights: a scale for each 16 numbers, and the sums that stand in for zeros and
// minima of the weights. (A scale for 64 would save a tenth of the time of many rows, and doubles what rounding costs in quality:
// `benchmarks/quality.py`.)
#pragma once

#include <cstdint>

#include "tiles.h"

namespace asurge {

constexpr int kPart = 16;  // numbers that share a scale
constexpr int kStep = 64;  // numbers along the depth that are kept together

struct alignas(64) QuantizedStep {
  int8_t codes[kStep];
  float scales[4];
  int32_t minus[4];            // minus the sums of each 16 codes
  float sums16[4], sums32[2];  // of each 16 and 32 rounded numbers
};

inline int steps_of(int depth) { return (depth + kStep - 1) / kStep; }

// Quantises a row, of which `load(k)` gives 16 numbers; those from `depth` on are zero.
template <typename Load>
inline void quantize_row(QuantizedStep* to, int depth, const Load& load) {
  for (int first = 0; first < depth; first += kStep, ++to) {
    const int count = std::min(kStep, depth - first);
    for (int part = 0; part < 4; ++part) {
      const bool real = kPart * part < count;
      const Floats x = real ? load(first + kPart * part) : all(0.0f);
      const float scale = step_of(kPart, [&](int) { return x; });
      const Ints rounded = to_ints(x * all(1.0f / scale));
      store_int8(reinterpret_cast<uint8_t*>(to->codes + kPart * part), rounded);
      const int32_t total = sum(rounded);
      to->scales[part] = scale;
      to->minus[part] = -total;
      to->sums16[part] = scale * static_cast<float>(total);
    }
    for (int half = 0; half < 2; ++half) to->sums32[half] = to->sums16[2 * half] + to->sums16[2 * half + 1];
  }
}

}  // namespace asurge
