// Products of grouped weights by the dot products of bytes of AVX-512 (VNNI).
#pragma once

#include "grouped.h"
#include "quantized_rows.h"
#include "simd.h"

namespace asurge {

constexpr int kMostGroupedLines = 8;
constexpr int kMostUnpackedLines = 4;
// With more rows than this, codes are unpacked once for all of them.
constexpr int kMostDirectRows = 16;

template <Codebook book, int zero_bits>
inline __m512i look_up(__m512i nibbles) {
  const int8_t* values = book == Codebook::kIQ4 ? kIQ4Values : kE2M1Values;
  const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(values)));
  return _mm512_shuffle_epi8(_mm512_add_epi8(table, _mm512_set1_epi8(static_cast<char>(1 << zero_bits))), nibbles);
}

// The codes of a part, unsigned.
template <typename F>
[[gnu::always_inline]] inline void load_codes(const uint8_t* part, __m512i (&w)[8]) {
  const auto line = [&](int at) { return _mm512_loadu_si512(part + 64 * at); };
  constexpr int low_lines = F::bits >= 4 ? 4 : 0;
  if constexpr (F::bits == 8) {
    for (int v = 0; v < 8; ++v) w[v] = _mm512_xor_si512(line(v), _mm512_set1_epi8(-128));
    return;
  }
  if constexpr (low_lines) {
    const __m512i nibble = _mm512_set1_epi8(0x0F);
    for (int v = 0; v < 4; ++v) {
      const __m512i both = line(v);
      w[v] = _mm512_and_si512(both, nibble);
      w[v + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
  }
  if constexpr (F::bits == 6 || F::bits < 4) {
    constexpr int up = F::bits == 6 ? 4 : 0;
    const __m512i mask = _mm512_set1_epi8(3 << up);
    for (int h = 0; h < 2; ++h) {
      const __m512i both = line(low_lines + h);
      for (int k = 0; k < 4; ++k) {
        const int right = 2 * k - up;
        const __m512i moved = right >= 0 ? _mm512_srli_epi16(both, right) : _mm512_slli_epi16(both, -right);
        const __m512i two = _mm512_and_si512(moved, mask);
        w[4 * h + k] = low_lines ? _mm512_or_si512(w[4 * h + k], two) : two;
      }
    }
  }
  if constexpr (F::bits == 5 || F::bits == 3) {
    const __m512i one = _mm512_set1_epi8(F::bits == 5 ? 16 : 4);
    const uint8_t* single = part + 64 * (F::bits == 5 ? 4 : 2);
    for (int v = 0; v < 8; ++v) {
      uint64_t set;
      std::memcpy(&set, single + 8 * v, 8);
      w[v] = _mm512_mask_add_epi8(w[v], _cvtu64_mask64(set), w[v], one);
    }
  }
  if constexpr (F::book != Codebook::kNone) {
    for (auto& vector : w) vector = look_up<F::book, F::zero_bits>(vector);
  }
}

inline __m512 load_halves(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Half of a number in FP8 without a sign, which f16 has in the same bits but for its bias of 15 instead of 7.
inline __m512 load_e4m3(const uint8_t* from) {
  const __m256i shorts = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_slli_epi16(shorts, 7)), _mm512_set1_ps(128.0f));
}

template <bool is_unsigned>
inline __m512 load_bytes(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(is_unsigned ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepi8_epi32(bytes));
}

// The scales or minima of a group: one level's, or the product of two.
template <typename F>
inline __m512 load_factor(const uint8_t* first, int group, __m512 outer) {
  if constexpr (F::two_levels) {
    return _mm512_mul_ps(load_bytes<F::has_minimum>(first + 16 * group), outer);
  } else if constexpr (F::scales == Scales::kE4M3) {
    return load_e4m3(first + 16 * group);
  } else {
    return load_halves(first + 32 * group);
  }
}

// What a sum of products begins with: -zero times the sum of x.
template <typename F>
inline __m512i start_of(int32_t minus_sum) {
  if constexpr (F::zero_bits < 0) return _mm512_setzero_si512();
  return _mm512_slli_epi32(_mm512_set1_epi32(minus_sum), F::zero_bits);
}

// sum + (low + high * high_scale) * scale, or with a scale of its own for each.
template <typename F>
[[gnu::always_inline]] inline __m512 add_scaled(__m512 sum, __m512 low, __m512 high, __m512 high_scale, __m512 scale, __m512 second) {
  if constexpr (F::group == 32) return _mm512_fmadd_ps(_mm512_fmadd_ps(high, high_scale, low), scale, sum);
  return _mm512_fmadd_ps(_mm512_mul_ps(high, high_scale), second, _mm512_fmadd_ps(low, scale, sum));
}

// 16 numbers of x by as many codes of each column.
template <typename F>
[[gnu::always_inline]] inline __m512 dot_codes(const __m512i* w, const int8_t* x, int32_t minus_sum) {
  __m512i sum = start_of<F>(minus_sum);
  for (int v = 0; v < 4; ++v) {
    int32_t four;
    std::memcpy(&four, x + 4 * v, 4);
    sum = _mm512_dpbusd_epi32(sum, w[v], _mm512_set1_epi32(four));
  }
  return _mm512_cvtepi32_ps(sum);
}

// `kLines` rows of x, `steps` apart, by a strip: [kLines][16] float32, `out_columns` apart. What lies `ahead` bytes after it is
// fetched meanwhile.
template <typename F, int kLines>
[[gnu::noinline]] void multiply_grouped(const uint8_t* strip, const QuantizedStep* x, int steps, float* out, int out_columns,
                                        ptrdiff_t ahead) {
  constexpr int per_half = 32 / F::group;
  __m512 sums[kLines];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (int at = 0; at < steps; at += F::block / kStep, strip += F::block_bytes) {
    const __m512 outer = F::two_levels ? load_halves(strip) : _mm512_setzero_ps();
    const __m512 outer_minimum = F::two_levels && F::has_minimum ? load_halves(strip + 32) : _mm512_setzero_ps();
    for (int step = 0; step < F::block / kStep && at + step < steps; ++step) {
      const QuantizedStep* here = x + at + step;
      if (ahead) {
        constexpr int share = F::block_bytes / (F::block / kStep);
        const uint8_t* next = strip + ahead + step * share;
        for (int byte = 0; byte < share; byte += 64) _mm_prefetch(reinterpret_cast<const char*>(next + byte), _MM_HINT_T0);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int part = 2 * step + half;
        __m512i w[8];
        load_codes<F>(strip + F::codes_at + part * F::part_bytes, w);
        const __m512 scale = load_factor<F>(strip + F::scales_at, per_half * part, outer);
        const __m512 second = per_half == 2 ? load_factor<F>(strip + F::scales_at, per_half * part + 1, outer) : scale;
        for (int line = 0; line < kLines; ++line) {
          const QuantizedStep& row = here[line * steps];
          const __m512 low = dot_codes<F>(w, row.codes + 32 * half, row.minus[2 * half]);
          const __m512 high = dot_codes<F>(w + 4, row.codes + 32 * half + 16, row.minus[2 * half + 1]);
          const __m512 low_scale = _mm512_set1_ps(row.scales[2 * half]), high_scale = _mm512_set1_ps(row.scales[2 * half + 1]);
          sums[line] = add_scaled<F>(sums[line], _mm512_mul_ps(low, low_scale), high, high_scale, scale, second);
        }
        if constexpr (F::has_minimum) {
          for (int group = 0; group < per_half; ++group) {
            const __m512 minimum = load_factor<F>(strip + F::minima_at, per_half * part + group, outer_minimum);
            for (int line = 0; line < kLines; ++line) {
              const QuantizedStep& row = here[line * steps];
              const float weighted = per_half == 1 ? row.sums32[half] : row.sums16[2 * half + group];
              sums[line] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(weighted), sums[line]);
            }
          }
        }
      }
    }
  }
  for (int line = 0; line < kLines; ++line) _mm512_storeu_ps(out + line * out_columns, sums[line]);
}

// Of a strip that many rows are multiplied by: its codes as bytes, and its scales and minima as float32, for each 64 numbers.
template <typename F>
struct UnpackedStep {
  static constexpr int groups = kStep / F::group;
  uint8_t codes[16][64];
  float scales[groups][16];
  float minima[F::has_minimum ? groups : 0][16];
};

// What lies `ahead` bytes after it is fetched meanwhile.
template <typename F>
inline void unpack_strip(const uint8_t* strip, int steps, UnpackedStep<F>* to, ptrdiff_t ahead) {
  for (int at = 0; at < steps; at += F::block / kStep, strip += F::block_bytes) {
    const __m512 outer = F::two_levels ? load_halves(strip) : _mm512_setzero_ps();
    const __m512 outer_minimum = F::two_levels && F::has_minimum ? load_halves(strip + 32) : _mm512_setzero_ps();
    for (int byte = 0; byte < F::block_bytes; byte += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(strip + ahead + byte), _MM_HINT_T1);
    }
    for (int step = 0; step < F::block / kStep && at + step < steps; ++step, ++to) {
      for (int half = 0; half < 2; ++half) {
        __m512i w[8];
        load_codes<F>(strip + F::codes_at + (2 * step + half) * F::part_bytes, w);
        for (int v = 0; v < 8; ++v) _mm512_store_si512(to->codes[8 * half + v], w[v]);
      }
      for (int group = 0; group < to->groups; ++group) {
        const int index = step * to->groups + group;
        _mm512_store_ps(to->scales[group], load_factor<F>(strip + F::scales_at, index, outer));
        if constexpr (F::has_minimum) {
          _mm512_store_ps(to->minima[group], load_factor<F>(strip + F::minima_at, index, outer_minimum));
        }
      }
    }
  }
}

// `kLines` rows of x, `steps` apart, by `kStrips` strips, `steps` apart too: [kLines][16 kStrips] float32, `out_columns` apart.
template <typename F, int kLines, int kStrips>
[[gnu::noinline]] void multiply_unpacked(const UnpackedStep<F>* w, const QuantizedStep* x, int steps, float* out, int out_columns) {
  constexpr int per_half = 32 / F::group;
  __m512 sums[kLines][kStrips];
  for (auto& line : sums) {
    for (auto& sum : line) sum = _mm512_setzero_ps();
  }
  for (int step = 0; step < steps; ++step, ++w, ++x) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512 low[kLines][kStrips];
#pragma GCC unroll 2
      for (int part = 2 * half; part < 2 * half + 2; ++part) {
        __m512i dots[kLines][kStrips];
        for (int line = 0; line < kLines; ++line) {
          for (auto& dot : dots[line]) dot = start_of<F>(x[line * steps].minus[part]);
        }
        for (int v = 4 * part; v < 4 * part + 4; ++v) {
          __m512i codes[kStrips];
          for (int strip = 0; strip < kStrips; ++strip) codes[strip] = _mm512_load_si512(w[strip * steps].codes[v]);
          for (int line = 0; line < kLines; ++line) {
            int32_t four;
            std::memcpy(&four, x[line * steps].codes + 4 * v, 4);
            const __m512i by = _mm512_set1_epi32(four);
            for (int strip = 0; strip < kStrips; ++strip) dots[line][strip] = _mm512_dpbusd_epi32(dots[line][strip], codes[strip], by);
          }
        }
        for (int line = 0; line < kLines; ++line) {
          const __m512 x_scale = _mm512_set1_ps(x[line * steps].scales[part]);
          for (int strip = 0; strip < kStrips; ++strip) {
            const __m512 dot = _mm512_cvtepi32_ps(dots[line][strip]);
            if (part % 2 == 0) {
              low[line][strip] = _mm512_mul_ps(dot, x_scale);
            } else {
              const auto* scales = w[strip * steps].scales + per_half * half;
              sums[line][strip] = add_scaled<F>(sums[line][strip], low[line][strip], dot, x_scale, _mm512_load_ps(scales[0]),
                                                _mm512_load_ps(scales[per_half - 1]));
            }
          }
        }
      }
      if constexpr (F::has_minimum) {
        for (int group = 0; group < per_half; ++group) {
          for (int line = 0; line < kLines; ++line) {
            const QuantizedStep& row = x[line * steps];
            const __m512 weighted = _mm512_set1_ps(per_half == 1 ? row.sums32[half] : row.sums16[2 * half + group]);
            for (int strip = 0; strip < kStrips; ++strip) {
              const __m512 minimum = _mm512_load_ps(w[strip * steps].minima[per_half * half + group]);
              sums[line][strip] = _mm512_fmadd_ps(minimum, weighted, sums[line][strip]);
            }
          }
        }
      }
    }
  }
  for (int line = 0; line < kLines; ++line) {
    for (int strip = 0; strip < kStrips; ++strip) _mm512_storeu_ps(out + line * out_columns + 16 * strip, sums[line][strip]);
  }
}

}  // namespace asurge
