#include "pack.h"

#include <algorithm>

#include "thread_pool.h"
#include "tiles.h"

namespace asurge {
namespace {

constexpr int kWords = 16;  // of 32 bits, of each row of a tile

// Symmetric, by the largest; returns the scale.
float quantize(const uint16_t* row, int depth, uint8_t* to) {
  const float scale = step_of(depth, [&](int k) { return load_bf16(row + k); });
  for (int k = 0; k < depth; k += 16) store_int8(to + k, to_ints(load_bf16(row + k) / all(scale)));
  return scale;
}

// Up to 16 rows of words side by side: the first word of each, then the second of each, ...
void put_in_turns(const uint8_t* rows, int count, size_t row_bytes, uint8_t* out) {
  if (count < kRows) std::memset(out, 0, row_bytes * kRows);
  for (size_t at = 0; at < row_bytes; at += 4 * kWords, out += kTile) {
    for (int row = 0; row < count; ++row) {
      for (int word = 0; word < kWords; ++word) std::memcpy(out + 4 * (word * kRows + row), rows + row * row_bytes + at + 4 * word, 4);
    }
  }
}

void pack_strip(const Packing& packing, int strip, uint8_t* scratch) {
  const int block = packing.gated ? strip / 2 + strip % 2 * (packing.columns / 2 / kRows) : strip;
  const int first = block * kRows, count = std::clamp(packing.columns - first, 0, kRows);
  const uint16_t* rows = packing.weight + size_t(first) * packing.depth;
  if (packing.scale == nullptr) {
    const size_t row_bytes = 2 * packing.depth;
    put_in_turns(reinterpret_cast<const uint8_t*>(rows), count, row_bytes, packing.out + strip * kRows * row_bytes);
    return;
  }
  const size_t row_bytes = packing.depth;
  float* scale = packing.scale + strip * kRows;
  std::fill(scale, scale + kRows, 0.0f);
  for (int row = 0; row < count; ++row) {
    scale[row] = quantize(rows + size_t(row) * packing.depth, packing.depth, scratch + row * row_bytes);
  }
  put_in_turns(scratch, count, row_bytes, packing.out + strip * kRows * row_bytes);
}

}  // namespace

void pack(const Packing& packing) {
  ThreadPool::get().run((packing.columns + kRows - 1) / kRows, [&](Pieces& strips) {
    thread_local Scratch scratch;
    uint8_t* quantized = packing.scale ? scratch.get<uint8_t>(size_t(kRows) * packing.depth) : nullptr;
    for (int strip; strips.take(strip);) pack_strip(packing, strip, quantized);
  });
}

}  // namespace asurge
