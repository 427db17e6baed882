#pragma once

#include "gemm.h"

namespace asurge {

inline Ints excess_of(Ints) { return all(0); }
constexpr size_t kBytesTogether = SIZE_MAX;
constexpr bool kFetchesBetween = false;  // whether attention has products fetch what comes next, or asks for it in bursts
// The most rows that are multiplied by this many strips in one pass.
template <int kStrips>
constexpr int kMostLines = kRows;

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
                     int out_columns, LiveRows /*rows*/, Fetch fetch) {
  _tile_zero(0);
  if constexpr (kB == 2) _tile_zero(1);
  if constexpr (kA == 2) _tile_zero(2);
  if constexpr (kA == 2 && kB == 2) _tile_zero(3);
  for (int k = 0; k < depth_tiles; ++k) {
    const uint8_t* b0 = b(k);
    if (fetch.near) {
      for (int line = 0; line < 16; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(b0 + fetch.near + 64 * line), _MM_HINT_T0);
        if constexpr (kB == 2) {
          _mm_prefetch(reinterpret_cast<const char*>(b0 + b_stride + fetch.near + 64 * line), _MM_HINT_T0);
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

// The same for one A tile and four B tiles: where rows are few, memory is read faster in more streams at once.
template <Depth depth, typename B>
inline void multiply_wide(const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* left, float* right,
                          int out_columns, LiveRows /*rows*/, Fetch fetch) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int k = 0; k < depth_tiles; ++k) {
    const uint8_t* b0 = b(k);
    for (int stream = 0; stream < 4; ++stream) {
      for (int line = 0; line < 16; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(b0 + stream * b_stride + fetch.near + 64 * line), _MM_HINT_T0);
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

}  // namespace asurge
