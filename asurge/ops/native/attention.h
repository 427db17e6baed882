// Causal paged attention of ragged rows: q/k norm, rotary embedding, the write to the KV cache and attention in one call.
#pragma once

#include <cstdint>

namespace asurge {

struct Attention {
  // [tokens, heads + 2 * kv_heads, head_dim] bf16.
  const uint16_t* qkv;
  // [tokens, head_dim / 2].
  const float* cosine;
  const float* sine;
  // [head_dim] bf16, or null.
  const uint16_t* q_norm;
  const uint16_t* k_norm;
  float epsilon;
  // [rows]: position of the row's first new token, number of new tokens, and index of the first among `tokens`.
  const int32_t* start;
  const int32_t* length;
  const int32_t* first;
  // Number of leading rows that are decode rows: each is the only row of its sequence in this step.
  int decode;
  // [rows, columns].
  const int32_t* page_table;
  // [pages, kv_heads], laid out as `kv_pages.h` says, written in place.
  uint8_t* keys;
  uint8_t* values;
  // [tokens, heads, head_dim] bf16.
  uint16_t* out;
  int tokens, rows, columns, heads, kv_heads, head_dim, page_size;
  bool int8;  // pages hold int8 codes and scales, otherwise bf16
  float scale;
  float softcap;  // on scaled scores: softcap * tanh(score / softcap); 0: none
  int window;    // sliding window; 0: none
  bool chunked;  // attention within chunks of `window` tokens, instead of a window that slides
};

void paged_attention(const Attention& attention);

}  // namespace asurge
