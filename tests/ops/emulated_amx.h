// AMX's tiles and their products in plain C++, for processors without: what `asurge/ops/native` uses of them, as Intel's
// manual defines it. Included before everything else.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace emulated_amx {

struct Tile {
  alignas(64) uint8_t rows[16][64];
};
inline thread_local Tile tiles[8];

inline void load(Tile& tile, const void* from, size_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(tile.rows[row], static_cast<const uint8_t*>(from) + row * stride, 64);
}

inline void store(const Tile& tile, void* to, size_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<uint8_t*>(to) + row * stride, tile.rows[row], 64);
}

// Subnormal numbers count as zero.
inline float widened(uint16_t bf16) {
  const uint32_t bits = (bf16 & 0x7F80) == 0 ? 0 : uint32_t{bf16} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void widen(const Tile& tile, float (&to)[16][2][16]) {
  for (int row = 0; row < 16; ++row) {
    uint16_t pairs[32];
    std::memcpy(pairs, tile.rows[row], 64);
    for (int at = 0; at < 32; ++at) to[row][at % 2][at / 2] = widened(pairs[at]);
  }
}

inline void multiply_bf16(Tile& c, const Tile& a, const Tile& b) {
  float left[16][2][16], right[16][2][16];
  widen(a, left);
  widen(b, right);
  for (int m = 0; m < 16; ++m) {
    float sums[16];
    std::memcpy(sums, c.rows[m], 64);
    for (int k = 0; k < 16; ++k) {
      for (int part = 0; part < 2; ++part) {
        for (int n = 0; n < 16; ++n) sums[n] += left[m][part][k] * right[k][part][n];
      }
    }
    std::memcpy(c.rows[m], sums, 64);
  }
}

inline void multiply_int8(Tile& c, const Tile& a, const Tile& b) {
  for (int m = 0; m < 16; ++m) {
    int32_t sums[16];
    std::memcpy(sums, c.rows[m], 64);
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 16; ++n) {
        for (int part = 0; part < 4; ++part) {
          sums[n] += int32_t{static_cast<int8_t>(a.rows[m][4 * k + part])} * static_cast<int8_t>(b.rows[k][4 * n + part]);
        }
      }
    }
    std::memcpy(c.rows[m], sums, 64);
  }
}

}  // namespace emulated_amx

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release() ((void)0)
#define _tile_zero(tile) (emulated_amx::tiles[tile] = {})
#define _tile_loadd(tile, from, stride) emulated_amx::load(emulated_amx::tiles[tile], from, stride)
#define _tile_stored(tile, to, stride) emulated_amx::store(emulated_amx::tiles[tile], to, stride)
#define _tile_dpbf16ps(c, a, b) emulated_amx::multiply_bf16(emulated_amx::tiles[c], emulated_amx::tiles[a], emulated_amx::tiles[b])
#define _tile_dpbssd(c, a, b) emulated_amx::multiply_int8(emulated_amx::tiles[c], emulated_amx::tiles[a], emulated_amx::tiles[b])
// The processor and the operating system say yes to everything.
#define __builtin_cpu_supports(feature) 1
#define syscall(...) 0L
