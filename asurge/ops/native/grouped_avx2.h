// Products of grouped weights by the dot products of bytes of AVX2, eight columns at a time.
#pragma once

#include "grouped.h"
#include "quantized_rows.h"
#include "simd.h"

namespace asurge {

constexpr int kMostGroupedLines = 4;
// Unpacking in registers is a small part of what products take here.
constexpr int kMostDirectRows = 1 << 30;

// One vector of codes, of eight columns: unsigned, or around zero where a format's are signed.
template <typename F>
[[gnu::always_inline]] inline __m256i load_codes(const uint8_t* part, int v) {
  const auto line = [&](int at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + 64 * at)); };
  constexpr int low_lines = F::bits >= 4 ? 4 : 0;
  if constexpr (F::bits == 8) return line(v);
  __m256i codes = _mm256_setzero_si256();
  if constexpr (low_lines) {
    const __m256i both = line(v % 4);
    codes = _mm256_and_si256(v < 4 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(0x0F));
  }
  if constexpr (F::bits == 6 || F::bits < 4) {
    constexpr int up = F::bits == 6 ? 4 : 0;
    const __m256i both = line(low_lines + v / 4);
    const int right = 2 * (v % 4) - up;
    const __m256i moved = right >= 0 ? _mm256_srli_epi16(both, right) : _mm256_slli_epi16(both, -right);
    codes = _mm256_or_si256(codes, _mm256_and_si256(moved, _mm256_set1_epi8(3 << up)));
  }
  return codes;
}

// What a single bit of each code adds; `bits` are those of eight columns.
template <typename F>
[[gnu::always_inline]] inline __m256i add_bits(__m256i codes, const uint8_t* bits) {
  int32_t set;
  std::memcpy(&set, bits, 4);
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32(set), _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i mask = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  const __m256i found = _mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask);
  return _mm256_or_si256(codes, _mm256_and_si256(found, _mm256_set1_epi8(F::bits == 5 ? 16 : 4)));
}

template <Codebook book, int zero_bits>
[[gnu::always_inline]] inline __m256i look_up(__m256i nibbles) {
  const int8_t* values = book == Codebook::kIQ4 ? kIQ4Values : kE2M1Values;
  __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(values)));
  if (book == Codebook::kE2M1) table = _mm256_add_epi8(table, _mm256_set1_epi8(static_cast<char>(1 << zero_bits)));
  return _mm256_shuffle_epi8(table, nibbles);
}

inline __m256 load_halves(const uint8_t* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }

// Half of a number in FP8 without a sign, which f16 has in the same bits but for its bias of 15 instead of 7.
inline __m256 load_e4m3(const uint8_t* from) {
  const __m128i shorts = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm_slli_epi16(shorts, 7)), _mm256_set1_ps(128.0f));
}

template <bool is_unsigned>
inline __m256 load_bytes(const uint8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(is_unsigned ? _mm256_cvtepu8_epi32(bytes) : _mm256_cvtepi8_epi32(bytes));
}

template <typename F>
inline __m256 load_factor(const uint8_t* first, int group, int half, __m256 outer) {
  if constexpr (F::two_levels) {
    return _mm256_mul_ps(load_bytes<F::has_minimum>(first + 16 * group + 8 * half), outer);
  } else if constexpr (F::scales == Scales::kE4M3) {
    return load_e4m3(first + 16 * group + 8 * half);
  } else {
    return load_halves(first + 32 * group + 16 * half);
  }
}

// How many products of codes with 8 bits fit into the 16 that they are added in.
template <typename F>
constexpr int kTogether = F::is_signed || F::bits == 8 ? 1 : F::bits == 6 ? 2 : 4;

// What a sum of products begins with: -zero times the sum of x.
template <typename F>
inline __m256i start_of(int32_t minus_sum) {
  if constexpr (F::is_signed || F::zero_bits < 0) return _mm256_setzero_si256();
  return _mm256_slli_epi32(_mm256_set1_epi32(minus_sum), F::zero_bits);
}

// Eight columns at `side`, or 16, which add the same numbers in the same order. What lies `ahead` bytes after a block is
// fetched while it is multiplied: fetched all at once, it would be waited for.
template <typename F, int kLines, int kSides>
[[gnu::noinline]] void multiply_columns(const uint8_t* strip, const QuantizedStep* x, int steps, int side, float* out,
                                        int out_columns, ptrdiff_t ahead) {
  const __m256i one = _mm256_set1_epi16(1);
  __m256 sums[kLines][kSides];
  for (auto& line : sums) {
    for (auto& sum : line) sum = _mm256_setzero_ps();
  }
  for (int at = 0; at < steps; at += F::block / kStep, strip += F::block_bytes) {
    __m256 outer[kSides], outer_minimum[kSides];
    for (int half = 0; half < kSides; ++half) {
      const uint8_t* halves = strip + 16 * (side + half);
      outer[half] = F::two_levels ? load_halves(halves) : _mm256_setzero_ps();
      outer_minimum[half] = F::two_levels && F::has_minimum ? load_halves(halves + 32) : _mm256_setzero_ps();
    }
    for (int step = 0; step < F::block / kStep && at + step < steps; ++step) {
      const QuantizedStep* here = x + at + step;
      if (ahead) {
        constexpr int share = F::block_bytes / (F::block / kStep);
        const uint8_t* next = strip + ahead + step * share;
        for (int byte = 0; byte < share; byte += 64) _mm_prefetch(reinterpret_cast<const char*>(next + byte), _MM_HINT_T0);
      }
      for (int quarter = 0; quarter < 4; ++quarter) {
        const int part = 2 * step + quarter / 2, first = quarter % 2 * 4;
        const uint8_t* codes = strip + F::codes_at + part * F::part_bytes;
        __m256i totals[kLines][kSides], pairs[kLines][kSides];
        for (int line = 0; line < kLines; ++line) {
          for (int half = 0; half < kSides; ++half) {
            totals[line][half] = start_of<F>(here[line * steps].minus[quarter]);
            pairs[line][half] = _mm256_setzero_si256();
          }
        }
#pragma GCC unroll 4
        for (int v = first; v < first + 4; ++v) {
          for (int half = 0; half < kSides; ++half) {
            __m256i w = load_codes<F>(codes + 32 * (side + half), v);
            if constexpr (F::bits == 5 || F::bits == 3) {
              w = add_bits<F>(w, codes + 64 * (F::bits == 5 ? 4 : 2) + 8 * v + 4 * (side + half));
            }
            if constexpr (F::book != Codebook::kNone) w = look_up<F::book, F::zero_bits>(w);
            const __m256i size = F::is_signed ? _mm256_abs_epi8(w) : w;
            for (int line = 0; line < kLines; ++line) {
              int32_t four;
              std::memcpy(&four, here[line * steps].codes + 16 * quarter + 4 * (v - first), 4);
              __m256i by = _mm256_set1_epi32(four);
              if constexpr (F::is_signed) by = _mm256_sign_epi8(by, w);
              pairs[line][half] = _mm256_add_epi16(pairs[line][half], _mm256_maddubs_epi16(size, by));
            }
          }
          if ((v - first + 1) % kTogether<F> == 0 || v == first + 3) {
            for (int line = 0; line < kLines; ++line) {
              for (int half = 0; half < kSides; ++half) {
                totals[line][half] = _mm256_add_epi32(totals[line][half], _mm256_madd_epi16(pairs[line][half], one));
                pairs[line][half] = _mm256_setzero_si256();
              }
            }
          }
        }
        const int index = (4 * step + quarter) * kPart / F::group;
        for (int half = 0; half < kSides; ++half) {
          const __m256 scale = load_factor<F>(strip + F::scales_at, index, side + half, outer[half]);
          for (int line = 0; line < kLines; ++line) {
            const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(here[line * steps].scales[quarter]));
            sums[line][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[line][half]), factor, sums[line][half]);
          }
        }
        if (F::has_minimum && (F::group == kPart || quarter % 2 == 0)) {
          for (int half = 0; half < kSides; ++half) {
            const __m256 minimum = load_factor<F>(strip + F::minima_at, index, side + half, outer_minimum[half]);
            for (int line = 0; line < kLines; ++line) {
              const QuantizedStep& row = here[line * steps];
              const float weighted = F::group == kPart ? row.sums16[quarter] : row.sums32[quarter / 2];
              sums[line][half] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(weighted), sums[line][half]);
            }
          }
        }
      }
    }
  }
  for (int line = 0; line < kLines; ++line) {
    for (int half = 0; half < kSides; ++half) {
      _mm256_storeu_ps(out + line * out_columns + 8 * (side + half), sums[line][half]);
    }
  }
}

// `kLines` rows of x, `steps` apart, by a strip: [kLines][16] float32, `out_columns` apart. What lies `ahead` bytes after it is
// fetched meanwhile.
template <typename F, int kLines>
inline void multiply_grouped(const uint8_t* strip, const QuantizedStep* x, int steps, float* out, int out_columns,
                             ptrdiff_t ahead) {
  if constexpr (kLines == 1) {  // which leaves registers, and a chain of sums alone would wait for itself
    multiply_columns<F, 1, 2>(strip, x, steps, 0, out, out_columns, ahead);
  } else {
    multiply_columns<F, kLines, 1>(strip, x, steps, 0, out, out_columns, ahead);
    multiply_columns<F, kLines, 1>(strip, x, steps, 1, out, out_columns, 0);
  }
}

}  // namespace asurge
