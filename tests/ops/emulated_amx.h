// Emulation of AMX's tiles and their products in plain C++, for processors without: the part that `asurge/ops/native` uses,
// as Intel's manual defines it. Included before everything else.
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

// Each word of a row holds two bf16. Subnormal numbers count as zero.
inline void widen(const Tile& tile, float (&to)[16][2][16]) {
  for (int row = 0; row < 16; ++row) {
    uint32_t words[16], bits[2][16];
    std::memcpy(words, tile.rows[row], 64);
    for (int at = 0; at < 16; ++at) {
      const uint32_t first = words[at] << 16, second = words[at] & 0xFFFF0000;
      bits[0][at] = first & 0x7F800000 ? first : 0;
      bits[1][at] = second & 0x7F800000 ? second : 0;
    }
    std::memcpy(to[row], bits, sizeof bits);
  }
}

// Each word of a row holds four int8.
inline void widen(const Tile& tile, int32_t (&to)[16][4][16]) {
  for (int row = 0; row < 16; ++row) {
    uint32_t words[16];
    std::memcpy(words, tile.rows[row], 64);
    for (int part = 0; part < 4; ++part) {
      for (int at = 0; at < 16; ++at) to[row][part][at] = static_cast<int32_t>(words[at] << (24 - 8 * part)) >> 24;
    }
  }
}

template <typename T, int PARTS>
inline void multiply(Tile& c, const Tile& a, const Tile& b) {
  T left[16][PARTS][16], right[16][PARTS][16];
  widen(a, left);
  widen(b, right);
  for (int m = 0; m < 16; ++m) {
    T sums[16];
    std::memcpy(sums, c.rows[m], 64);
    for (int k = 0; k < 16; ++k) {
      for (int part = 0; part < PARTS; ++part) {
        for (int n = 0; n < 16; ++n) sums[n] += left[m][part][k] * right[k][part][n];
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
#define EMULATED_MULTIPLY(type, parts, c, a, b) \
  emulated_amx::multiply<type, parts>(emulated_amx::tiles[c], emulated_amx::tiles[a], emulated_amx::tiles[b])
#define _tile_dpbf16ps(c, a, b) EMULATED_MULTIPLY(float, 2, c, a, b)
#define _tile_dpbssd(c, a, b) EMULATED_MULTIPLY(int32_t, 4, c, a, b)
// The processor and the operating system report every feature.
#define __builtin_cpu_supports(feature) 1
#define syscall(...) 0L
