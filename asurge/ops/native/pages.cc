#include "pages.h"

#include "codes.h"

namespace asurge {
namespace {

// Codes of one head of a token, and the scale that turns them into numbers: NaN where one is not finite.
float quantize(const uint16_t* x, int dim, uint8_t* codes) {
  const float scale = step_of(dim, [&](int d) { return load_bf16(x + d); });
  // Divided, as in the reference: halfway values would otherwise round differently.
  const __m512 step = _mm512_set1_ps(scale);
  for (int d = 0; d < dim; d += 16) {
    const __m512 value = load_bf16(x + d);
    const __m512i size = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_abs_ps(value), step));
    const __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(value), 31);
    const __m512i code = _mm512_or_epi32(_mm512_min_epi32(size, _mm512_set1_epi32(kLargestCode)), _mm512_slli_epi32(sign, 7));
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + d), _mm512_cvtepi32_epi8(code));
  }
  return scale;
}

void write_bf16(const Attention& a, const uint16_t* key, const uint16_t* value, int offset, uint8_t* keys, uint8_t* values) {
  const int dim = a.head_dim;
  uint32_t* pairs = reinterpret_cast<uint32_t*>(keys) + offset / 16 * (dim / 2) * 16 + offset % 16;
  for (int pair = 0; pair < dim / 2; ++pair) std::memcpy(pairs + pair * 16, key + 2 * pair, 4);
  uint16_t* to = reinterpret_cast<uint16_t*>(values) + size_t(offset / 32) * 32 * dim + offset % 32 / 2 * 32;
  for (int d = 0; d < dim; d += 16, to += kTile / 2) {
    const __m512i lanes = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(value + d)));
    if (offset % 2) {  // each token of a pair leaves the other's lanes alone: another thread may be writing them
      _mm512_mask_storeu_epi16(to, 0xAAAAAAAAu, _mm512_slli_epi32(lanes, 16));
    } else {
      _mm512_mask_storeu_epi16(to, 0x55555555u, lanes);
    }
  }
}

void write_int8(const Attention& a, const uint16_t* key, const uint16_t* value, int offset, uint8_t* keys, uint8_t* values) {
  const int dim = a.head_dim;
  alignas(64) uint8_t codes[kMaxHeadDim];
  scales_behind(a, keys)[offset] = quantize(key, dim, codes);
  keys += offset / 16 * dim * 16;
  for (int d = 0; d < dim; d += 2) {
    std::memcpy(keys + d / 32 * kCodeTile + code_at(d % 32 / 2, offset % 16, 0), codes + d, 2);
  }
  scales_behind(a, values)[offset] = quantize(value, dim, codes);
  // 16 columns of a line: every other byte, in 8 of 16 bytes; the rest are other tokens'.
  const int group = offset % 32 / 2, which = offset % 2;
  values += offset / 32 * dim * 32 + group / 2 * 64;
  const __mmask8 eights = group % 2 ? 0xAA : 0x55;
  const __mmask64 own = 0x0055005500550055ull << (8 * (group % 2) + which);
  for (int d = 0; d < dim; d += 16, values += kCodeTile) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(codes + d)));
    const __m512i apart = _mm512_maskz_expand_epi64(eights, _mm512_castsi256_si512(wide));
    _mm512_mask_storeu_epi8(values, own, which ? _mm512_slli_epi16(apart, 8) : apart);
  }
}

}  // namespace

void load_head(const Attention& a, int token, int head, const uint16_t* norm, uint16_t* to) {
  const int dim = a.head_dim, half = dim / 2;
  const uint16_t* x = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + head) * dim;
  alignas(64) uint16_t normed[kMaxHeadDim];
  if (norm) {
    const __m512 factor = _mm512_set1_ps(inverse_rms(x, dim, a.epsilon));
    for (int d = 0; d < dim; d += 16) {
      const __m512 value = round_bf16(_mm512_mul_ps(load_bf16(x + d), factor));
      store_bf16(normed + d, _mm512_mul_ps(value, load_bf16(norm + d)));
    }
    x = normed;
  }
  const float* cosine = a.cosine + size_t(token) * half;
  const float* sine = a.sine + size_t(token) * half;
  for (int d = 0; d < half; d += 16) {
    const __m512 first = load_bf16(x + d), second = load_bf16(x + half + d);
    const __m512 c = _mm512_loadu_ps(cosine + d), s = _mm512_loadu_ps(sine + d);
    store_bf16(to + d, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
    store_bf16(to + half + d, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
  }
}

void write_head(const Attention& a, int row, int index, int head) {
  const int token = a.first[row] + index, position = a.start[row] + index, offset = position % a.page_size;
  uint8_t* keys = head_of_page(a, a.keys, row, position, head);
  uint8_t* values = head_of_page(a, a.values, row, position, head);
  // A key goes to as many lines as it has pairs: they are fetched while it is made.
  const int bytes = 16 * a.head_dim * item_bytes(a);
  for (int byte = 0; byte < bytes; byte += 64) __builtin_prefetch(keys + offset / 16 * bytes + byte, 1);
  alignas(64) uint16_t key[kMaxHeadDim];
  load_head(a, token, a.heads + head, a.k_norm, key);
  const uint16_t* value = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + a.heads + a.kv_heads + head) * a.head_dim;
  (a.int8 ? write_int8 : write_bf16)(a, key, value, offset, keys, values);
}

}  // namespace asurge
