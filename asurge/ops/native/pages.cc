#include "pages.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace asurge {
namespace {

constexpr int kLargest = 127;  // of codes

// The bf16 of all sizes, low bytes and high bytes.
struct Sizes {
  alignas(64) std::array<uint8_t, 128> low{}, high{};

  constexpr Sizes() {
    for (int size = 1; size <= kLargest; ++size) {
      int exponent = 0;
      while (size >> (exponent + 1)) ++exponent;
      const int bits = (127 + exponent) << 7 | (size << (7 - exponent) & 0x7F);
      low[size] = static_cast<uint8_t>(bits & 0xFF);
      high[size] = static_cast<uint8_t>(bits >> 8);
    }
  }
};
constexpr Sizes kSizes;

// Where a number is in a tile of codes: of line `group` of the bf16 tile, that of a column, and which of its two.
constexpr int code_at(int group, int column, int which) {
  return group / 2 * 64 + column / 4 * 16 + group % 2 * 8 + column % 4 * 2 + which;
}

// Codes of one head of a token, and the scale that makes numbers of them: NaN where one is not finite.
float quantize(const uint16_t* x, int dim, uint8_t* codes) {
  const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  __m512 most = _mm512_setzero_ps();
  __mmask16 lost = 0;  // a maximum forgets NaN
  for (int d = 0; d < dim; d += 16) {
    const __m512 size = _mm512_abs_ps(load_bf16(x + d));
    lost |= _mm512_cmp_ps_mask(size, infinity, _CMP_NLT_UQ);
    most = _mm512_max_ps(most, size);
  }
  const float largest = lost ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(most);
  const float scale = std::max(largest, 1e-30f) / kLargest;
  // Divided, as in the reference: halfway values would go elsewhere.
  const __m512 step = _mm512_set1_ps(scale);
  for (int d = 0; d < dim; d += 16) {
    const __m512 value = load_bf16(x + d);
    const __m512i size = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_abs_ps(value), step));
    const __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(value), 31);
    const __m512i code = _mm512_or_epi32(_mm512_min_epi32(size, _mm512_set1_epi32(kLargest)), _mm512_slli_epi32(sign, 7));
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
  const size_t scales = size_t(a.page_size) * dim + 4 * size_t(offset);
  alignas(64) uint8_t codes[kMaxHeadDim];
  const float key_scale = quantize(key, dim, codes);
  std::memcpy(keys + scales, &key_scale, 4);
  keys += offset / 16 * dim * 16;
  for (int d = 0; d < dim; d += 2) std::memcpy(keys + d / 32 * (kTile / 2) + code_at(d % 32 / 2, offset % 16, 0), codes + d, 2);
  const float value_scale = quantize(value, dim, codes);
  std::memcpy(values + scales, &value_scale, 4);
  values += offset / 32 * dim * 32;
  for (int d = 0; d < dim; ++d) {
    values[d / 16 * (kTile / 2) + code_at(offset % 32 / 2, d % 16, offset % 2)] = codes[d];
  }
}

}  // namespace

void load_head(const Attention& a, int token, int head, const uint16_t* norm, uint16_t* to) {
  const int dim = a.head_dim, half = dim / 2;
  const uint16_t* x = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + head) * dim;
  alignas(64) uint16_t normed[kMaxHeadDim];
  if (norm) {
    __m512 sum = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 16) sum = _mm512_fmadd_ps(load_bf16(x + d), load_bf16(x + d), sum);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / dim + a.epsilon));
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

void write_token(const Attention& a, int row, int index) {
  const int token = a.first[row] + index, position = a.start[row] + index;
  for (int head = 0; head < a.kv_heads; ++head) {
    alignas(64) uint16_t key[kMaxHeadDim];
    load_head(a, token, a.heads + head, a.k_norm, key);
    const uint16_t* value = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + a.heads + a.kv_heads + head) * a.head_dim;
    uint8_t* keys = head_of_page(a, a.keys, row, position, head);
    uint8_t* values = head_of_page(a, a.values, row, position, head);
    (a.int8 ? write_int8 : write_bf16)(a, key, value, position % a.page_size, keys, values);
  }
}

void unpack(const uint8_t* codes, int lines, uint8_t* tiles, const uint8_t* early) {
  const __m512i low_first = _mm512_load_si512(kSizes.low.data()), low_last = _mm512_load_si512(kSizes.low.data() + 64);
  const __m512i high_first = _mm512_load_si512(kSizes.high.data()), high_last = _mm512_load_si512(kSizes.high.data() + 64);
  const __m512i sign = _mm512_set1_epi8(-128);
  for (int line = 0; line < lines; ++line, codes += 64, tiles += 128) {
    const __m512i code = _mm512_loadu_si512(codes);
    if (early) _mm_prefetch(reinterpret_cast<const char*>(early + 64 * line), _MM_HINT_T1);
    // A choice among 128 bytes looks at 7 bits only.
    const __m512i low = _mm512_permutex2var_epi8(low_first, code, low_last);
    const __m512i size = _mm512_permutex2var_epi8(high_first, code, high_last);
    const __m512i high = _mm512_ternarylogic_epi64(size, code, sign, 0xF8);  // size | (code & sign)
    _mm512_store_si512(tiles, _mm512_unpacklo_epi8(low, high));
    _mm512_store_si512(tiles + 64, _mm512_unpackhi_epi8(low, high));
  }
}

}  // namespace asurge
