// Writes keys and values to pages: q/k norm, rotary embedding, and conversion to the page's type.
#include "kv_pages.h"

#include "int8_codes.h"

namespace asurge {
namespace {

// Quantises one head of a token to int8, and returns its scale: NaN if a number is not finite.
float quantize(const uint16_t* x, int dim, uint8_t* codes) {
  const float scale = step_of(dim, [&](int d) { return load_bf16(x + d); });
  // A division, as in the reference: a product with the inverse would round halfway values differently.
  const Floats step = all(scale);
  for (int d = 0; d < dim; d += 16) {
    const Floats value = load_bf16(x + d);
    const Ints size = min(to_ints(abs(value) / step), all(kLargestCode));
    const Ints sign = shift_left<7>(shift_right<31>(bits(value)));
    store_low_bytes(codes + d, either(size, sign));
  }
  return scale;
}

void write_bf16(const Attention& a, const uint16_t* key, const uint16_t* value, int offset, uint8_t* keys, uint8_t* values) {
  const int dim = a.head_dim;
  uint32_t* pairs = reinterpret_cast<uint32_t*>(keys) + offset / 16 * (dim / 2) * 16 + offset % 16;
  for (int pair = 0; pair < dim / 2; ++pair) std::memcpy(pairs + pair * 16, key + 2 * pair, 4);
  uint16_t* to = reinterpret_cast<uint16_t*>(values) + size_t(offset / 32) * 32 * dim + offset % 32 / 2 * 32;
  // Only this token's halves of each pair are written: another thread may be writing the other token's.
  for (int d = 0; d < dim; d += 16, to += kTile / 2) store_apart(to, offset % 2, value + d);
}

void write_int8(const Attention& a, const uint16_t* key, const uint16_t* value, int offset, uint8_t* keys, uint8_t* values) {
  const int dim = a.head_dim;
  alignas(64) uint8_t codes[kMaxHeadDim];
  scales_of_head(a, keys)[offset] = quantize(key, dim, codes);
  keys += offset / 16 * dim * 16;
  for (int d = 0; d < dim; d += 2) {
    std::memcpy(keys + d / 32 * kCodeTile + code_at(d % 32 / 2, offset % 16, 0), codes + d, 2);
  }
  scales_of_head(a, values)[offset] = quantize(value, dim, codes);
  values += offset / 32 * dim * 32;
  for (int d = 0; d < dim; d += 16, values += kCodeTile) store_codes(values, offset % 32 / 2, offset % 2, codes + d);
}

}  // namespace

void norm_and_rope(const Attention& a, int token, int head, const uint16_t* norm, uint16_t* to) {
  const int dim = a.head_dim, half = dim / 2;
  const uint16_t* x = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + head) * dim;
  alignas(64) uint16_t normed[kMaxHeadDim];
  if (norm) {
    const Floats factor = all(inverse_rms(x, dim, a.epsilon));
    for (int d = 0; d < dim; d += 16) {
      const Floats value = round_bf16(load_bf16(x + d) * factor);
      store_bf16(normed + d, value * load_bf16(norm + d));
    }
    x = normed;
  }
  const float* cosine = a.cosine + size_t(token) * half;
  const float* sine = a.sine + size_t(token) * half;
  for (int d = 0; d < half; d += 16) {
    const Floats first = load_bf16(x + d), second = load_bf16(x + half + d);
    const Floats c = load(cosine + d), s = load(sine + d);
    store_bf16(to + d, fms(first, c, second * s));
    store_bf16(to + half + d, fma(second, c, first * s));
  }
}

void write_kv_head(const Attention& a, int row, int index, int head) {
  const int token = a.first[row] + index, position = a.start[row] + index, offset = position % a.page_size;
  uint8_t* keys = head_of_page(a, a.keys, row, position, head);
  uint8_t* values = head_of_page(a, a.values, row, position, head);
  // A key is spread over as many cache lines as it has pairs: they are prefetched while it is computed.
  const int bytes = 16 * a.head_dim * item_bytes(a);
  for (int byte = 0; byte < bytes; byte += 64) __builtin_prefetch(keys + offset / 16 * bytes + byte, 1);
  alignas(64) uint16_t key[kMaxHeadDim];
  norm_and_rope(a, token, a.heads + head, a.k_norm, key);
  const uint16_t* value = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + a.heads + a.kv_heads + head) * a.head_dim;
  (a.int8 ? write_int8 : write_bf16)(a, key, value, offset, keys, values);
}

}  // namespace asurge
