// SIMD vectors of `simd.h` in AVX-512, one register each.
#pragma once

namespace asurge {

using Floats = __m512;
using Ints = __m512i;
using Mask = __mmask16;
using Halves = __m256i;  // 16 bf16

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Ints load_line(const void* from) { return _mm512_loadu_si512(from); }
inline Floats load_where(Mask mask, const float* from) { return _mm512_maskz_loadu_ps(mask, from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline void store_line(void* to, Ints x) { _mm512_storeu_si512(to, x); }
// Store the low byte of each number; or each number saturated to int8.
inline void store_low_bytes(uint8_t* to, Ints x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x)); }
inline void store_int8(uint8_t* to, Ints x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(x)); }

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Ints all(int32_t x) { return _mm512_set1_epi32(x); }

// + - * / of Floats are the compiler's vector operators.
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
inline Floats fms(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }    // a * b - c
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats abs(Floats x) { return _mm512_abs_ps(x); }
inline Floats round(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats reciprocal_estimate(Floats x) { return _mm512_rcp14_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }

inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints min(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
template <int kBits>
inline Ints shift_left(Ints x) { return _mm512_slli_epi32(x, kBits); }
template <int kBits>
inline Ints shift_right(Ints x) { return _mm512_srli_epi32(x, kBits); }
inline uint64_t highest_bits(Ints x) { return _mm512_movepi8_mask(x); }  // of 64 bytes
inline int32_t sum(Ints x) { return _mm512_reduce_add_epi32(x); }

inline Ints bits(Floats x) { return _mm512_castps_si512(x); }
inline Floats from_bits(Ints x) { return _mm512_castsi512_ps(x); }
inline Ints to_ints(Floats x) { return _mm512_cvtps_epi32(x); }  // to the nearest
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

inline Mask above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Mask at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Mask not_below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }  // so is NaN
inline Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline Mask above(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask(a, b); }
inline Floats select(Mask mask, Floats yes, Floats no) { return _mm512_mask_mov_ps(no, mask, yes); }
inline uint32_t bits_of(Mask mask) { return mask; }
inline Mask mask_of(uint32_t bits) { return static_cast<Mask>(bits); }
inline bool any(Mask mask) { return mask != 0; }

// x * 2^n where the mask is set, otherwise 0; n is an integer, and the result a normal number.
inline Floats scale_where(Mask mask, Floats x, Floats n) { return _mm512_maskz_scalef_ps(mask, x, n); }

inline Floats widen(Halves bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }
inline Halves narrow(Floats x) { return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(x)); }
inline Floats load_bf16(const uint16_t* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const Halves*>(from))); }
inline void store_bf16(uint16_t* to, Floats x) { _mm256_storeu_si256(reinterpret_cast<Halves*>(to), narrow(x)); }

// Stores 16 numbers of 16 bits at every other address, even or odd; other threads may write those between meanwhile.
inline void store_apart(uint16_t* to, bool odd, const uint16_t* from) {
  const Ints x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const Halves*>(from)));
  if (odd) {
    _mm512_mask_storeu_epi16(to, 0xAAAAAAAAu, _mm512_slli_epi32(x, 16));
  } else {
    _mm512_mask_storeu_epi16(to, 0x55555555u, x);
  }
}

}  // namespace asurge
