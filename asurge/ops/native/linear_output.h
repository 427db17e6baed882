// What products of all storages of weights share: rows on their way in, and columns on their way out.
#pragma once

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "gemm.h"
#include "linear.h"

namespace asurge {

constexpr int kPanel = 32;         // output columns computed together
constexpr int kSmallInput = 8192;  // elements of x that one thread prepares faster than a team

// How a row was quantised to 8 bits: its scale, and what its products are to be corrected by.
struct Quantized {
  float scale;
  int32_t correction;
};

// 16 elements of a row, normalised; rounded where the reference rounds.
inline Floats load_input(const Linear& linear, const uint16_t* x, int k, Floats factor) {
  const Floats value = load_bf16(x + k);
  if (linear.norm == nullptr) return value;
  return round_bf16(round_bf16(value * factor) * load_bf16(linear.norm + k));
}

// The rows of 16 that matter, of those that have any.
struct LiveTile {
  int first, count;
};

inline std::vector<LiveTile> live_tiles(const Linear& linear) {
  std::vector<LiveTile> live;
  for (int tile = 0; tile * kRows < linear.rows; ++tile) {
    const int first = tile * kRows, most = std::min(kRows, linear.rows - first);
    const int count = linear.live ? std::clamp(linear.live[tile], 0, most) : most;
    if (count) live.push_back({first, count});
  }
  return live;
}

// Products of up to 32 rows x 32 columns, on their way out.
struct Block {
  alignas(64) float values[2 * kRows][kPanel];
};

// The first `count` of 16, as bits.
inline uint32_t lanes(int count) { return count >= 16 ? 0xFFFF : (1u << count) - 1; }

// x / (1 + e^-x), or x / (1 + e^-y) with y = sqrt(8 / pi) (x + 0.044715 x^3), which is x (1 + tanh(y / 2)) / 2.
inline Floats activate(Linear::Activation activation, Floats x) {
  if (activation == Linear::Activation::kSilu) return x * sigmoid(x);
  return x * sigmoid(x * fma(x * x, all(0.0713548163f), all(1.59576912f)));
}

enum class Output { kBf16, kSum, kGated, kFloat, kArgmax };

inline Output output_of(const Linear& linear) {
  if (linear.gated) return Output::kGated;
  if (linear.out_argmax) return Output::kArgmax;
  if (linear.out_f32) return Output::kFloat;
  return linear.residual ? Output::kSum : Output::kBf16;
}

// The largest value of each row that one thread has seen, and the first column it is in.
struct Best {
  std::vector<float> value;
  std::vector<int32_t> column;

  explicit Best(int rows) : value(rows, -std::numeric_limits<float>::infinity()), column(rows, 0) {}

  void see(int row, float candidate, int at) {
    if (candidate > value[row] || (candidate == value[row] && at < column[row])) {
      value[row] = candidate;
      column[row] = at;
    }
  }

  // Of 16 values those that are `real`, a bit each. NaN is never larger.
  void see(int row, Floats values, uint32_t real, int at) {
    real &= bits_of(at_least(values, all(value[row])));
    if (real == 0) return;
    const float most = largest(select(mask_of(real), values, all(-std::numeric_limits<float>::infinity())));
    see(row, most, at + __builtin_ctz(real & bits_of(equal(values, all(most)))));
  }
};

// What 16 columns have in common.
struct Columns {
  Floats scale, bias;

  Columns(const Linear& linear, int column) {
    scale = linear.scale ? load(linear.scale + column) : all(1.0f);
    bias = linear.bias ? load_bf16(linear.bias + column) : all(0.0f);
  }

  template <Depth depth>
  Floats finish(const float* product, Quantized by) const {
    Floats value = load(product);
    if constexpr (depth == Depth::kInt8) {
      value = to_floats(add(bits(value), all(by.correction))) * (scale * all(by.scale));
    }
    return value + bias;
  }
};

// Which of 16 columns may be the largest, a bit each; `real` of them are there at all.
inline uint32_t competing(const Linear& linear, int row, int column, int real) {
  if (linear.allowed == nullptr) return lanes(real);
  const uint32_t word = linear.allowed[size_t(row) * ((linear.candidates + 31) / 32) + column / 32];
  return lanes(real) & word >> column % 32;
}

// `rows` rows from `row` on, whose products are in `block`; `quantized` is of these rows.
template <Depth depth, Output output>
void finish(const Linear& linear, const float (*block)[kPanel], const Quantized* quantized, int row, int rows, int column,
            int columns, Best* best) {
  const Columns left(linear, column), right(linear, columns == kPanel ? column + kRows : column);
  const size_t width = output == Output::kGated ? linear.columns / 2 : linear.columns;
  size_t at = row * width + (output == Output::kGated ? column / 2 : column);
  for (int line = 0; line < rows; ++line, at += width) {
    const float* product = block[line];
    const Quantized by = depth == Depth::kInt8 ? quantized[line] : Quantized{};
    const Floats first = left.finish<depth>(product, by);
    const Floats second = right.finish<depth>(product + kRows, by);
    if constexpr (output == Output::kGated) {
      store_bf16(linear.out_bf16 + at, activate(linear.activation, round_bf16(first)) * round_bf16(second));
    } else if constexpr (output == Output::kArgmax) {
      const int real = std::min(linear.candidates - column, columns);
      if (real > 0) best->see(row + line, first, competing(linear, row + line, column, real), column);
      if (real > kRows) {
        best->see(row + line, second, competing(linear, row + line, column + kRows, real - kRows), column + kRows);
      }
    } else if constexpr (output == Output::kFloat) {
      store(linear.out_f32 + at, first);
      if (columns == kPanel) store(linear.out_f32 + at + kRows, second);
    } else if constexpr (output == Output::kSum) {
      const uint16_t* residual = linear.residual + at;
      store_bf16(linear.out_bf16 + at, round_bf16(first) + load_bf16(residual));
      if (columns == kPanel) store_bf16(linear.out_bf16 + at + kRows, round_bf16(second) + load_bf16(residual + kRows));
    } else {
      store_bf16(linear.out_bf16 + at, first);
      if (columns == kPanel) store_bf16(linear.out_bf16 + at + kRows, second);
    }
  }
}

// The largest of each row that all threads have seen.
class Shared {
 public:
  explicit Shared(int rows) : all_(rows) {}

  void add(const Best& best) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t row = 0; row < best.value.size(); ++row) all_.see(row, best.value[row], best.column[row]);
  }
  const std::vector<int32_t>& columns() const { return all_.column; }

 private:
  std::mutex mutex_;
  Best all_;
};

// Neighbouring tiles that are multiplied by the same weights: indices of `live_tiles`.
struct Run {
  int begin, end, layer;
};

inline std::vector<Run> runs_of(const Linear& linear, const std::vector<LiveTile>& live) {
  std::vector<Run> runs;
  for (int tile = 0; tile < static_cast<int>(live.size()); ++tile) {
    const int layer = linear.layers ? linear.layers[live[tile].first / kRows] : 0;
    if (!runs.empty() && runs.back().layer == layer) {
      runs.back().end = tile + 1;
    } else {
      runs.push_back({tile, tile + 1, layer});
    }
  }
  return runs;
}

// The same product with the weights of a run.
inline Linear with_layer(const Linear& linear, int layer) {
  Linear own = linear;
  own.weight += linear.strips ? 0 : layer * linear.layer_bytes;
  if (own.strips) own.strips += size_t(layer) * linear.columns / kRows;
  if (own.scale) own.scale += size_t(layer) * linear.columns;
  return own;
}

// work(std::integral_constant<Output, ...>()) of what a product gives.
template <typename Work>
void with_output(const Linear& linear, const Work& work) {
  switch (output_of(linear)) {
    case Output::kBf16:
      return work(std::integral_constant<Output, Output::kBf16>());
    case Output::kSum:
      return work(std::integral_constant<Output, Output::kSum>());
    case Output::kGated:
      return work(std::integral_constant<Output, Output::kGated>());
    case Output::kFloat:
      return work(std::integral_constant<Output, Output::kFloat>());
    case Output::kArgmax:
      return work(std::integral_constant<Output, Output::kArgmax>());
  }
}

}  // namespace asurge
