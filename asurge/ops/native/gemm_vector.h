// Products of a few rows at a time: as many as registers hold sums of.
#pragma once

#include "gemm.h"

namespace asurge {

// Nothing to set up.
class TileScope {
 public:
  TileScope() {}
};

constexpr bool kFetchesBetween = true;

// Tiles of B side by side: how many bytes from the one that is named to the first, and from each to the next.
struct Strips {
  size_t first, stride;
};

// Where sums go: the first, numbers from a row to the next, and from the first to each strip's.
struct Target {
  float* out;
  int columns;
  const int* strips;

  Target from(int row, int strip) const { return {out + row * columns, columns, strips + strip}; }
};

// During which tiles along the depth to fetch early, and how far ahead of them.
struct Ahead {
  int begin, end;
  ptrdiff_t bytes;

  template <typename B>
  const uint8_t* operator()(const B& b, int k) const {
    return k >= begin && k < end ? b.early(k, bytes) : nullptr;
  }
};

}  // namespace asurge

// For each processor: how many sums its registers hold (`kMostLines` rows by as many strips), the strips that are best multiplied
// together where rows need several passes (`kStripsOfMany`), and one pass: `kLines` rows of A, the first at `a`, by `kStrips`
// tiles of B at each of the depths.
#ifdef ASURGE_AVX512
#include "microkernel_avx512.h"
#else
#include "microkernel_avx2.h"
#endif

namespace asurge {

template <Depth depth, int kStrips, typename B, int kLines = kMostLines<kStrips>>
inline void multiply_lines(int lines, const uint8_t* a, const B& b, Strips strips, int depth_tiles, Target to, Ahead ahead) {
  if (lines == kLines) {
    multiply_lines<depth, kLines, kStrips>(a, b, strips, depth_tiles, to, ahead);
  } else if constexpr (kLines > 1) {
    multiply_lines<depth, kStrips, B, kLines - 1>(lines, a, b, strips, depth_tiles, to, ahead);
  }
}

// The live rows of one A tile or two. What is multiplied next is fetched in equal parts by all passes over the depth, so
// that memory works as long as the products do; a single pass waits for memory anyway, and fetches its own.
template <Depth depth, int kStrips, typename B>
inline void multiply_rows(const uint8_t* a, size_t a_stride, const B& b, Strips strips, int depth_tiles, Target to,
                          LiveRows rows, Fetch fetch) {
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
    multiply_lines<depth, kStrips>(lines, a + second * a_stride + kInputLine<depth> * row, b, strips, depth_tiles,
                                   to.from(second * kRows + row, 0), ahead);
  }
}

template <Depth depth, int kA, int kB, typename B>
inline void multiply(const uint8_t* a, size_t a_stride, const B& b, size_t b_stride, int depth_tiles, float* out,
                     int out_columns, LiveRows rows, Fetch fetch) {
  constexpr int kOffsets[2] = {0, kRows};
  const Target to{out, out_columns, kOffsets};
  if (kB <= kStripsOfMany || rows.first + rows.second <= kMostLines<kB>) {
    multiply_rows<depth, kB>(a, a_stride, b, Strips{0, b_stride}, depth_tiles, to, rows, fetch);
  } else {
    for (int strip = 0; strip < kB; ++strip) {
      multiply_rows<depth, 1>(a, a_stride, b, Strips{strip * b_stride, b_stride}, depth_tiles, to.from(0, strip), rows, fetch);
    }
  }
}

template <Depth depth, typename B>
inline void multiply_wide(const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* left, float* right,
                          int out_columns, LiveRows rows, Fetch fetch) {
  const int apart = static_cast<int>(right - left), offsets[4] = {0, kRows, apart, apart + kRows};
  multiply_rows<depth, 4>(a, 0, b, Strips{0, b_stride}, depth_tiles, Target{left, out_columns, offsets}, rows, fetch);
}

}  // namespace asurge
