// How keys and values lie in pages, in bf16 or in 8 bits.
//
// For each head, a page first has the numbers, in the order in which tiles are read:
// keys   [page_size / 16][head_dim / 32][16 pairs of dims][16 tokens][2],
// values [page_size / 32][head_dim / 16][16 pairs of tokens][16 dims][2].
// In 8 bits tiles are of codes (`codes.h`), and after them come the scales of a head's tokens, float32 [page_size].
#pragma once

#include <algorithm>

#include "attention.h"
#include "tiles.h"

namespace asurge {

constexpr int kMaxHeadDim = 256;
constexpr int kBlock = 32;  // tokens whose keys, or values, are one piece

// The first position of the block that a position is in.
inline int block_begin(int position) { return position / kBlock * kBlock; }

// One head of one token: normalised and rotated, as the reference rounds it.
void load_head(const Attention& a, int token, int head, const uint16_t* norm, uint16_t* to);

// One KV head of a token of this step goes into its page.
void write_head(const Attention& a, int row, int index, int head);

// Bytes of a number in pages.
inline int item_bytes(const Attention& a) { return a.int8 ? 1 : 2; }

// One head of the page of a position. What lies past the table goes to its last page, as in the reference.
inline uint8_t* head_of_page(const Attention& a, uint8_t* pages, int row, int position, int kv_head) {
  const int page = a.page_table[size_t(row) * a.columns + std::min(position / a.page_size, a.columns - 1)];
  return pages + (size_t(page) * a.kv_heads + kv_head) * a.page_size * (item_bytes(a) * a.head_dim + (a.int8 ? 4 : 0));
}

// `kBlock` tokens' keys or values.
inline uint8_t* block_of(const Attention& a, uint8_t* pages, int row, int kv_head, int at) {
  return head_of_page(a, pages, row, at, kv_head) + size_t(at % a.page_size) * a.head_dim * item_bytes(a);
}

// What the codes of a head of a page are to be multiplied by.
inline float* scales_behind(const Attention& a, uint8_t* head) {
  return reinterpret_cast<float*>(head + size_t(a.page_size) * a.head_dim);
}

// The same, from the token at `at` on.
inline float* scales_of(const Attention& a, uint8_t* pages, int row, int kv_head, int at) {
  return scales_behind(a, head_of_page(a, pages, row, at, kv_head)) + at % a.page_size;
}

}  // namespace asurge
