// Rows of x in 8 bits for products with grouped weights: a scale for each 64 numbers, and the sums that stand in for zeros and
// minima of the weights.
#pragma once

#include <cstdint>

#include "tiles.h"

namespace asurge {

constexpr int kStep = 64;  // numbers along the depth that share a scale

struct alignas(64) QuantizedStep {
  int8_t codes[kStep];
  float scale;
  int32_t minus32[2], minus16[4];  // minus the sums of each 32 and 16 codes
  float sums32[2], sums16[4];      // scale times those sums
};

inline int steps_of(int depth) { return (depth + kStep - 1) / kStep; }

// Quantises a row, of which `load(k)` gives 16 numbers; those from `depth` on are zero.
template <typename Load>
inline void quantize_row(QuantizedStep* to, int depth, const Load& load) {
  for (int first = 0; first < depth; first += kStep, ++to) {
    const int count = std::min(kStep, depth - first);
    to->scale = step_of(count, [&](int k) { return load(first + k); });
    const Floats inverse = all(1.0f / to->scale);
    for (int part = 0; part < 4; ++part) {
      const Ints rounded = 16 * part < count ? to_ints(load(first + 16 * part) * inverse) : all(0);
      store_int8(reinterpret_cast<uint8_t*>(to->codes + 16 * part), rounded);
      const int32_t total = sum(rounded);
      to->minus16[part] = -total;
      to->sums16[part] = to->scale * static_cast<float>(total);
    }
    for (int half = 0; half < 2; ++half) {
      to->minus32[half] = to->minus16[2 * half] + to->minus16[2 * half + 1];
      to->sums32[half] = -to->scale * static_cast<float>(to->minus32[half]);
    }
  }
}

}  // namespace asurge
