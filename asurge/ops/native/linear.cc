#include "linear.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "gemm.h"
#include "thread_pool.h"

namespace asurge {
namespace {

constexpr int kPanel = 32;         // output columns computed together
constexpr int kSmallInput = 8192;  // elements of x that one thread prepares faster than a team
// Bytes of weights fetched ahead while few rows wait for memory, of two streams and of four.
constexpr int kAhead = 4096;
constexpr int kAheadWide = 2048;

// How a row was quantised to 8 bits: its scale, and what its products are to be corrected by.
struct Quantized {
  float scale;
  int32_t correction;
};

// The live rows of x as A tiles: [live tiles][depth tiles][16][kInputLine].
template <Depth depth>
struct Prepared {
  uint8_t* tiles;
  Quantized* quantized;  // of each row of these
  int depth_tiles;
  struct Rows {
    int first, count;
  };
  // What each tile holds.
  std::vector<Rows> live;

  size_t tile_bytes() const { return size_t(depth_tiles) * kInputTile<depth>; }
  uint8_t* line(int row) const { return tiles + row / kRows * tile_bytes() + row % kRows * kInputLine<depth>; }
};

// 16 elements of a row, normalised; rounded where the reference rounds.
inline Floats load_input(const Linear& linear, const uint16_t* x, int k, Floats factor) {
  const Floats value = load_bf16(x + k);
  if (linear.norm == nullptr) return value;
  return round_bf16(round_bf16(value * factor) * load_bf16(linear.norm + k));
}

void prepare(const Linear& linear, const Prepared<Depth::kBf16>& to, int row, int at) {
  const uint16_t* x = linear.x + size_t(row) * linear.depth;
  const Floats factor = all(linear.norm ? inverse_rms(x, linear.depth, linear.epsilon) : 1.0f);
  uint8_t* line = to.line(at);
  for (int k = 0; k < linear.depth; k += 32, line += kInputTile<Depth::kBf16>) {
    store_input(line, 0, load_input(linear, x, k, factor));
    store_input(line, 16, load_input(linear, x, k + 16, factor));
  }
}

void prepare(const Linear& linear, const Prepared<Depth::kInt8>& to, int row, int at) {
  const uint16_t* x = linear.x + size_t(row) * linear.depth;
  const Floats factor = all(linear.norm ? inverse_rms(x, linear.depth, linear.epsilon) : 1.0f);
  const float scale = step_of(linear.depth, [&](int k) { return load_input(linear, x, k, factor); });
  const Floats inverse = all(1.0f / scale);
  Ints excess = all(0);
  uint8_t* line = to.line(at);
  for (int k = 0; k < linear.depth; k += 64, line += kInputTile<Depth::kInt8>) {
    for (int part = 0; part < 64; part += 16) {
      const Ints rounded = to_ints(load_input(linear, x, k + part, factor) * inverse);
      store_input(line, part, rounded);
      excess = add(excess, excess_of(rounded));
    }
  }
  to.quantized[at] = {scale, -sum(excess)};
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

Output output_of(const Linear& linear) {
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
uint32_t competing(const Linear& linear, int row, int column, int real) {
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

// Bytes from a thread's columns to those it will most likely take next: threads take them in turns.
ptrdiff_t to_next(int depth_tiles, int columns) {
  return ptrdiff_t{ThreadPool::get().size()} * (columns / 16) * depth_tiles * kTile;
}

// One A tile or two.
template <Depth depth, int kStrips>
void multiply_tiles(const uint8_t* a, const Strip& b, int depth_tiles, float* out, LiveRows rows, Fetch fetch) {
  const size_t below = size_t(depth_tiles) * kInputTile<depth>, beside = size_t(depth_tiles) * kTile;
  if (rows.second) {
    multiply<depth, 2, kStrips>(a, below, b, beside, depth_tiles, out, kPanel, rows, fetch);
  } else {
    multiply<depth, 1, kStrips>(a, below, b, beside, depth_tiles, out, kPanel, rows, fetch);
  }
}

// Tiles of rows.
struct Range {
  int begin, end;
};

// One panel of columns: its weights are read from memory once for these rows.
template <Depth depth, Output output>
void compute_panel(const Linear& linear, const Prepared<depth>& x, Range tiles, int column, int columns, Best* best) {
  Block block;
  const size_t strip = size_t(x.depth_tiles) * kTile;
  const uint8_t* weight = linear.weight + column / 16 * strip;
  // A single tile takes both strips together only if its rows then go over the weights once.
  const bool together = columns == kPanel && (x.live.size() > 1 || x.live[0].count <= kMostLines<2>);
  for (int tile = tiles.begin; tile < tiles.end; tile += 2) {
    const uint8_t* a = x.tiles + tile * x.tile_bytes();
    const bool two = tile + 1 < tiles.end;
    const Fetch fetch = tile > tiles.begin ? Fetch{} : Fetch{kAhead, to_next(x.depth_tiles, columns)};
    float* out = &block.values[0][0];
    const LiveRows rows{x.live[tile].count, two ? x.live[tile + 1].count : 0};
    if (together) {
      multiply_tiles<depth, 2>(a, Strip{weight}, x.depth_tiles, out, rows, fetch);
    } else {
      for (int side = 0; side * kRows < columns; ++side) {
        multiply_tiles<depth, 1>(a, Strip{weight + side * strip}, x.depth_tiles, out + side * kRows, rows, fetch);
      }
    }
    for (int part = 0; part <= static_cast<int>(two); ++part) {
      const auto [row, count] = x.live[tile + part];
      finish<depth, output>(linear, block.values + part * kRows, x.quantized + (tile + part) * kRows, row, count, column,
                            columns, best);
    }
  }
}

// Two panels at once, where live rows are few.
template <Depth depth, Output output>
void compute_pair(const Linear& linear, const Prepared<depth>& x, int column, Best* best) {
  Block blocks[2];
  const size_t strip = size_t(x.depth_tiles) * kTile;
  const Strip b{linear.weight + column / 16 * strip};
  const auto [row, count] = x.live[0];
  multiply_wide<depth>(x.tiles, b, strip, x.depth_tiles, &blocks[0].values[0][0], &blocks[1].values[0][0], kPanel,
                       LiveRows{count}, Fetch{kAheadWide, to_next(x.depth_tiles, 2 * kPanel)});
  finish<depth, output>(linear, blocks[0].values, x.quantized, row, count, column, kPanel, best);
  finish<depth, output>(linear, blocks[1].values, x.quantized, row, count, column + kPanel, kPanel, best);
}

// The most rows of one tile that are multiplied by a pair of panels at once. Where memory is the limit, they go over the weights
// once, by fewer strips if need be; weights in 8 bits arrive fast enough for two passes.
template <Depth depth>
constexpr int kMostOfPair = depth == Depth::kInt8 ? kMostLines<2> : kMostLines<4>;

// Columns that a thread takes at a time. Where one tile holds all rows, memory is the limit and more streams read faster. Gated
// columns come in pairs of panels, which fill whole lines of the output: two threads writing halves of a line take a third
// longer. Narrow products go in halves of panels, so that none waits long for the last one.
int width_of(const Linear& linear, int tiles, int threads) {
  const bool wide = linear.columns % (2 * kPanel) == 0 && linear.columns / (2 * kPanel) >= 4 * threads;
  if (wide && (tiles == 1 || linear.gated)) return 2 * kPanel;
  return !linear.gated && linear.columns / kPanel < 4 * threads ? kRows : kPanel;
}

template <Depth depth>
Prepared<depth> allocate(const Linear& linear) {
  thread_local Scratch scratch;
  Prepared<depth> x;
  x.depth_tiles = linear.depth / (depth == Depth::kBf16 ? 32 : 64);
  for (int tile = 0; tile * kRows < linear.rows; ++tile) {
    const int first = tile * kRows, most = std::min(kRows, linear.rows - first);
    const int count = linear.live ? std::clamp(linear.live[tile], 0, most) : most;
    if (count) x.live.push_back({first, count});
  }
  const size_t bytes = x.live.size() * x.tile_bytes();
  x.tiles = scratch.get<uint8_t>(bytes + x.live.size() * kRows * sizeof(Quantized));
  x.quantized = reinterpret_cast<Quantized*>(x.tiles + bytes);
  return x;
}

template <Depth depth>
void prepare(const Linear& linear, const Prepared<depth>& x, int tile) {
  const auto [first, count] = x.live[tile];
  for (int line = 0; line < count; ++line) prepare(linear, x, first + line, tile * kRows + line);
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

template <Depth depth, Output output>
void run_as(const Linear& linear) {
  ThreadPool& pool = ThreadPool::get();
  const Prepared<depth> x = allocate<depth>(linear);
  const int tiles = static_cast<int>(x.live.size()), threads = pool.size();
  const size_t rows = std::min(tiles * kRows, linear.rows);
  if (rows * linear.depth <= kSmallInput) {
    for (int tile = 0; tile < tiles; ++tile) prepare(linear, x, tile);
  } else {
    pool.run(tiles, [&](Pieces& pieces) {
      for (int tile; pieces.take(tile);) prepare(linear, x, tile);
    });
  }
  constexpr bool finds_largest = output == Output::kArgmax;
  Shared largest(finds_largest ? linear.rows : 0);
  const int width = width_of(linear, tiles, threads);
  // Rows that a thread takes together, in pairs of tiles.
  const int block = static_cast<int>(std::clamp<size_t>(kBytesTogether / x.tile_bytes() / 2 * 2, 2, std::max(tiles, 2)));
  const int across = (linear.columns + width - 1) / width;
  pool.run((tiles + block - 1) / block * across, [&](Pieces& panels) {
    TileScope scope;
    Best best(finds_largest ? linear.rows : 0);
    for (int index; panels.take(index);) {
      const int column = index % across * width, first = index / across * block;
      const Range rows{first, std::min(first + block, tiles)};
      if (width <= kPanel) {
        compute_panel<depth, output>(linear, x, rows, column, std::min(width, linear.columns - column), &best);
      } else if (tiles == 1 && x.live[0].count <= kMostOfPair<depth>) {
        compute_pair<depth, output>(linear, x, column, &best);
      } else {
        compute_panel<depth, output>(linear, x, rows, column, kPanel, &best);
        compute_panel<depth, output>(linear, x, rows, column + kPanel, kPanel, &best);
      }
    }
    if (finds_largest) largest.add(best);
  });
  if (finds_largest) std::copy(largest.columns().begin(), largest.columns().end(), linear.out_argmax);
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
    case Output::kArgmax:
      return run_as<depth, Output::kArgmax>(linear);
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
