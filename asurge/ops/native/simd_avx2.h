// SIMD vectors of `simd.h` in AVX2, two registers each. Functions without a comment do what those of `simd_avx512.h` do.
#pragma once

namespace asurge {

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};
// A mask has all bits of a number set, or none.
struct Mask {
  __m256 low, high;
};
using Halves = Ints;  // bf16 as the upper halves of 32 bits

inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Ints load_line(const void* from) {
  const __m256i* at = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
inline void store_line(void* to, Ints x) {
  __m256i* at = static_cast<__m256i*>(to);
  _mm256_storeu_si256(at, x.low);
  _mm256_storeu_si256(at + 1, x.high);
}

inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Ints all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats fms(Floats a, Floats b, Floats c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Floats fnma(Floats a, Floats b, Floats c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats abs(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline Floats round(Floats x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, kNearest), _mm256_round_ps(x.high, kNearest)};
}
inline Floats reciprocal_estimate(Floats x) { return {_mm256_rcp_ps(x.low), _mm256_rcp_ps(x.high)}; }
inline float largest(Floats x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float sum(Floats x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Ints min(Ints a, Ints b) { return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)}; }
inline Ints both(Ints a, Ints b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
inline Ints either(Ints a, Ints b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
template <int kBits>
inline Ints shift_left(Ints x) {
  return {_mm256_slli_epi32(x.low, kBits), _mm256_slli_epi32(x.high, kBits)};
}
template <int kBits>
inline Ints shift_right(Ints x) {
  return {_mm256_srli_epi32(x.low, kBits), _mm256_srli_epi32(x.high, kBits)};
}
inline uint64_t highest_bits(Ints x) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(x.low)) | uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(x.high))} << 32;
}
inline int32_t sum(Ints x) {
  const __m256i eight = _mm256_add_epi32(x.low, x.high);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

inline Ints bits(Floats x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
inline Floats from_bits(Ints x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }

template <int kHow>
inline Mask compare(Floats a, Floats b) {
  return {_mm256_cmp_ps(a.low, b.low, kHow), _mm256_cmp_ps(a.high, b.high, kHow)};
}
inline Mask above(Floats a, Floats b) { return compare<_CMP_GT_OQ>(a, b); }
inline Mask at_least(Floats a, Floats b) { return compare<_CMP_GE_OQ>(a, b); }
inline Mask not_below(Floats a, Floats b) { return compare<_CMP_NLT_UQ>(a, b); }
inline Mask equal(Floats a, Floats b) { return compare<_CMP_EQ_OQ>(a, b); }
inline Mask above(Ints a, Ints b) {
  const Ints yes{_mm256_cmpgt_epi32(a.low, b.low), _mm256_cmpgt_epi32(a.high, b.high)};
  const Floats mask = from_bits(yes);
  return {mask.low, mask.high};
}
inline Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)}; }
inline Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.low, b.low), _mm256_or_ps(a.high, b.high)}; }
inline Floats select(Mask mask, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.low, yes.low, mask.low), _mm256_blendv_ps(no.high, yes.high, mask.high)};
}
inline Floats zero_unless(Mask mask, Floats x) {
  return {_mm256_and_ps(mask.low, x.low), _mm256_and_ps(mask.high, x.high)};
}
inline uint32_t bits_of(Mask mask) { return _mm256_movemask_ps(mask.low) | _mm256_movemask_ps(mask.high) << 8; }
inline Mask mask_of(uint32_t bits) {
  const __m256i first = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), last = _mm256_slli_epi32(first, 8);
  const __m256i low = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), first);
  const __m256i high = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), last);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(low, first)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(high, last))};
}
inline bool any(Mask mask) { return bits_of(mask) != 0; }
inline Floats load_where(Mask mask, const float* from) {
  return {_mm256_maskload_ps(from, _mm256_castps_si256(mask.low)), _mm256_maskload_ps(from + 8, _mm256_castps_si256(mask.high))};
}

// Adds to the exponent.
inline Floats scale_where(Mask mask, Floats x, Floats n) {
  return zero_unless(mask, from_bits(add(bits(x), shift_left<23>(to_ints(n)))));
}

// Restores the order after packing, which interleaves two registers by 128 bits.
inline __m256i in_order(__m256i packed) { return _mm256_permute4x64_epi64(packed, 0b11011000); }
inline void store_low_bytes(uint8_t* to, Ints x) {
  const Ints bytes = both(x, all(0xFF));
  const __m256i shorts = in_order(_mm256_packus_epi32(bytes.low, bytes.high));
  const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}
inline void store_int8(uint8_t* to, Ints x) {
  const __m256i shorts = in_order(_mm256_packs_epi32(x.low, x.high));
  const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}

inline Floats widen(Halves bf16) { return from_bits(bf16); }
// Rounds to the nearest, halfway to even. NaN stays NaN: those of arithmetic have the highest bit of the fraction set.
inline Halves narrow(Floats x) {
  const Ints lowest = both(shift_right<16>(bits(x)), all(1));
  const Ints rounded = add(bits(x), add(lowest, all(0x7FFF)));
  const Mask is_number = compare<_CMP_ORD_Q>(x, x);
  return both(bits(select(is_number, from_bits(rounded), x)), all(-0x10000));
}
inline Floats load_bf16(const uint16_t* from) {
  const __m128i* at = reinterpret_cast<const __m128i*>(from);
  return from_bits(shift_left<16>({_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))}));
}
inline void store_bf16(uint16_t* to, Floats x) {
  const Ints upper = shift_right<16>(narrow(x));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), in_order(_mm256_packus_epi32(upper.low, upper.high)));
}

inline void store_apart(uint16_t* to, bool odd, const uint16_t* from) {
  for (int at = 0; at < 16; ++at) to[2 * at + odd] = from[at];
}

}  // namespace asurge
