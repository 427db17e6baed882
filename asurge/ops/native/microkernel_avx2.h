// By AVX2, which multiplies float32 and, in two steps, bytes.
#pragma once

#include <type_traits>
#include <utility>

namespace asurge {

// Eight columns at a time: a strip's 16 take two registers for the sums of a row.
template <int kStrips>
constexpr int kMostLines = kStrips == 4 ? 1 : kStrips == 2 ? 2 : 6;
constexpr int kStripsOfMany = 1;

// Where x is negative, its size is multiplied by the weight's bits flipped: -w - 1, instead of -w.
inline Ints excess_of(Ints x) { return min(x, all(0)); }

// As float32 rows are twice as long as elsewhere: many do not stay in the second cache, and weights are rather read again. With 512
// rows a tenth faster (Zen 3).
constexpr size_t kBytesTogether = size_t{128} << 10;

// Numbers of one depth, of eight columns: the lower halves of words or the upper ones.
inline __m256 widen_half(__m256i words, int half) {
  return _mm256_castsi256_ps(half ? _mm256_and_si256(words, _mm256_set1_epi32(-0x10000)) : _mm256_slli_epi32(words, 16));
}

// body(0), body(1), ...: with loops, the compiler would decide where sums are kept before it unrolls them, and not for registers.
template <int kCount, typename Body>
[[gnu::always_inline]] inline void for_each(const Body& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) { (body(kIndex), ...); }(std::make_integer_sequence<int, kCount>());
}

// Four bytes eight times.
inline __m256i four_bytes(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return _mm256_set1_epi32(four);
}

// sums += 16 columns of pairs along the depth, at `w`, times those of some rows, from `a` on.
template <int kLines>
[[gnu::always_inline]] inline void add_products(Floats (&sums)[kLines], const float* a, const __m256i* w) {
  for_each<2>([&](int half) __attribute__((always_inline)) {
    const __m256 low = widen_half(_mm256_loadu_si256(w), half), high = widen_half(_mm256_loadu_si256(w + 1), half);
    for_each<kLines>([&](int line) __attribute__((always_inline)) {
      const __m256 x = _mm256_broadcast_ss(a + 32 * line + half);
      sums[line].low = _mm256_fmadd_ps(x, low, sums[line].low);
      sums[line].high = _mm256_fmadd_ps(x, high, sums[line].high);
    });
  });
}

// The same with bytes, four along the depth. Only unsigned ones can be multiplied by signed ones, so the sign of x goes over to
// the weights, as their bits flipped: processors have two units for products and for `psignb`, but four for this. 2 * 127 * 128 fits
// the 16 bits that two products are added in.
template <int kLines>
[[gnu::always_inline]] inline void add_products(Ints (&sums)[kLines], const uint8_t* a, const __m256i* w) {
  const __m256i low = _mm256_loadu_si256(w), high = _mm256_loadu_si256(w + 1), one = _mm256_set1_epi16(1);
  for_each<kLines>([&](int line) __attribute__((always_inline)) {
    const __m256i size = four_bytes(a + 128 * line), negative = four_bytes(a + 128 * line + 64);
    const auto products = [&](__m256i weights) {
      return _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_xor_si256(weights, negative)), one);
    };
    sums[line] = add(sums[line], {products(low), products(high)});
  });
}

inline void store_sums(float* to, Floats sums) { store(to, sums); }
inline void store_sums(float* to, Ints sums) { store_line(to, sums); }

template <Depth depth, int kLines, int kStrips, typename B>
[[gnu::noinline]] void multiply_lines(const uint8_t* a, const B& b, Strips strips, int depth_tiles, Target to, Ahead ahead) {
  using Input = std::conditional_t<depth == Depth::kBf16, float, uint8_t>;
  using Sums = std::conditional_t<depth == Depth::kBf16, Floats, Ints>;
  constexpr int kInputs = depth == Depth::kBf16 ? 2 : 4;  // along the depth, of each group
  Sums sums[kStrips][kLines] = {};
  for (int k = 0; k < depth_tiles; ++k, a += kInputTile<depth>) {
    const uint8_t* tile = b(k) + strips.first;
    const uint8_t* early = ahead(b, k);
    for (int group = 0; group < 16; ++group) {
      const Input* x = reinterpret_cast<const Input*>(a) + kInputs * group;
      for_each<kStrips>([&](int strip) __attribute__((always_inline)) {
        const size_t at = strip * strips.stride + 64 * group;
        if (early) _mm_prefetch(reinterpret_cast<const char*>(early + strips.first + at), _MM_HINT_T1);
        add_products<kLines>(sums[strip], x, reinterpret_cast<const __m256i*>(tile + at));
      });
    }
  }
  for_each<kStrips>([&](int strip) __attribute__((always_inline)) {
    for_each<kLines>([&](int line) __attribute__((always_inline)) {
      store_sums(to.out + to.strips[strip] + line * to.columns, sums[strip][line]);
    });
  });
}

}  // namespace asurge
