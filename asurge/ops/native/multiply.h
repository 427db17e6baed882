// Products of tiles, all on the same layout: by AMX, or by the registers of AVX-512 or of AVX2.
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

#ifndef ASURGE_AVX2

// Bytes of a row of an A tile: 32 bf16, or 64 int8.
template <Depth>
constexpr int kInputLine = 64;

// 16 numbers that products round to bf16, from the place `at` of a line on.
inline void store_input(uint8_t* line, int at, Floats x) { store_bf16(reinterpret_cast<uint16_t*>(line) + at, x); }
inline void copy_input(uint8_t* line, const uint16_t* from) { std::memcpy(line, from, 64); }

#else

// 32 numbers as float32, since there is no product of others: widening them once is less work. Or 64 int8.
template <Depth depth>
constexpr int kInputLine = depth == Depth::kBf16 ? 128 : 64;

inline void store_input(uint8_t* line, int at, Floats x) { store(reinterpret_cast<float*>(line) + at, x); }
inline void copy_input(uint8_t* line, const uint16_t* from) {
  store_input(line, 0, load_bf16(from));
  store_input(line, 16, load_bf16(from + 16));
}

#endif

template <Depth depth>
constexpr int kInputTile = kRows * kInputLine<depth>;

// For each processor: `kInt8Excess`, by which weights of 8 bits are larger in products than they are, so that those come out
// larger by this times the sum of the row; `kFetchesBetween`, whether attention has products fetch what comes next or asks for it
// in bursts; `kMostLines`, the rows that are multiplied by so many strips in one pass; and `kBytesTogether`, of A tiles that are
// multiplied by one panel of columns after another.

}  // namespace asurge

#ifdef ASURGE_AMX
#include "multiply_amx.h"
#else
#include "multiply_rows.h"
#endif
