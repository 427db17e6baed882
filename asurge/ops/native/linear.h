// y = epilogue(prologue(x) W^T): the matrix products of a transformer layer, with what surrounds them.
#pragma once

#include <cstdint>

#include "grouped.h"

namespace asurge {

struct Linear {
  // x [rows, depth] bf16. norm [depth] bf16 or null: x is RMS-normalised on its way in.
  const uint16_t* x;
  const uint16_t* norm;
  float epsilon;
  // Where each strip of 16 columns lies in `weight`, [columns / 16], if weights are grouped (`grouped.h`); else null, and
  // packed B tiles [columns / 16][depth / 32 or 64][16][16][2 or 4], bf16 or int8; scale [columns] when int8, else null.
  const uint8_t* weight;
  const StripEntry* strips;
  const float* scale;
  // [columns] bf16, [rows, columns] bf16, or null.
  const uint16_t* bias;
  const uint16_t* residual;
  // Gate and up columns alternate in blocks of 16; the output is activation(gate) * up.
  bool gated;
  enum class Activation { kSilu, kGeluTanh } activation;
  int rows, depth, columns;
  // [rows / 16, rounded up]: whose weights each 16 rows are multiplied by, as mixtures of experts have it: how many times
  // `layer_bytes` (of strips, `columns` / 16) behind `weight` they lie. Null: all by `weight`.
  const int32_t* layers;
  size_t layer_bytes;
  // [rows / 16, rounded up]: how many of each 16 rows matter, the first ones; the others' output may stay as it is. Null: all.
  const int32_t* live;
  // Exactly one is set: [rows, columns], half the columns when gated; or for each row, the first of the `candidates` columns with
  // the largest value.
  uint16_t* out_bf16;
  float* out_f32;
  int32_t* out_argmax;
  int candidates;
  // [rows, candidates / 32, rounded up] or null: column c only competes where bit c % 32 of word c / 32 is set.
  const uint32_t* allowed;
};

void linear(const Linear& call);

}  // namespace asurge
