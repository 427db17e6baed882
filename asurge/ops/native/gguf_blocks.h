// Blocks of GGUF tensors (ggml's `ggml-common.h`) as plain codes, scales and minima.
#pragma once

#include <cmath>
#include <cstring>

#include "grouped.h"

namespace asurge {

// 64 or 256 numbers of a column. Scales and minima are float16 of each group; or integers, and `outer` and `outer_minimum` the
// float16 that they are to be multiplied by.
struct Unpacked {
  uint8_t codes[256];
  uint16_t scales[16], minima[16];
  uint16_t outer = 0, outer_minimum = 0;
};

inline uint16_t load_u16(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, 2);
  return value;
}

// A positive number as float16, to the nearest; exact for powers of two and for numbers of FP8.
inline uint16_t to_f16(float value) {
  if (value == 0.0f) return 0;
  int exponent;
  const float fraction = std::frexp(value, &exponent);  // in [0.5, 1)
  if (exponent > 16) return 0x7BFF;
  const int shift = exponent >= -13 ? 11 : 11 + exponent + 13;  // bits that are left of a denormal number
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(fraction, shift)));
  return static_cast<uint16_t>(exponent >= -13 ? ((exponent + 14) << 10) + mantissa - 1024 : mantissa);
}

inline float from_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float size = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(static_cast<float>(mantissa), -24);
  return bits & 0x8000 ? -size : size;
}

// An unsigned number of 8 bits, 4 of them exponent and 3 mantissa.
inline float from_ue4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  return exponent ? std::ldexp(1.0f + mantissa / 8.0f, exponent - 7) : std::ldexp(mantissa / 8.0f, -6);
}

// 32 numbers whose codes' low halves come first: element i and element i + 16 share a byte.
inline void unpack_halves(const uint8_t* nibbles, uint8_t* codes, int count = 16) {
  for (int i = 0; i < count; ++i) {
    codes[i] = nibbles[i] & 15;
    codes[i + count] = nibbles[i] >> 4;
  }
}

// The block of a file's bytes that holds 64 numbers of the simple types: two of theirs, of which the second may be missing.
template <GroupedType type>
inline size_t unpack_small(const uint8_t* from, int numbers, Unpacked& to) {
  if constexpr (type == GroupedType::kNVFP4) {
    for (int group = 0; group < 4; ++group) {
      to.scales[group] = from[group] == 0x7F ? 0 : from[group] & 0x7F;  // NaN is 0, as in ggml, and a sign is ignored
      unpack_halves(from + 4 + 8 * group, to.codes + 16 * group, 8);
    }
    return 36;
  }
  const uint8_t* at = from;
  for (int half = 0; half < 2; ++half) {
    uint8_t* codes = to.codes + 32 * half;
    if (32 * half >= numbers) {
      std::memset(codes, 0, 32);
      to.scales[half] = to.minima[half] = 0;
      continue;
    }
    if constexpr (type == GroupedType::kMXFP4) {
      to.scales[half] = to_f16(std::ldexp(1.0f, *at++ - 128));
    } else {
      to.scales[half] = load_u16(at);
      at += 2;
    }
    if constexpr (type == GroupedType::kQ4_1 || type == GroupedType::kQ5_1) {
      to.minima[half] = load_u16(at);
      at += 2;
    }
    if constexpr (type == GroupedType::kQ8_0) {
      std::memcpy(codes, at, 32);
      at += 32;
    } else {
      uint32_t high = 0;
      if constexpr (type == GroupedType::kQ5_0 || type == GroupedType::kQ5_1) {
        std::memcpy(&high, at, 4);
        at += 4;
      }
      unpack_halves(at, codes);
      for (int i = 0; high && i < 32; ++i) codes[i] |= (high >> i & 1) << 4;
      at += 16;
    }
  }
  return at - from;
}

// Scales and minima of 6 bits, of Q4_K and Q5_K.
inline void unpack_six(const uint8_t* from, Unpacked& to) {
  for (int j = 0; j < 4; ++j) {
    to.scales[j] = from[j] & 63;
    to.minima[j] = from[j + 4] & 63;
    to.scales[j + 4] = (from[j + 8] & 15) | (from[j] >> 6) << 4;
    to.minima[j + 4] = from[j + 8] >> 4 | (from[j + 4] >> 6) << 4;
  }
}

// 256 numbers of the types with two levels.
template <GroupedType type>
inline size_t unpack_super(const uint8_t* from, Unpacked& to) {
  constexpr uint16_t kSign = 0x8000;
  if constexpr (type == GroupedType::kQ2_K || type == GroupedType::kQ3_K) {
    constexpr bool three = type == GroupedType::kQ3_K;
    const uint8_t* low = from + (three ? 32 : 16);
    for (int run = 0; run < 8; ++run) {
      for (int i = 0; i < 32; ++i) {
        to.codes[32 * run + i] = low[run / 4 * 32 + i] >> (2 * (run % 4)) & 3;
        if (three) to.codes[32 * run + i] |= (from[i] >> run & 1) << 2;
      }
    }
    if constexpr (three) {
      const uint8_t* packed = from + 96;
      for (int i = 0; i < 16; ++i) {
        const int lower = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4, upper = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        to.scales[i] = static_cast<uint8_t>((lower | upper << 4) - 32);
      }
      to.outer = load_u16(from + 108);
      return 110;
    }
    for (int i = 0; i < 16; ++i) {
      to.scales[i] = from[i] & 15;
      to.minima[i] = from[i] >> 4;
    }
    to.outer = load_u16(from + 80);
    to.outer_minimum = load_u16(from + 82) ^ kSign;
    return 84;
  } else if constexpr (type == GroupedType::kQ4_K || type == GroupedType::kQ5_K) {
    constexpr bool five = type == GroupedType::kQ5_K;
    to.outer = load_u16(from);
    to.outer_minimum = load_u16(from + 2) ^ kSign;
    unpack_six(from + 4, to);
    const uint8_t *high = from + 16, *low = from + (five ? 48 : 16);
    for (int run = 0; run < 8; ++run) {
      for (int i = 0; i < 32; ++i) {
        to.codes[32 * run + i] = low[run / 2 * 32 + i] >> (4 * (run % 2)) & 15;
        if (five) to.codes[32 * run + i] |= (high[i] >> run & 1) << 4;
      }
    }
    return five ? 176 : 144;
  } else if constexpr (type == GroupedType::kQ6_K) {
    for (int run = 0; run < 8; ++run) {
      const int half = run / 4, quarter = run % 4;
      for (int i = 0; i < 32; ++i) {
        const int low = from[64 * half + 32 * (quarter % 2) + i] >> (4 * (quarter / 2)) & 15;
        to.codes[32 * run + i] = low | (from[128 + 32 * half + i] >> (2 * quarter) & 3) << 4;
      }
    }
    for (int i = 0; i < 16; ++i) to.scales[i] = from[192 + i];
    to.outer = load_u16(from + 208);
    return 210;
  } else {  // IQ4_XS
    to.outer = load_u16(from);
    const uint16_t upper = load_u16(from + 2);
    for (int group = 0; group < 8; ++group) {
      const int lower = from[4 + group / 2] >> (4 * (group % 2)) & 15;
      to.scales[group] = static_cast<uint8_t>((lower | (upper >> (2 * group) & 3) << 4) - 32);
      unpack_halves(from + 8 + 16 * group, to.codes + 32 * group);
    }
    return 136;
  }
}

}  // namespace asurge
