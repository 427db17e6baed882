// Layout of the KV cache's pages, in bf16 or int8, and how a token is written to its page.
//
// For each head, a page first holds the keys or values, in the order in which tiles are read:
// keys   [page_size / 16][head_dim / 32][16 pairs of dims][16 tokens][2],
// values [page_size / 32][head_dim / 16][16 pairs of tokens][16 dims][2].
// In int8 the tiles hold codes (`int8_codes.h`), followed by the scales of the head's tokens, float32 [page_size].
#pragma once

#include <algorithm>

#include "attention.h"
#include "tiles.h"

namespace asurge {

constexpr int kMaxHeadDim = 256;
constexpr int kBlock = 32;  // tokens of a block: the keys, or values, that are read together

// The first position of the block that a position is in.
inline int block_begin(int position) { return position / kBlock * kBlock; }

// One head of one token after q/k norm (if any) and rotary embedding, rounded as the reference rounds it.
void norm_and_rope(const Attention& a, int token, int head, const uint16_t* norm, uint16_t* to);

// Writes the key and value of one KV head of a new token to its page.
void write_kv_head(const Attention& a, int row, int index, int head);

// Bytes of a stored number.
inline int item_bytes(const Attention& a) { return a.int8 ? 1 : 2; }

// One head of the page of a position. Positions past the page table map to its last page, as in the reference.
inline uint8_t* head_of_page(const Attention& a, uint8_t* pages, int row, int position, int kv_head) {
  const int page = a.page_table[size_t(row) * a.columns + std::min(position / a.page_size, a.columns - 1)];
  return pages + (size_t(page) * a.kv_heads + kv_head) * a.page_size * (item_bytes(a) * a.head_dim + (a.int8 ? 4 : 0));
}

// The block of keys or values that begins at position `at`.
inline uint8_t* block_of(const Attention& a, uint8_t* pages, int row, int kv_head, int at) {
  return head_of_page(a, pages, row, at, kv_head) + size_t(at % a.page_size) * a.head_dim * item_bytes(a);
}

// Scales of the codes of one head of an int8 page.
inline float* scales_of_head(const Attention& a, uint8_t* head) {
  return reinterpret_cast<float*>(head + size_t(a.page_size) * a.head_dim);
}

// Those scales from position `at` on.
inline float* scales_from(const Attention& a, uint8_t* pages, int row, int kv_head, int at) {
  return scales_of_head(a, head_of_page(a, pages, row, at, kv_head)) + at % a.page_size;
}

}  // namespace asurge
