// Numbers in 8 bits, a sign and a magnitude ("size"), as pages keep them, converted back to bf16.
//
// A line of 64 codes holds two lines of bf16, 8 bytes of one and 8 of the other in turns, as the processor interleaves them;
// a tile of codes is 8 lines.
#pragma once

#include <array>

#include "gemm.h"

namespace asurge {

constexpr int kCodeTile = kTile / 2;

// Where a number is in a tile of codes: given the line `group` of the bf16 tile, the column, and which of its two numbers.
constexpr int code_at(int group, int column, int which) {
  return group / 2 * 64 + column / 4 * 16 + group % 2 * 8 + column % 4 * 2 + which;
}

#ifdef __AVX512VBMI__

// The bf16 of all sizes, low bytes and high bytes.
struct Sizes {
  alignas(64) std::array<uint8_t, 128> low{}, high{};

  constexpr Sizes() {
    for (int size = 1; size <= kLargestCode; ++size) {
      int exponent = 0;
      while (size >> (exponent + 1)) ++exponent;
      const int bits = (127 + exponent) << 7 | (size << (7 - exponent) & 0x7F);
      low[size] = static_cast<uint8_t>(bits & 0xFF);
      high[size] = static_cast<uint8_t>(bits >> 8);
    }
  }
};
inline constexpr Sizes kSizes;

class Decoder {
 public:
  // A line of codes as two lines of bf16.
  void operator()(const uint8_t* codes, Ints& first, Ints& second) const {
    const __m512i code = _mm512_loadu_si512(codes);
    // A choice among 128 bytes looks at 7 bits only.
    const __m512i low = _mm512_permutex2var_epi8(low_first_, code, low_last_);
    const __m512i size = _mm512_permutex2var_epi8(high_first_, code, high_last_);
    const __m512i high = _mm512_ternarylogic_epi64(size, code, sign_, 0xF8);  // size | (code & sign)
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  }

 private:
  const __m512i low_first_ = _mm512_load_si512(kSizes.low.data()), low_last_ = _mm512_load_si512(kSizes.low.data() + 64);
  const __m512i high_first_ = _mm512_load_si512(kSizes.high.data()), high_last_ = _mm512_load_si512(kSizes.high.data() + 64);
  const __m512i sign_ = _mm512_set1_epi8(-128);
};

// The 16 columns of a line of numbers at `group`, the first or the second of its pairs; what lies between is other tokens'.
inline void store_codes(uint8_t* tile, int group, int which, const uint8_t* codes) {
  // Every other byte, in 8 of 16 bytes.
  const __mmask8 eights = group % 2 ? 0xAA : 0x55;
  const __mmask64 own = 0x0055005500550055ull << (8 * (group % 2) + which);
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(codes)));
  const __m512i apart = _mm512_maskz_expand_epi64(eights, _mm512_castsi256_si512(wide));
  _mm512_mask_storeu_epi8(tile + group / 2 * 64, own, which ? _mm512_slli_epi16(apart, 8) : apart);
}

#else

class Decoder {
 public:
  void operator()(const uint8_t* codes, Ints& first, Ints& second) const {
    const Ints code = load_line(codes);
    const __m256i none = _mm256_setzero_si256();
    first = decode({_mm256_unpacklo_epi8(code.low, none), _mm256_unpacklo_epi8(code.high, none)});
    second = decode({_mm256_unpackhi_epi8(code.low, none), _mm256_unpackhi_epi8(code.high, none)});
  }

 private:
  // Two codes of 16 bits in each number. As float32, sizes have nothing in their lower halves.
  static Ints decode(Ints codes) {
    const Ints lower = bits(to_floats(both(codes, all(kLargestCode))));
    const Ints upper = bits(to_floats(both(shift_right<16>(codes), all(kLargestCode))));
    const Ints signs = both(shift_left<8>(codes), all(static_cast<int32_t>(0x80008000)));
    return either(either(shift_right<16>(lower), upper), signs);
  }
};

inline void store_codes(uint8_t* tile, int group, int which, const uint8_t* codes) {
  for (int column = 0; column < 16; ++column) tile[code_at(group, column, which)] = codes[column];
}

#endif

// `lines` lines of codes as tiles of bf16; as many from `early` on, if given, are fetched meanwhile.
inline void unpack(const uint8_t* codes, int lines, uint8_t* tiles, const uint8_t* early) {
  const Decoder decode;
  for (int line = 0; line < lines; ++line, tiles += 128) {
    if (early) _mm_prefetch(reinterpret_cast<const char*>(early + 64 * line), _MM_HINT_T1);
    Ints first, second;
    decode(codes + 64 * line, first, second);
    store_line(tiles, first);
    store_line(tiles + 64, second);
  }
}

#ifndef ASURGE_AVX512

// Rows whose products are taken from codes: tile registers load from memory only, and AVX2 has too few registers.
constexpr int kMostFromCodes = 0;

template <typename B>
inline void multiply_codes(int, const uint8_t*, const B&, size_t, int, float*, int) {}

#else

// With more rows it is faster to unpack once for all of them.
constexpr int kMostFromCodes = 8;

template <int kLines, typename B>
[[gnu::noinline]] void multiply_codes(const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* out,
                                      int out_columns) {
  const Decoder decode;
  __m512 sums[kLines][2];
  for (auto& line : sums) line[0] = line[1] = _mm512_setzero_ps();
  for (int k = 0; k < depth_tiles; ++k, a += kTile) {
    const uint8_t* codes = b(k);
    const uint8_t* early = b.early(k);
    for (int pair = 0; pair < 8; ++pair) {
      __m512i w[2][2];
      for (int strip = 0; strip < 2; ++strip) {
        const size_t at = strip * b_stride + 64 * pair;
        if (early) _mm_prefetch(reinterpret_cast<const char*>(early + at), _MM_HINT_T1);
        decode(codes + at, w[0][strip], w[1][strip]);
      }
      for (int half = 0; half < 2; ++half) {
        for (int line = 0; line < kLines; ++line) {
          int32_t two;
          std::memcpy(&two, a + 64 * line + 4 * (2 * pair + half), 4);
          const __m512i x = _mm512_set1_epi32(two);
          for (int strip = 0; strip < 2; ++strip) sums[line][strip] = dot<Depth::kBf16>(sums[line][strip], x, w[half][strip]);
        }
      }
    }
  }
  for (int line = 0; line < kLines; ++line) {
    _mm512_storeu_ps(out + line * out_columns, sums[line][0]);
    _mm512_storeu_ps(out + line * out_columns + kRows, sums[line][1]);
  }
}

// The first rows of an A tile by two tiles of codes side by side, `b_stride` apart, wherever `b` has those of a depth; what
// `b.early` names is fetched meanwhile.
template <typename B, int kLines = kMostFromCodes>
inline void multiply_codes(int lines, const uint8_t* a, const B& b, size_t b_stride, int depth_tiles, float* out,
                           int out_columns) {
  if (lines == kLines) {
    multiply_codes<kLines>(a, b, b_stride, depth_tiles, out, out_columns);
  } else if constexpr (kLines > 1) {
    multiply_codes<B, kLines - 1>(lines, a, b, b_stride, depth_tiles, out, out_columns);
  }
}

#endif

}  // namespace asurge
