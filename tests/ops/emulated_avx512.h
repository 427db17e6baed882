// Emulation of the AVX-512 that `asurge/ops/native` uses, as Intel's manual defines it, for processors without: 64 bytes in a vector of the
// compiler's, which it takes apart. Included before everything else.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated_avx512 {

template <typename T>
struct Numbers {
  T at[64 / sizeof(T)];
  T operator[](int place) const { return at[place]; }
};
using Bytes = Numbers<uint8_t>;
using Words = Numbers<int32_t>;
using Singles = Numbers<float>;

template <typename T>
inline T as(const auto& line) { return std::bit_cast<T>(line); }

// A line whose numbers are `number(0)`, `number(1)`, ...
template <typename T, typename Line>
inline Line made(const auto& number) {
  Numbers<T> line;
  for (int at = 0; at < int(64 / sizeof(T)); ++at) line.at[at] = number(at);
  return as<Line>(line);
}
inline __m512 singles(const auto& number) { return made<float, __m512>(number); }
inline __m512i words(const auto& number) { return made<int32_t, __m512i>(number); }
inline __m512i bytes(const auto& number) { return made<uint8_t, __m512i>(number); }

inline __m512i load(const void* from) { __m512i line; std::memcpy(&line, from, 64); return line; }
inline void store(void* to, const auto& line) { std::memcpy(to, &line, 64); }
template <typename T>
inline void mask_store(void* to, uint64_t mask, __m512i line) {
  const auto numbers = as<Numbers<T>>(line);
  for (int at = 0; at < int(64 / sizeof(T)); ++at) {
    if (mask >> at & 1) std::memcpy(static_cast<T*>(to) + at, &numbers.at[at], sizeof(T));
  }
}

inline __m512 fma(__m512 a, __m512 b, __m512 c) { return singles([&](int at) { return __builtin_fmaf(a[at], b[at], c[at]); }); }
inline __m512 max(__m512 a, __m512 b) { return singles([&](int at) { return a[at] > b[at] ? a[at] : b[at]; }); }
inline __m512 min(__m512 a, __m512 b) { return singles([&](int at) { return a[at] < b[at] ? a[at] : b[at]; }); }
inline __m512 abs(__m512 x) { return as<__m512>(as<__m512i>(x) & as<__m512i>(words([](int) { return 0x7FFFFFFF; }))); }
inline __m512 rounded(__m512 x) { return singles([&](int at) { return std::nearbyint(x[at]); }); }
inline __m512 reciprocal(__m512 x) {  // within 2^-14
  return singles([&](int at) { return std::bit_cast<float>(std::bit_cast<uint32_t>(1.0f / x[at]) & 0xFFFFFF00u); });
}
inline __m512 scaled_where(uint16_t mask, __m512 x, __m512 n) {
  return singles([&](int at) { return mask >> at & 1 ? std::ldexp(x[at], int(std::floor(n[at]))) : 0.0f; });
}
inline __m512 picked(__m512 no, uint16_t mask, __m512 yes) { return singles([&](int at) { return mask >> at & 1 ? yes[at] : no[at]; }); }
inline __m512 load_where(uint16_t mask, const float* from) { return singles([&](int at) { return mask >> at & 1 ? from[at] : 0.0f; }); }

inline uint16_t mask_of(const auto& holds) {
  uint16_t mask = 0;
  for (int at = 0; at < 16; ++at) mask |= holds(at) << at;
  return mask;
}
template <int kHow>
inline uint16_t compared(__m512 a, __m512 b) {
  if constexpr (kHow == _CMP_GT_OQ) return mask_of([&](int at) { return a[at] > b[at]; });
  else if constexpr (kHow == _CMP_GE_OQ) return mask_of([&](int at) { return a[at] >= b[at]; });
  else if constexpr (kHow == _CMP_NLT_UQ) return mask_of([&](int at) { return !(a[at] < b[at]); });
  else if constexpr (kHow == _CMP_EQ_OQ) return mask_of([&](int at) { return a[at] == b[at]; });
}
inline uint16_t greater(__m512i a, __m512i b) { return mask_of([x = as<Words>(a), y = as<Words>(b)](int at) { return x[at] > y[at]; }); }

// Reduces by halves, as the compiler reduces a register.
template <typename T>
inline T reduced(Numbers<T> x, const auto& joined) {
  for (int half = 8; half; half /= 2) {
    for (int at = 0; at < half; ++at) x.at[at] = joined(x[at], x[at + half]);
  }
  return x[0];
}

inline __m512i add(__m512i a, __m512i b) { return words([x = as<Words>(a), y = as<Words>(b)](int at) { return int32_t(uint32_t(x[at]) + uint32_t(y[at])); }); }
inline __m512i min(__m512i a, __m512i b) { return words([x = as<Words>(a), y = as<Words>(b)](int at) { return x[at] < y[at] ? x[at] : y[at]; }); }
inline __m512i shift_left(__m512i x, int by) { return words([by, x = as<Words>(x)](int at) { return int32_t(uint32_t(x[at]) << by); }); }
inline __m512i shift_right(__m512i x, int by) { return words([by, x = as<Words>(x)](int at) { return int32_t(uint32_t(x[at]) >> by); }); }
inline __m512i shift_halves_left(__m512i x, int by) {
  return made<uint16_t, __m512i>([by, x = as<Numbers<uint16_t>>(x)](int at) { return uint16_t(x[at] << by); });
}
inline __m512i shift_halves_right(__m512i x, int by) {
  return made<uint16_t, __m512i>([by, x = as<Numbers<uint16_t>>(x)](int at) { return uint16_t(x[at] >> by); });
}
inline __m512i add_bytes(__m512i no, uint64_t mask, __m512i a, __m512i b) {
  return bytes([mask, from = as<Bytes>(no), x = as<Bytes>(a), y = as<Bytes>(b)](int at) {
    return mask >> at & 1 ? uint8_t(x[at] + y[at]) : from[at];
  });
}
inline uint64_t highest_bits(__m512i x) {
  const auto from = as<Bytes>(x);
  uint64_t mask = 0;
  for (int at = 0; at < 64; ++at) mask |= uint64_t(from[at] >> 7) << at;
  return mask;
}

template <int kTable>
inline __m512i chosen(__m512i a, __m512i b, __m512i c) {
  static_assert(kTable == 0xF8);
  return a | (b & c);
}
inline __m512i lower(__m256i x) {
  __m512i line{};
  std::memcpy(&line, &x, 32);
  return line;
}

inline int32_t nearest(float x) { return std::abs(x) < 0x1p31f ? int32_t(std::nearbyint(x)) : INT32_MIN; }
inline __m512i to_words(__m512 x) { return words([&](int at) { return nearest(x[at]); }); }
inline __m512 to_singles(__m512i x) { return singles([x = as<Words>(x)](int at) { return float(x[at]); }); }
inline __m512i widened(__m256i halves) {
  uint16_t from[16];
  std::memcpy(from, &halves, 32);
  return words([&](int at) { return int32_t(from[at]); });
}
template <typename T>
inline __m512i widened_bytes(__m128i x) {
  T from[16];
  std::memcpy(from, &x, 16);
  return words([&](int at) { return int32_t(from[at]); });
}
inline __m512 widened_halves(__m256i halves) {
  _Float16 from[16];
  std::memcpy(from, &halves, 32);
  return singles([&](int at) { return float(from[at]); });
}
inline uint16_t nearest_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return uint16_t(bits >> 16 | 0x40);
  if (!(bits & 0x7F800000)) return uint16_t((bits & 0x80000000) >> 16);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline __m256i narrowed(__m512 x) {
  uint16_t to[16];
  for (int at = 0; at < 16; ++at) to[at] = nearest_bf16(x[at]);
  __m256i line;
  std::memcpy(&line, to, 32);
  return line;
}
inline __m128i low_bytes(__m512i x, bool saturated) {
  const auto from = as<Words>(x);
  int8_t to[16];
  for (int at = 0; at < 16; ++at) to[at] = int8_t(saturated ? std::clamp(from[at], -128, 127) : from[at]);
  __m128i line;
  std::memcpy(&line, to, 16);
  return line;
}

// Looks up the last 7 bits of each index in two tables of 64 bytes.
inline __m512i looked_up(__m512i low, __m512i indices, __m512i high) {
  return bytes([table = std::array{as<Bytes>(low), as<Bytes>(high)}, at_of = as<Bytes>(indices)](int at) {
    return table[at_of[at] >> 6 & 1][at_of[at] & 63];
  });
}
// Looks up the last 4 bits of each index in a table of 16 bytes for each 16; zero where the first bit is set.
inline __m512i looked_up(__m512i table, __m512i indices) {
  return bytes([from = as<Bytes>(table), at_of = as<Bytes>(indices)](int at) {
    return at_of[at] & 0x80 ? uint8_t(0) : from[at / 16 * 16 + (at_of[at] & 15)];
  });
}
inline __m512i repeated(__m128i x) {
  uint8_t from[16];
  std::memcpy(from, &x, 16);
  return bytes([&](int at) { return from[at % 16]; });
}
// Interleaves bytes of both, from the lower or the upper half of each 16.
inline __m512i interleaved(__m512i a, __m512i b, int half) {
  return bytes([from = std::array{as<Bytes>(a), as<Bytes>(b)}, half](int at) {
    return from[at & 1][at / 16 * 16 + 8 * half + at % 16 / 2];
  });
}
// Expands numbers of 64 bits, one after another, to the lanes of the mask.
inline __m512i expanded(uint8_t mask, __m512i x) {
  return made<int64_t, __m512i>([mask, x = as<Numbers<int64_t>>(x)](int at) {
    return mask >> at & 1 ? x[std::popcount(mask & ((1u << at) - 1))] : 0;
  });
}

inline __m512 dot_bf16(__m512 sums, __m512i a, __m512i b) {  // subnormal numbers count as zero
  const auto x = as<Words>(a), y = as<Words>(b);
  const auto single = [](uint32_t bits) { return std::bit_cast<float>(bits & 0x7F800000 ? bits : 0); };
  return singles([&](int at) {
    const float odd = __builtin_fmaf(single(x[at] & 0xFFFF0000), single(y[at] & 0xFFFF0000), sums[at]);
    return __builtin_fmaf(single(uint32_t(x[at]) << 16), single(uint32_t(y[at]) << 16), odd);
  });
}
inline __m512i dot_bytes(__m512i sums, __m512i unsigned_bytes, __m512i signed_bytes) {
  const auto x = as<Words>(unsigned_bytes), y = as<Words>(signed_bytes), c = as<Words>(sums);
  return words([&](int at) {
    int32_t sum = c[at];
    for (int by = 0; by < 32; by += 8) sum += (x[at] >> by & 0xFF) * int8_t(y[at] >> by);
    return sum;
  });
}

}  // namespace emulated_avx512

#define EMULATED emulated_avx512
#define _mm512_setzero_ps() (__m512{})
#define _mm512_setzero_si512() (__m512i{})
#define _mm512_set1_ps(x) EMULATED::singles([value = float(x)](int) { return value; })
#define _mm512_set1_epi32(x) EMULATED::words([value = int32_t(x)](int) { return value; })
#define _mm512_set1_epi8(x) EMULATED::bytes([value = uint8_t(x)](int) { return value; })
#define _mm512_loadu_ps(from) EMULATED::as<__m512>(EMULATED::load(from))
#define _mm512_load_ps(from) EMULATED::as<__m512>(EMULATED::load(from))
#define _mm512_loadu_si512(from) EMULATED::load(from)
#define _mm512_load_si512(from) EMULATED::load(from)
#define _mm512_maskz_loadu_ps(mask, from) EMULATED::load_where(mask, from)
#define _mm512_storeu_ps(to, x) EMULATED::store(to, x)
#define _mm512_store_ps(to, x) EMULATED::store(to, x)
#define _mm512_store_si512(to, x) EMULATED::store(to, x)
#define _mm512_storeu_si512(to, x) EMULATED::store(to, x)
#define _mm512_mask_storeu_epi8(to, mask, x) EMULATED::mask_store<uint8_t>(to, mask, x)
#define _mm512_mask_storeu_epi16(to, mask, x) EMULATED::mask_store<uint16_t>(to, mask, x)
#define _mm512_mul_ps(a, b) ((a) * (b))
#define _mm512_fmadd_ps(a, b, c) EMULATED::fma(a, b, c)
#define _mm512_fmsub_ps(a, b, c) EMULATED::fma(a, b, -(c))
#define _mm512_fnmadd_ps(a, b, c) EMULATED::fma(-(a), b, c)
#define _mm512_max_ps(a, b) EMULATED::max(a, b)
#define _mm512_min_ps(a, b) EMULATED::min(a, b)
#define _mm512_abs_ps(x) EMULATED::abs(x)
#define _mm512_roundscale_ps(x, how) EMULATED::rounded(x)
#define _mm512_rcp14_ps(x) EMULATED::reciprocal(x)
#define _mm512_maskz_scalef_ps(mask, x, n) EMULATED::scaled_where(mask, x, n)
#define _mm512_reduce_max_ps(x) EMULATED::reduced(EMULATED::as<EMULATED::Singles>(x), [](float a, float b) { return a > b ? a : b; })
#define _mm512_reduce_add_ps(x) EMULATED::reduced(EMULATED::as<EMULATED::Singles>(x), [](float a, float b) { return a + b; })
#define _mm512_reduce_add_epi32(x) EMULATED::reduced(EMULATED::as<EMULATED::Words>(x), [](int32_t a, int32_t b) { return a + b; })
#define _mm512_add_epi32(a, b) EMULATED::add(a, b)
#define _mm512_add_epi8(a, b) EMULATED::add_bytes(a, ~uint64_t{0}, a, b)
#define _mm512_mask_add_epi8(no, mask, a, b) EMULATED::add_bytes(no, mask, a, b)
#define _cvtu64_mask64(bits) (uint64_t{bits})
#define _mm512_movepi8_mask(x) EMULATED::highest_bits(x)
#define _mm512_min_epi32(a, b) EMULATED::min(a, b)
#define _mm512_and_si512(a, b) ((a) & (b))
#define _mm512_or_si512(a, b) ((a) | (b))
#define _mm512_xor_si512(a, b) ((a) ^ (b))
#define _mm512_ternarylogic_epi64(a, b, c, table) EMULATED::chosen<table>(a, b, c)
#define _mm512_slli_epi32(x, by) EMULATED::shift_left(x, by)
#define _mm512_srli_epi32(x, by) EMULATED::shift_right(x, by)
#define _mm512_slli_epi16(x, by) EMULATED::shift_halves_left(x, by)
#define _mm512_srli_epi16(x, by) EMULATED::shift_halves_right(x, by)
#define _mm512_castps_si512(x) EMULATED::as<__m512i>(x)
#define _mm512_castsi512_ps(x) EMULATED::as<__m512>(x)
#define _mm512_castsi256_si512(x) EMULATED::lower(x)
#define _mm512_cvtps_epi32(x) EMULATED::to_words(x)
#define _mm512_cvtepi32_ps(x) EMULATED::to_singles(x)
#define _mm512_cvtepu16_epi32(x) EMULATED::widened(x)
#define _mm512_cvtepi8_epi32(x) EMULATED::widened_bytes<int8_t>(x)
#define _mm512_cvtepu8_epi32(x) EMULATED::widened_bytes<uint8_t>(x)
#define _mm512_cvtph_ps(x) EMULATED::widened_halves(x)
#define _mm512_cvtneps_pbh(x) EMULATED::narrowed(x)
#define _mm512_cvtepi32_epi8(x) EMULATED::low_bytes(x, false)
#define _mm512_cvtsepi32_epi8(x) EMULATED::low_bytes(x, true)
#define _mm512_cmp_ps_mask(a, b, how) EMULATED::compared<how>(a, b)
#define _mm512_cmpgt_epi32_mask(a, b) EMULATED::greater(a, b)
#define _mm512_mask_mov_ps(no, mask, yes) EMULATED::picked(no, mask, yes)
#define _mm512_permutex2var_epi8(low, indices, high) EMULATED::looked_up(low, indices, high)
#define _mm512_shuffle_epi8(table, indices) EMULATED::looked_up(table, indices)
#define _mm512_broadcast_i32x4(x) EMULATED::repeated(x)
#define _mm512_unpacklo_epi8(a, b) EMULATED::interleaved(a, b, 0)
#define _mm512_unpackhi_epi8(a, b) EMULATED::interleaved(a, b, 1)
#define _mm512_maskz_expand_epi64(mask, x) EMULATED::expanded(mask, x)
#define _mm512_dpbf16_ps(sums, a, b) EMULATED::dot_bf16(sums, EMULATED::as<__m512i>(a), EMULATED::as<__m512i>(b))
#define _mm512_dpbusd_epi32(sums, a, b) EMULATED::dot_bytes(sums, a, b)
// The processor reports every feature; so did the compiler.
#define __builtin_cpu_supports(feature) 1
#define __AVX512BF16__ 1
#define __AVX512VBMI__ 1
