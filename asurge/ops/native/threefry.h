// Threefry random numbers, with the same bits as JAX's for the same keys.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace asurge {

struct Key {
  uint32_t high, low;
};

// Threefry-2x32 with 20 rounds (Salmon et al. 2011) of the count (0, low).
inline Key threefry(Key key, uint32_t low) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key.high, key.low, key.high ^ key.low ^ 0x1BD11BDAu};
  uint32_t x = keys[0], y = low + keys[1];
  for (int group = 0; group < 5; ++group) {
    for (const int rotation : kRotations[group % 2]) {
      x += y;
      y = (y << rotation | y >> (32 - rotation)) ^ x;
    }
    x += keys[(group + 1) % 3];
    y += keys[(group + 2) % 3] + group + 1;
  }
  return {x, y};
}

// `jax.random.fold_in`, and one of the keys of `jax.random.split`.
inline Key fold_in(Key key, uint32_t data) { return threefry(key, data); }
inline Key split(Key key, uint32_t index) { return threefry(key, index); }

// `jax.random.gumbel(key, [count])`.
inline void gumbel(Key key, float* out, int count) {
  for (int at = 0; at < count; ++at) {
    const Key bits = threefry(key, at);
    out[at] = static_cast<float>((bits.high ^ bits.low) >> 9) * 0x1p-23f;
  }
  for (int at = 0; at < count; ++at) {
    out[at] = -std::log(-std::log(std::max(out[at], std::numeric_limits<float>::min())));
  }
}

}  // namespace asurge
