// SIMD vectors of sixteen numbers: a register of AVX-512, or two of AVX2.
//
// `Floats` are 16 float32, `Ints` 16 int32 or a cache line of 64 bytes, and `Mask` has a bit for each. The kernels are written
// with these types, once for all instruction sets; code for one set is in a header named after it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

namespace asurge {

inline Floats round_bf16(Floats value) { return widen(narrow(value)); }

alignas(64) inline constexpr int32_t kCounting[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// Mask of the numbers `from`, `from` + 1, ... that lie in [begin, end).
inline Mask within(int32_t from, int32_t begin, int32_t end) {
  const Ints numbers = add(load_line(kCounting), all(from));
  return above(numbers, all(begin - 1)) & above(all(end), numbers);
}

}  // namespace asurge
