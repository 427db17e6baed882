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

// 16 numbers that products round to bf16, from the place `at` of a line on; or 16 that are integers of 8 bits.
inline void store_input(uint8_t* line, int at, Floats x) { store_bf16(reinterpret_cast<uint16_t*>(line) + at, x); }
inline void store_input(uint8_t* line, int at, Ints x) { store_int8(line + at, x); }
inline void copy_input(uint8_t* line, const uint16_t* from) { std::memcpy(line, from, 64); }

#else

// 32 numbers as float32, since there is no product of others: widening them once is less work. Or the sizes of 64 int8, and
// then, of those that are negative, all bits.
template <Depth>
constexpr int kInputLine = 128;

inline void store_input(uint8_t* line, int at, Floats x) { store(reinterpret_cast<float*>(line) + at, x); }
inline void store_input(uint8_t* line, int at, Ints x) {
  store_int8(line + at, {_mm256_abs_epi32(x.low), _mm256_abs_epi32(x.high)});
  store_int8(line + 64 + at, {_mm256_srai_epi32(x.low, 31), _mm256_srai_epi32(x.high, 31)});
}
inline void copy_input(uint8_t* line, const uint16_t* from) {
  store_input(line, 0, load_bf16(from));
  store_input(line, 16, load_bf16(from + 16));
}

#endif

template <Depth depth>
constexpr int kInputTile = kRows * kInputLine<depth>;

// For each processor: `excess_of`, by how much products of 8 bits come out too large because of 16 numbers of a row, whatever they
// are multiplied by; `kFetchesBetween`, whether attention has products fetch what comes next or asks for it
// in bursts; `kMostLines`, the rows that are multiplied by so many strips in one pass; and `kBytesTogether`, of A tiles that are
// multiplied by one panel of columns after another.

}  // namespace asurge

#ifdef ASURGE_AMX
#include "gemm_amx.h"
#else
#include "gemm_vector.h"
#endif
