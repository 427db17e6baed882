#include "linear.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"
#include "tiles.h"

namespace asurge {
namespace {

constexpr int kPanel = 32;         // output columns computed together
constexpr int kSmallInput = 8192;  // elements of x that one thread prepares faster than a team
constexpr int kAhead = 4096;       // bytes of weights fetched ahead while few rows wait for memory

// x as A tiles: [rows / 16][depth tiles][16][64 bytes]; for int8 also one scale per row.
struct Prepared {
  uint8_t* tiles;
  float* scales;
  int depth_tiles;
};

float inverse_rms(const uint16_t* x, int depth, float epsilon) {
  __m512 sum = _mm512_setzero_ps();
  for (int k = 0; k < depth; k += 16) {
    const __m512 value = load_bf16(x + k);
    sum = _mm512_fmadd_ps(value, value, sum);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / depth + epsilon);
}

// 16 elements of a row, normalised; rounded where the reference rounds.
inline __m512 load_input(const Linear& linear, const uint16_t* x, int k, __m512 factor) {
  __m512 value = load_bf16(x + k);
  if (linear.norm == nullptr) return value;
  value = round_bf16(_mm512_mul_ps(value, factor));
  return round_bf16(_mm512_mul_ps(value, load_bf16(linear.norm + k)));
}

void prepare_bf16(const Linear& linear, const Prepared& to, int row) {
  const uint16_t* x = linear.x + size_t(row) * linear.depth;
  const __m512 factor = _mm512_set1_ps(linear.norm ? inverse_rms(x, linear.depth, linear.epsilon) : 1.0f);
  uint8_t* tile = to.tiles + size_t(row / kRows) * to.depth_tiles * kTile + row % kRows * 64;
  for (int k = 0; k < linear.depth; k += 32, tile += kTile) {
    uint16_t* line = reinterpret_cast<uint16_t*>(tile);
    store_bf16(line, load_input(linear, x, k, factor));
    store_bf16(line + 16, load_input(linear, x, k + 16, factor));
  }
}

void prepare_int8(const Linear& linear, const Prepared& to, int row) {
  const uint16_t* x = linear.x + size_t(row) * linear.depth;
  const __m512 factor = _mm512_set1_ps(linear.norm ? inverse_rms(x, linear.depth, linear.epsilon) : 1.0f);
  __m512 most = _mm512_setzero_ps();
  for (int k = 0; k < linear.depth; k += 16) {
    most = _mm512_max_ps(most, _mm512_abs_ps(load_input(linear, x, k, factor)));
  }
  const float scale = std::max(_mm512_reduce_max_ps(most), 1e-30f) / 127.0f;
  to.scales[row] = scale;
  const __m512 inverse = _mm512_set1_ps(1.0f / scale);
  uint8_t* tile = to.tiles + size_t(row / kRows) * to.depth_tiles * kTile + row % kRows * 64;
  for (int k = 0; k < linear.depth; k += 64, tile += kTile) {
    for (int part = 0; part < 64; part += 16) {
      const __m512 value = _mm512_mul_ps(load_input(linear, x, k + part, factor), inverse);
      _mm_store_si128(reinterpret_cast<__m128i*>(tile + part), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value)));
    }
  }
}

// Products of up to 32 rows x 32 columns, on their way out.
struct Block {
  alignas(64) float values[2 * kRows][kPanel];
};

inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  // exponential() takes what is not positive: sigmoid(x) = e^min(x, 0) / (1 + e^-|x|).
  const __m512 small = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
  return _mm512_div_ps(_mm512_mul_ps(x, _mm512_mask_mov_ps(small, positive, one)), _mm512_add_ps(small, one));
}

enum class Output { kBf16, kSum, kGated, kFloat };

Output output_of(const Linear& linear) {
  if (linear.gated) return Output::kGated;
  if (linear.out_f32) return Output::kFloat;
  return linear.residual ? Output::kSum : Output::kBf16;
}

// What 16 columns have in common.
struct Columns {
  __m512 scale, bias;

  Columns(const Linear& linear, int column) {
    scale = linear.scale ? _mm512_loadu_ps(linear.scale + column) : _mm512_set1_ps(1.0f);
    bias = linear.bias ? load_bf16(linear.bias + column) : _mm512_setzero_ps();
  }

  template <Depth depth>
  __m512 finish(const float* product, __m512 row_scale) const {
    __m512 value = _mm512_load_ps(product);
    if constexpr (depth == Depth::kInt8) {
      value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(value)), _mm512_mul_ps(scale, row_scale));
    }
    return _mm512_add_ps(value, bias);
  }
};

template <Depth depth, Output output>
void finish(const Linear& linear, const float* scales, const Block& block, int row, int rows, int column, int columns) {
  const Columns left(linear, column), right(linear, columns == kPanel ? column + kRows : column);
  const size_t width = output == Output::kGated ? linear.columns / 2 : linear.columns;
  size_t at = row * width + (output == Output::kGated ? column / 2 : column);
  for (int line = 0; line < rows; ++line, at += width) {
    const float* product = block.values[line];
    const __m512 row_scale = _mm512_set1_ps(depth == Depth::kInt8 ? scales[row + line] : 1.0f);
    const __m512 first = left.finish<depth>(product, row_scale);
    const __m512 second = right.finish<depth>(product + kRows, row_scale);
    if constexpr (output == Output::kGated) {
      store_bf16(linear.out_bf16 + at, _mm512_mul_ps(silu(round_bf16(first)), round_bf16(second)));
    } else if constexpr (output == Output::kFloat) {
      _mm512_storeu_ps(linear.out_f32 + at, first);
      if (columns == kPanel) _mm512_storeu_ps(linear.out_f32 + at + kRows, second);
    } else if constexpr (output == Output::kSum) {
      const uint16_t* residual = linear.residual + at;
      store_bf16(linear.out_bf16 + at, _mm512_add_ps(round_bf16(first), load_bf16(residual)));
      if (columns == kPanel) {
        const __m512 sum = _mm512_add_ps(round_bf16(second), load_bf16(residual + kRows));
        store_bf16(linear.out_bf16 + at + kRows, sum);
      }
    } else {
      store_bf16(linear.out_bf16 + at, first);
      if (columns == kPanel) store_bf16(linear.out_bf16 + at + kRows, second);
    }
  }
}

// All rows of one panel of columns: its weights are read from memory once.
template <Depth depth, Output output>
void compute_panel(const Linear& linear, const Prepared& x, int column, int columns) {
  Block block;
  const size_t strip = size_t(x.depth_tiles) * kTile;
  const uint8_t* weight = linear.weight + column / 16 * strip;
  for (int row = 0; row < linear.rows; row += 2 * kRows) {
    const int rows = std::min(2 * kRows, linear.rows - row);
    const uint8_t* a = x.tiles + row / kRows * strip;
    const int ahead = row == 0 ? kAhead : 0;
    float* out = &block.values[0][0];
    if (columns == kPanel) {
      if (rows > kRows) {
        multiply<depth, 2, 2>(a, strip, weight, strip, x.depth_tiles, kTile, kTile, out, kPanel, ahead);
      } else {
        multiply<depth, 1, 2>(a, strip, weight, strip, x.depth_tiles, kTile, kTile, out, kPanel, ahead);
      }
    } else if (rows > kRows) {
      multiply<depth, 2, 1>(a, strip, weight, strip, x.depth_tiles, kTile, kTile, out, kPanel, ahead);
    } else {
      multiply<depth, 1, 1>(a, strip, weight, strip, x.depth_tiles, kTile, kTile, out, kPanel, ahead);
    }
    finish<depth, output>(linear, x.scales, block, row, rows, column, columns);
  }
}

template <Depth depth, Output output>
void run_as(const Linear& linear) {
  constexpr int kDepth = depth == Depth::kBf16 ? 32 : 64;
  const int row_tiles = (linear.rows + kRows - 1) / kRows;
  Prepared x;
  x.depth_tiles = linear.depth / kDepth;
  const size_t tile_bytes = size_t(row_tiles) * x.depth_tiles * kTile;
  thread_local Scratch scratch;
  x.tiles = scratch.get<uint8_t>(tile_bytes + row_tiles * kRows * sizeof(float));
  x.scales = reinterpret_cast<float*>(x.tiles + tile_bytes);
  const auto prepare = depth == Depth::kBf16 ? prepare_bf16 : prepare_int8;
  const bool small = linear.rows * linear.depth <= kSmallInput;
  if (small) {
    for (int row = 0; row < linear.rows; ++row) prepare(linear, x, row);
  }
  // Narrow products in halves of panels, so that no member waits for the last one long.
  const int width = !linear.gated && linear.columns / kPanel < 4 * Pool::get().size() ? 16 : kPanel;
  Tickets rows(small ? 0 : row_tiles), panels((linear.columns + width - 1) / width);
  Pool::get().run([&](int, Team& team) {
    int index;
    if (!small) {
      while (rows.take(index)) {
        const int end = std::min((index + 1) * kRows, linear.rows);
        for (int row = index * kRows; row < end; ++row) prepare(linear, x, row);
      }
      team.barrier();
    }
    TileScope tiles;
    while (panels.take(index)) {
      compute_panel<depth, output>(linear, x, index * width, std::min(width, linear.columns - index * width));
    }
  });
}

template <Depth depth>
void run_as(const Linear& linear) {
  switch (output_of(linear)) {
    case Output::kBf16:
      return run_as<depth, Output::kBf16>(linear);
    case Output::kSum:
      return run_as<depth, Output::kSum>(linear);
    case Output::kGated:
      return run_as<depth, Output::kGated>(linear);
    case Output::kFloat:
      return run_as<depth, Output::kFloat>(linear);
  }
}

}  // namespace

void run(const Linear& linear) {
  if (linear.scale) {
    run_as<Depth::kInt8>(linear);
  } else {
    run_as<Depth::kBf16>(linear);
  }
}

}  // namespace asurge
