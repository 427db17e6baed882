// Products of tiles: by AMX, or (ASURGE_AVX512) by the dot products of AVX-512, on the same layout.
#pragma once

#include <algorithm>

#include "tiles.h"

namespace asurge {

enum class Depth { kBf16, kInt8 };


// Where the tiles of B are: here one below the other, contiguous.
struct Strip {
  const uint8_t* first;
  const uint8_t* operator()(int k) const { return first + size_t(k) * kTile; }
  const uint8_t* early(int k, ptrdiff_t ahead) const { return (*this)(k) + ahead; }
};

// What to fetch early, in bytes from the tile at hand: a little ahead in the same strip, and the same tile of what is
// multiplied next. 0 fetches nothing.
struct Fetch {
  ptrdiff_t near = 0, next = 0;
};

// How many rows of one A tile, or of two, matter: the first ones. AMX computes the others at no cost.
struct LiveRows {
  int first, second = 0;
};

#ifndef ASURGE_AVX512

constexpr int kInt8Excess = 0;
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

#else

// Nothing to set up.
class TileScope {
 public:
  TileScope() {}
};

// The only product is of unsigned with signed bytes, so weights go in as if each were larger by this; a product of a row comes
// out larger by this times the row's sum.
constexpr int kInt8Excess = 128;

template <Depth depth>
inline __m512i load_weights(const uint8_t* from) {
  const __m512i w = _mm512_loadu_si512(from);
  return depth == Depth::kBf16 ? w : _mm512_xor_si512(w, _mm512_set1_epi8(-128));
}

// acc += x . w, where x is one group along the depth, the same in all columns.
template <Depth depth>
inline __m512 dot(__m512 acc, __m512i x, __m512i w) {
  if constexpr (depth == Depth::kBf16) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  } else {
    return _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(acc), w, x));
  }
}

constexpr bool kFetchesBetween = true;

// As many sums as fit the registers.
template <int kStrips>
constexpr int kMostLines = kStrips == 4 ? 6 : kStrips == 2 ? 12 : 16;

// During which tiles along the depth to fetch early, and how far ahead of them.
struct Ahead {
  int begin, end;
  ptrdiff_t bytes;
};

// `kLines` rows of A by `kStrips` tiles of B side by side, `b_stride` apart; `a` is the first of the rows.
template <Depth depth, int kLines, int kStrips, typename B>
[[gnu::noinline]] void multiply_lines(const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* out,
                                      const int* strip_offset, int out_columns, Ahead ahead) {
  __m512 sums[kLines][kStrips];
  for (auto& line : sums) {
    for (auto& sum : line) sum = _mm512_setzero_ps();
  }
  for (int k = 0; k < depth_tiles; ++k, a += kTile) {
    const uint8_t* tile = b(k);
    const uint8_t* early = k >= ahead.begin && k < ahead.end ? b.early(k, ahead.bytes) : nullptr;
    for (int group = 0; group < 16; ++group) {
      __m512i w[kStrips];
      for (int strip = 0; strip < kStrips; ++strip) {
        const size_t at = strip * b_stride + 64 * group;
        if (early) _mm_prefetch(reinterpret_cast<const char*>(early + at), _MM_HINT_T1);
        w[strip] = load_weights<depth>(tile + at);
      }
      for (int line = 0; line < kLines; ++line) {
        int32_t pair;
        std::memcpy(&pair, a + 64 * line + 4 * group, 4);
        const __m512i x = _mm512_set1_epi32(pair);
        for (int strip = 0; strip < kStrips; ++strip) sums[line][strip] = dot<depth>(sums[line][strip], x, w[strip]);
      }
    }
  }
  for (int line = 0; line < kLines; ++line) {
    for (int strip = 0; strip < kStrips; ++strip) {
      _mm512_storeu_ps(out + strip_offset[strip] + line * out_columns, sums[line][strip]);
    }
  }
}

template <Depth depth, int kStrips, typename B, int kLines = kMostLines<kStrips>>
inline void multiply_lines(int lines, const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* out,
                           const int* strip_offset, int out_columns, Ahead ahead) {
  if (lines == kLines) {
    multiply_lines<depth, kLines, kStrips>(a, b, b_stride, depth_tiles, out, strip_offset, out_columns, ahead);
  } else if constexpr (kLines > 1) {
    multiply_lines<depth, kStrips, B, kLines - 1>(lines, a, b, b_stride, depth_tiles, out, strip_offset, out_columns,
                                                  ahead);
  }
}

// The live rows of one A tile or two. What is multiplied next is fetched in equal parts by all passes over the depth, so
// that memory works as long as the products do; a single pass waits for memory anyway, and fetches its own.
template <Depth depth, int kStrips, typename B>
inline void multiply_rows(const uint8_t* a, size_t a_stride, const B& b, size_t b_stride, int depth_tiles, float* out,
                          const int* strip_offset, int out_columns, LiveRows rows, Fetch fetch) {
  constexpr int kMost = kMostLines<kStrips>;
  const int first = (rows.first + kMost - 1) / kMost, passes = first + (rows.second + kMost - 1) / kMost;
  const ptrdiff_t bytes = passes == 1 ? fetch.near : fetch.next;
  const int fetched = bytes ? depth_tiles : 0;
  for (int pass = 0; pass < passes; ++pass) {
    const bool second = pass >= first;
    const int live = second ? rows.second : rows.first;
    const int at = second ? pass - first : pass, shares = second ? passes - first : first;
    const int row = live * at / shares, lines = live * (at + 1) / shares - row;
    const Ahead ahead{fetched * pass / passes, fetched * (pass + 1) / passes, bytes};
    multiply_lines<depth, kStrips>(lines, a + second * a_stride + 64 * row, b, b_stride, depth_tiles,
                                   out + (second * kRows + row) * out_columns, strip_offset, out_columns, ahead);
  }
}

template <Depth depth, int kA, int kB, typename B>
inline void multiply(const uint8_t* a, size_t a_stride, const B& b, size_t b_stride, int depth_tiles, float* out,
                     int out_columns, LiveRows rows, Fetch fetch) {
  const int offsets[2] = {0, kRows};
  multiply_rows<depth, kB>(a, a_stride, b, b_stride, depth_tiles, out, offsets, out_columns, rows, fetch);
}

template <Depth depth, typename B>
inline void multiply_wide(const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* left, float* right,
                          int out_columns, LiveRows rows, Fetch fetch) {
  const int apart = static_cast<int>(right - left), offsets[4] = {0, kRows, apart, apart + kRows};
  multiply_rows<depth, 4>(a, 0, b, b_stride, depth_tiles, left, offsets, out_columns, rows, fetch);
}

#endif

}  // namespace asurge
