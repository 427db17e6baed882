#include "linear.h"

#include "grouped_linear.h"
#include "linear_output.h"
#include "thread_pool.h"

namespace asurge {
namespace {

// Bytes of weights fetched ahead while few rows wait for memory, of two streams and of four.
constexpr int kAhead = 4096;
constexpr int kAheadWide = 2048;

// The live rows of x as A tiles: [live tiles][depth tiles][16][kInputLine].
template <Depth depth>
struct Prepared {
  uint8_t* tiles;
  Quantized* quantized;  // of each row of these
  int depth_tiles;
  std::vector<LiveTile> live;  // what each tile holds

  size_t tile_bytes() const { return size_t(depth_tiles) * kInputTile<depth>; }
  uint8_t* line(int row) const { return tiles + row / kRows * tile_bytes() + row % kRows * kInputLine<depth>; }
};

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
  const bool together = columns == kPanel && (tiles.end - tiles.begin > 1 || x.live[tiles.begin].count <= kMostLines<2>);
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
void compute_pair(const Linear& linear, const Prepared<depth>& x, int tile, int column, Best* best) {
  Block blocks[2];
  const size_t strip = size_t(x.depth_tiles) * kTile;
  const Strip b{linear.weight + column / 16 * strip};
  const auto [row, count] = x.live[tile];
  const Quantized* quantized = x.quantized + tile * kRows;
  multiply_wide<depth>(x.tiles + tile * x.tile_bytes(), b, strip, x.depth_tiles, &blocks[0].values[0][0], &blocks[1].values[0][0], kPanel,
                       LiveRows{count}, Fetch{kAheadWide, to_next(x.depth_tiles, 2 * kPanel)});
  finish<depth, output>(linear, blocks[0].values, quantized, row, count, column, kPanel, best);
  finish<depth, output>(linear, blocks[1].values, quantized, row, count, column + kPanel, kPanel, best);
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
  x.live = live_tiles(linear);
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
  // Rows that a thread takes together, in pairs of tiles.
  const int block = static_cast<int>(std::clamp<size_t>(kBytesTogether / x.tile_bytes() / 2 * 2, 2, std::max(tiles, 2)));
  std::vector<Run> blocks;
  int most = 0;
  for (const Run run : runs_of(linear, x.live)) {
    most = std::max(most, run.end - run.begin);
    for (int first = run.begin; first < run.end; first += block) blocks.push_back({first, std::min(first + block, run.end), run.layer});
  }
  const int width = width_of(linear, most, threads), across = (linear.columns + width - 1) / width;
  pool.run(static_cast<int>(blocks.size()) * across, [&](Pieces& panels) {
    TileScope scope;
    Best best(finds_largest ? linear.rows : 0);
    for (int index; panels.take(index);) {
      const Run run = blocks[index / across];
      const Linear own = with_layer(linear, run.layer);
      const int column = index % across * width;
      const Range rows{run.begin, run.end};
      if (width <= kPanel) {
        compute_panel<depth, output>(own, x, rows, column, std::min(width, linear.columns - column), &best);
      } else if (run.end - run.begin == 1 && x.live[run.begin].count <= kMostOfPair<depth>) {
        compute_pair<depth, output>(own, x, run.begin, column, &best);
      } else {
        compute_panel<depth, output>(own, x, rows, column, kPanel, &best);
        compute_panel<depth, output>(own, x, rows, column + kPanel, kPanel, &best);
      }
    }
    if (finds_largest) largest.add(best);
  });
  if (finds_largest) std::copy(largest.columns().begin(), largest.columns().end(), linear.out_argmax);
}

}  // namespace

void linear(const Linear& call) {
  with_output(call, [&](auto output) {
    if (call.strips) {
      run_grouped<output()>(call);
    } else if (call.scale) {
      run_as<Depth::kInt8, output()>(call);
    } else {
      run_as<Depth::kBf16, output()>(call);
    }
  });
}

}  // namespace asurge
