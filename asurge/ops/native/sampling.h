// Sampling of tokens from logits.
#pragma once

#include <cstdint>

namespace asurge {

struct Sampling {
  const float* logits;  // [rows, columns], of which the first `vocab` are tokens
  // [rows] each; see `asurge.ops.sampling.sample`.
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const uint32_t* seed;
  const int32_t* position;
  const bool* live;  // or null: all rows; rows that are not live get token 0
  int rows, columns, vocab;
  int32_t* out;
};

void sample(const Sampling& sampling);

}  // namespace asurge
