// Causal attention of ragged rows over pages, with everything from the projection to the mixed values in one pass.
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
  // [rows]: position of the first new token, new tokens, and where they are among the tokens.
  const int32_t* start;
  const int32_t* length;
  const int32_t* first;
  // How many rows, at the beginning, are decode rows: each is the only row of its sequence in this step.
  int decode;
  // [rows, columns].
  const int32_t* page_table;
  // [pages, kv_heads], each as in `kv_pages.h`, written in place.
  uint8_t* keys;
  uint8_t* values;
  // [tokens, heads, head_dim] bf16.
  uint16_t* out;
  int tokens, rows, columns, heads, kv_heads, head_dim, page_size;
  bool int8;  // what pages hold
  float scale;
  float softcap;  // on scaled scores: softcap * tanh(score / softcap); 0: none
  int window;    // 0: none
  bool chunked;  // the window stands where the query's chunk begins, and does not slide
};

void run(const Attention& attention);

}  // namespace asurge
