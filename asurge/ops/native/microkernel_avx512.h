// By the dot products of AVX-512.
#pragma once

namespace asurge {

template <int kStrips>
constexpr int kMostLines = kStrips == 4 ? 6 : kStrips == 2 ? 12 : 16;
constexpr int kStripsOfMany = 2;
constexpr size_t kBytesTogether = SIZE_MAX;

// The only product is of unsigned with signed bytes, so weights go in as if each were larger by 128.
inline Ints excess_of(Ints x) { return shift_left<7>(x); }

template <Depth depth>
inline __m512i load_weights(const uint8_t* from) {
  const __m512i w = _mm512_loadu_si512(from);
  return depth == Depth::kBf16 ? w : _mm512_xor_si512(w, _mm512_set1_epi8(-128));
}

// acc += x . w, where x is one group along the depth, the same in all columns.
template <Depth depth>
inline __m512 dot(__m512 acc, __m512i x, __m512i w) {
  if constexpr (depth == Depth::kBf16) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  } else {
    return _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(acc), w, x));
  }
}

template <Depth depth, int kLines, int kStrips, typename B>
[[gnu::noinline]] void multiply_lines(const uint8_t* a, const B& b, Strips strips, int depth_tiles, Target to, Ahead ahead) {
  __m512 sums[kLines][kStrips];
  for (auto& line : sums) {
    for (auto& sum : line) sum = _mm512_setzero_ps();
  }
  for (int k = 0; k < depth_tiles; ++k, a += kTile) {
    const uint8_t* tile = b(k) + strips.first;
    const uint8_t* early = ahead(b, k);
    for (int group = 0; group < 16; ++group) {
      __m512i w[kStrips];
      for (int strip = 0; strip < kStrips; ++strip) {
        const size_t at = strip * strips.stride + 64 * group;
        if (early) _mm_prefetch(reinterpret_cast<const char*>(early + strips.first + at), _MM_HINT_T1);
        w[strip] = load_weights<depth>(tile + at);
      }
      for (int line = 0; line < kLines; ++line) {
        int32_t pair;
        std::memcpy(&pair, a + 64 * line + 4 * group, 4);
        const __m512i x = _mm512_set1_epi32(pair);
        for (int strip = 0; strip < kStrips; ++strip) sums[line][strip] = dot<depth>(sums[line][strip], x, w[strip]);
      }
    }
  }
  for (int line = 0; line < kLines; ++line) {
    for (int strip = 0; strip < kStrips; ++strip) {
      _mm512_storeu_ps(to.out + to.strips[strip] + line * to.columns, sums[line][strip]);
    }
  }
}

}  // namespace asurge
