// Products with grouped weights (`grouped.h`): rows of x in 8 bits, codes unpacked in registers, sums in float32.
#pragma once

#include "linear_output.h"
#include "quantized_rows.h"
#include "thread_pool.h"

#ifdef ASURGE_AVX2
#include "grouped_avx2.h"
#else
#include "grouped_avx512.h"
#endif

namespace asurge {

constexpr ptrdiff_t kGroupedAhead = 2048;  // bytes of weights fetched early while few rows wait for memory
constexpr int kPiecesOfEach = 4;           // that a thread finds at least, where columns are many
constexpr int kMostPanels = 16;            // of a piece: memory is read faster in long stretches (two threads: 20 GB/s in single
                                           // panels, 31 GB/s in 16, on Zen 4)

// `count` rows of x, `steps` apart, by a strip, so many at a time as registers hold sums of.
template <typename F, int kLines = kMostGroupedLines>
inline void multiply_rows(const uint8_t* strip, const QuantizedStep* x, int count, int steps, float* out) {
  while (count >= kLines) {
    multiply_grouped<F, kLines>(strip, x, steps, out, kPanel, count <= kMostGroupedLines ? kGroupedAhead : 0);
    count -= kLines;
    x += size_t(kLines) * steps;
    out += kLines * kPanel;
  }
  if constexpr (kLines > 1) {
    if (count) multiply_rows<F, kLines / 2>(strip, x, count, steps, out);
  }
}

inline void multiply_strip(const Linear& linear, int strip, const QuantizedStep* x, int count, float* out) {
  const StripEntry entry = linear.strips[strip];
  const uint8_t* weight = linear.weight + size_t(entry.line) * 64;
  with_format(entry.type, [&](auto format) { multiply_rows<decltype(format)>(weight, x, count, steps_of(linear.depth), out); });
}

#ifdef ASURGE_AVX2

class UnpackedPanel {
 public:
  void unpack(const Linear&, int, int) {}
  void multiply(const QuantizedStep*, int, float*) const {}
};

#else

// One strip or two that are multiplied by many rows.
class UnpackedPanel {
 public:
  void unpack(const Linear& linear, int strip, int strips) {
    strips_ = strips;
    steps_ = steps_of(linear.depth);
    together_ = strips == 2 && linear.strips[strip].type == linear.strips[strip + 1].type;
    for (int side = 0; side < strips; ++side) {
      const StripEntry entry = linear.strips[strip + side];
      types_[side] = entry.type;
      with_format(entry.type, [&](auto format) {
        using Step = UnpackedStep<decltype(format)>;
        if (side == 0 || !together_) memory(side).get<Step>(size_t(together_ ? 2 : 1) * steps_);
        // Threads take panels in turns: the one after those of the others is most likely this thread's next.
        const ptrdiff_t ahead = ptrdiff_t{ThreadPool::get().size()} * strips * strip_bytes(entry.type, linear.depth);
        unpack_strip(linear.weight + size_t(entry.line) * 64, steps_, at<Step>(side), ahead);
      });
    }
  }

  void multiply(const QuantizedStep* x, int count, float* out) const {
    for (int side = 0; side < (together_ ? 1 : strips_); ++side) {
      with_format(types_[side], [&](auto format) {
        using F = decltype(format);
        const UnpackedStep<F>* w = at<UnpackedStep<F>>(side);
        if (together_) {
          multiply_lines<F, 2>(w, x, count, out);
        } else {
          multiply_lines<F, 1>(w, x, count, out + side * kRows);
        }
      });
    }
  }

 private:
  template <typename F, int kStrips, int kLines = kMostUnpackedLines>
  void multiply_lines(const UnpackedStep<F>* w, const QuantizedStep* x, int count, float* out) const {
    for (; count >= kLines; count -= kLines, x += size_t(kLines) * steps_, out += kLines * kPanel) {
      multiply_unpacked<F, kLines, kStrips>(w, x, steps_, out, kPanel);
    }
    if constexpr (kLines > 1) {
      if (count) multiply_lines<F, kStrips, kLines / 2>(w, x, count, out);
    }
  }

  template <typename Step>
  Step* at(int side) const {
    return memory(together_ ? 0 : side).template get<Step>(0) + (together_ ? side * steps_ : 0);
  }

  static Scratch& memory(int side) {
    thread_local Scratch scratch[2];
    return scratch[side];
  }

  int strips_ = 0, steps_ = 0;
  bool together_ = false;
  GroupedType types_[2] = {};
};

#endif

// The live rows of x, quantised; in memory of this thread.
inline QuantizedStep* quantize_input(const Linear& linear, const std::vector<LiveTile>& live) {
  thread_local Scratch scratch;
  const size_t steps = steps_of(linear.depth);
  QuantizedStep* rows = scratch.get<QuantizedStep>(live.size() * kRows * steps);
  const auto prepare = [&, rows](int tile) {
    for (int line = 0; line < live[tile].count; ++line) {
      const uint16_t* x = linear.x + size_t(live[tile].first + line) * linear.depth;
      const Floats factor = all(linear.norm ? inverse_rms(x, linear.depth, linear.epsilon) : 1.0f);
      const auto load = [&](int k) {
        const Floats value = load_bf16(x + k);
        return linear.norm ? value * factor * load_bf16(linear.norm + k) : value;
      };
      quantize_row(rows + (size_t(tile) * kRows + line) * steps, linear.depth, load);
    }
  };
  const int tiles = static_cast<int>(live.size());
  if (size_t(std::min(tiles * kRows, linear.rows)) * linear.depth <= kSmallInput) {
    for (int tile = 0; tile < tiles; ++tile) prepare(tile);
  } else {
    ThreadPool::get().run(tiles, [&](Pieces& pieces) {
      for (int tile; pieces.take(tile);) prepare(tile);
    });
  }
  return rows;
}

// Columns that a thread takes at a time: enough for long reads of memory, where there are, and few enough that none waits long
// for the last one. Narrow products go in halves of panels.
inline int grouped_width(const Linear& linear, int tiles) {
  const int threads = ThreadPool::get().size();
  const int panels = linear.columns / kPanel / (kPiecesOfEach * threads);
  if (panels == 0 && !linear.gated) return kRows;
  return kPanel * std::clamp(panels, 1, tiles > 1 ? 1 : kMostPanels);
}

template <Output output>
void run_grouped(const Linear& linear) {
  const std::vector<LiveTile> live = live_tiles(linear);
  const QuantizedStep* x = quantize_input(linear, live);
  const size_t tile_steps = size_t(kRows) * steps_of(linear.depth);
  constexpr bool finds_largest = output == Output::kArgmax;
  Shared largest(finds_largest ? linear.rows : 0);
  const std::vector<Run> runs = runs_of(linear, live);
  int most = 0;
  for (const Run run : runs) most = std::max(most, run.end - run.begin);
  const int width = grouped_width(linear, most), across = (linear.columns + width - 1) / width;
  ThreadPool::get().run(static_cast<int>(runs.size()) * across, [&](Pieces& pieces) {
    Best best(finds_largest ? linear.rows : 0);
    for (int index; pieces.take(index);) {
      const Run run = runs[index / across];
      const Linear own = with_layer(linear, run.layer);
      const bool many = run.end - run.begin > 1 && kMostDirectRows <= kRows;
      const int begin = index % across * width, end = std::min(begin + width, linear.columns);
      for (int column = begin; column < end; column += kPanel) {
        const int columns = std::min(kPanel, end - column), strip = column / kRows;
        UnpackedPanel unpacked;
        if (many) unpacked.unpack(own, strip, columns / kRows);
        for (int tile = run.begin; tile < run.end; ++tile) {
          const auto [row, count] = live[tile];
          Block block;
          const QuantizedStep* rows = x + tile * tile_steps;
          if (many) {
            unpacked.multiply(rows, count, &block.values[0][0]);
          } else {
            for (int side = 0; side * kRows < columns; ++side) {
              multiply_strip(own, strip + side, rows, count, &block.values[0][side * kRows]);
            }
          }
          finish<Depth::kBf16, output>(own, block.values, nullptr, row, count, column, columns, &best);
        }
      }
    }
    if (finds_largest) largest.add(best);
  });
  if (finds_largest) std::copy(largest.columns().begin(), largest.columns().end(), linear.out_argmax);
}

}  // namespace asurge
