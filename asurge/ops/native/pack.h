// A weight as checkpoints have it, put into the order in which products read it (`asurge.ops.packed`).
#pragma once

#include <cstdint>

namespace asurge {

struct Packing {
  const uint16_t* weight;  // [columns, depth], bf16
  uint8_t* out;            // strips of 16 columns, the last one filled up with zeros
  float* scale;            // [strips, 16]: weights are quantised to 8 bits; or null: they stay bf16
  int columns, depth;
  bool gated;  // gates, then as many that they are for: strips of both in turns
};

void pack(const Packing& packing);

}  // namespace asurge
