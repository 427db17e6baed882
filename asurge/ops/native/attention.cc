#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "int8_codes.h"
#include "kv_pages.h"
#include "thread_pool.h"
#include "attention_tasks.h"

namespace asurge {
namespace {

constexpr int kInput = kInputTile<Depth::kBf16>, kLine = kInputLine<Depth::kBf16>;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Workspace {
  alignas(64) float scores[kQueries][kSpan];
  alignas(64) float product[kQueries][kQueries];
  alignas(64) float mixed[kQueries][kMaxHeadDim];
  alignas(64) uint8_t queries[2 * kMaxHeadDim / 32 * kInput];
  alignas(64) uint8_t weights[2 * kSpan / 32 * kInput];
  // Values of the first and of the last 32 tokens of a span.
  alignas(64) uint16_t masked[2][kBlock * kMaxHeadDim];
  // For pages in 8 bits: keys of 32 tokens, or 32 dims of a span's values, in bf16; and what values are scaled by.
  alignas(64) uint8_t unpacked[std::max(kMaxHeadDim, kSpan) * kBlock * 2];
  alignas(64) float value_scale[kSpan];
  // For scores times scale times log2(e).
  float best[kQueries], total[kQueries], shrink[kQueries];
};

// Not inlined: each use of a thread-local variable would look it up again.
__attribute__((noinline)) Workspace& own_workspace() {
  thread_local Workspace work;
  return work;
}

// A span's values, 32 tokens each, and what is fetched meanwhile.
struct Blocks {
  const uint8_t* values[kSpan / kBlock];
  const uint8_t* const* next;
  int offset;
  const uint8_t* operator()(int k) const { return values[k] + offset; }
  const uint8_t* early(int k, ptrdiff_t = 0) const { return next[k] ? next[k] + offset : nullptr; }
};

// Tiles of codes one after another, and what is fetched meanwhile.
struct Codes {
  const uint8_t* first;
  const uint8_t* next;
  const uint8_t* operator()(int k) const { return first + size_t(k) * kCodeTile; }
  const uint8_t* early(int k) const { return next + size_t(k) * kCodeTile; }
};

template <bool kInt8>
class Attender {
  // Whether what comes next is fetched between products, or while codes are read; or asked for in bursts.
  static constexpr bool kBetween = kInt8 || kFetchesBetween;

 public:
  // `next` is what the same thread attends to after this, or null.
  Attender(const Attention& a, const Unit& unit, const Unit* next, Workspace& work)
      : a_(a), unit_(unit), next_(next), work_(work), group_(a.heads / a.kv_heads) {}

  void run() {
    if (next_ && !kBetween) {
      prefetch(a_.keys, *next_->rows, next_->kv_head, block_begin(begin_of(*next_)));
      prefetch(a_.values, *next_->rows, next_->kv_head, block_begin(begin_of(*next_)));
    }
    for (int at = 0; at < unit_.num_sequences; ++at) {
      if (writes_itself(a_, unit_.rows[at])) write_head(a_, unit_.rows[at], 0, unit_.kv_head);
    }
    const int lines = unit_.lines();
    std::fill_n(work_.best, lines, kNothing);
    std::fill_n(work_.total, lines, 0.0f);
    for (int line = 0; line < lines; ++line) std::fill_n(work_.mixed[line], a_.head_dim, 0.0f);
    if (unit_.shared) attend(0, unit_.num_sequences, 0, unit_.shared);
    for (int at = 0; at < unit_.num_sequences; ++at) {
      attend(at, at + 1, unit_.shared ? unit_.shared : begin_of(unit_), end_of(unit_.rows[at]));
    }
    finish();
  }

 private:
  // The sequences [from, to) of the unit, all at once, to context [begin, end), which lies in the pages of the first.
  void attend(int from, int to, int begin, int end) {
    from_ = from;
    to_ = to;
    begin_ = begin;
    end_ = end;
    const int lines = (to - from) * unit_.num_queries;
    lines_ = {std::min(lines, kRows), std::max(lines - kRows, 0)};
    load_queries();
    for (int at = block_begin(begin_); at < end_; at += kSpan) {
      const int tokens = std::min(kSpan, block_begin(end_ - at + kBlock - 1));
      score(at, tokens);
      if constexpr (kBetween) find_next(at);
      weigh(at, tokens);
      mix(at, tokens);
    }
  }

  int seen_from(int position) const {
    if (a_.window == 0) return 0;
    return a_.chunked ? position / a_.window * a_.window : std::max(0, position - a_.window + 1);
  }

  // The context that a unit sees: from the first of its queries to its last in a sequence.
  int begin_of(const Unit& unit) const {
    return unit.shared ? 0 : seen_from(a_.start[*unit.rows] + unit.first_query / group_);
  }
  int end_of(int row) const { return a_.start[row] + (unit_.first_query + unit_.num_queries - 1) / group_ + 1; }

  // Where the state is of the first line that is attended to now, and the sequence and query of a line.
  int base() const { return from_ * unit_.num_queries; }
  int num_lines() const { return lines_.first + lines_.second; }
  int row_of(int line) const { return unit_.rows[from_ + line / unit_.num_queries]; }
  int flat_of(int line) const { return unit_.first_query + line % unit_.num_queries; }

  void load_queries() {
    const int depth = a_.head_dim / 32;
    alignas(64) uint16_t query[kMaxHeadDim];
    for (int line = 0; line < num_lines(); ++line) {
      const int flat = flat_of(line), token = a_.first[row_of(line)] + flat / group_;
      load_head(a_, token, unit_.kv_head * group_ + flat % group_, a_.q_norm, query);
      for (int tile = 0; tile < depth; ++tile) {
        copy_input(work_.queries + (line / kRows * depth + tile) * kInput + line % kRows * kLine, query + 32 * tile);
      }
    }
  }

  // Scores of `tokens` context tokens from `at`, a multiple of 32 as pages are.
  void score(int at, int tokens) {
    const int depth = a_.head_dim / 32, below = depth * kInput, strip = depth * kTile;
    for (int t = 0; t < tokens; t += kBlock) {
      const uint8_t* keys = block(a_.keys, at + t);
      const uint8_t* values = block(a_.values, at + t);
      float* out = &work_.scores[0][t];
      if constexpr (!kInt8) {
        Fetch fetch;
        if constexpr (kBetween) {
          fetch.near = fetch.next = values - keys;
        } else {
          prefetch(a_.values, row_of(0), unit_.kv_head, at + t);
          if (at + t + a_.page_size < end_) prefetch(a_.keys, row_of(0), unit_.kv_head, at + t + a_.page_size);
        }
        product(work_.queries, below, Strip{keys}, strip, depth, out, kSpan, fetch);
      } else if (num_lines() <= kMostFromCodes) {
        multiply_codes(num_lines(), work_.queries, Codes{keys, values}, depth * kCodeTile, depth, out, kSpan);
      } else {
        unpack(keys, kBlock * a_.head_dim / 64, work_.unpacked, values);
        product(work_.queries, below, Strip{work_.unpacked}, strip, depth, out, kSpan, {});
      }
    }
    if constexpr (kInt8) scale_scores(at, tokens);
  }

  template <typename B>
  void product(const uint8_t* a, size_t a_stride, const B& b, size_t b_stride, int depth, float* out, int columns,
               Fetch fetch) const {
    if (lines_.second) {
      multiply<Depth::kBf16, 2, 2>(a, a_stride, b, b_stride, depth, out, columns, lines_, fetch);
    } else {
      multiply<Depth::kBf16, 1, 2>(a, a_stride, b, b_stride, depth, out, columns, lines_, fetch);
    }
  }

  // So far scores are of codes; scales of what is not attended to may be anything, and become 0.
  void scale_scores(int at, int tokens) {
    for (int t = 0; t < tokens; t += 16) {
      const Mask there = within(at + t, begin_, end_);
      const float* of_keys = scales_of(a_, a_.keys, row_of(0), unit_.kv_head, at + t);
      const float* of_values = scales_of(a_, a_.values, row_of(0), unit_.kv_head, at + t);
      const Floats scale = load_where(there, of_keys);
      store(work_.value_scale + t, load_where(there, of_values));
      for (int line = 0; line < num_lines(); ++line) {
        float* scores = work_.scores[line] + t;
        store(scores, load(scores) * scale);
      }
    }
  }

  const uint8_t* block(uint8_t* pages, int at) const { return block_of(a_, pages, row_of(0), unit_.kv_head, at); }

  // Pages lie anywhere, and the processor's own prefetching starts anew at each: ask for a block early.
  void prefetch(uint8_t* pages, int row, int kv_head, int at) {
    const char* from = reinterpret_cast<const char*>(block_of(a_, pages, row, kv_head, at));
    for (int byte = 0; byte < kBlock * a_.head_dim * 2; byte += 64) _mm_prefetch(from + byte, _MM_HINT_T1);
  }

  // Scores to weights, relative to the largest score so far; what was mixed before shrinks accordingly.
  void weigh(int at, int tokens) {
    for (int line = 0; line < num_lines(); ++line) {
      if (a_.softcap > 0) cap(work_.scores[line], tokens);
      const int position = a_.start[row_of(line)] + flat_of(line) / group_;
      const int from = seen_from(position) - at, to = position - at;
      if (from > 0 || to < tokens - 1) hide(work_.scores[line], tokens, from, to);
      weigh_line(line, tokens);
    }
  }

  // Scores that come out soft-capped once they are scaled.
  void cap(float* scores, int tokens) const {
    const Floats inner = all(2 * a_.scale / a_.softcap), outer = all(a_.softcap / a_.scale);
    for (int t = 0; t < tokens; t += 16) {
      const Floats tangent = fms(sigmoid(load(scores + t) * inner), all(2.0f), all(1.0f));
      store(scores + t, tangent * outer);
    }
  }

  // Scores of what a query does not see, before `from` and after `to`, become -inf.
  void hide(float* scores, int tokens, int from, int to) {
    const auto hide_lanes = [&](int t) {
      store(scores + t, select(within(t, from, to + 1), load(scores + t), all(kNothing)));
    };
    for (int t = 0; t < std::min(from, tokens); t += 16) hide_lanes(t);
    for (int t = std::max(0, to + 1) / 16 * 16; t < tokens; t += 16) hide_lanes(t);
  }

  void weigh_line(int line, int tokens) {
    const float* scores = work_.scores[line];
    uint8_t* row = work_.weights + line / kRows * (kSpan / 32) * kInput + line % kRows * kLine;
    Floats most = max(load(scores), load(scores + 16));
    for (int t = 32; t < tokens; t += 32) most = max(most, max(load(scores + t), load(scores + t + 16)));
    const float factor = a_.scale * kLog2E, before = work_.best[base() + line];
    const float best = std::max(before, largest(most) * factor);
    if (best == kNothing) {  // none of this span is seen
      for (int t = 0; t < tokens; t += 32) std::memset(row + t / 32 * kInput, 0, kLine);
      work_.shrink[line] = 0.0f;
      return;
    }
    const Floats scale = all(factor), shift = all(best);
    Floats weights = all(0.0f);
    for (int t = 0; t < tokens; t += 32) {
      Floats low = power_of_two(fms(load(scores + t), scale, shift));
      Floats high = power_of_two(fms(load(scores + t + 16), scale, shift));
      weights = weights + (low + high);
      if constexpr (kInt8) {
        low = low * load(work_.value_scale + t);
        high = high * load(work_.value_scale + t + 16);
      }
      store_input(row + t / 32 * kInput, 0, low);
      store_input(row + t / 32 * kInput, 16, high);
    }
    const float shrink = before == kNothing ? 0.0f : std::exp2(before - best);
    float& total = work_.total[base() + line];
    total = total * shrink + sum(weights);
    work_.best[base() + line] = best;
    work_.shrink[line] = shrink;
  }

  void mix(int at, int tokens) {
    Blocks b{};
    b.next = next_keys_;
    find_values(at, tokens, b);
    const int blocks = tokens / kBlock;
    const size_t below = kSpan / 32 * kInput;
    float* out = &work_.product[0][0];
    for (int d = 0; d < a_.head_dim; d += 32) {
      b.offset = d / 16 * (kInt8 ? kCodeTile : kTile);
      if constexpr (!kInt8) {
        product(work_.weights, below, b, kTile, blocks, out, kQueries, Fetch{kBetween, kBetween});
      } else if (num_lines() <= kMostFromCodes) {
        multiply_codes(num_lines(), work_.weights, b, kCodeTile, blocks, out, kQueries);
      } else {
        product(work_.weights, below, unpacked(b, blocks), kTile, blocks, out, kQueries, {});
      }
      for (int line = 0; line < num_lines(); ++line) {
        const Floats shrink = all(work_.shrink[line]);
        for (int part = 0; part < 32; part += 16) {
          float* mixed = work_.mixed[base() + line] + d + part;
          store(mixed, fma(load(mixed), shrink, load(&work_.product[line][part])));
        }
      }
    }
  }

  void find_values(int at, int tokens, Blocks& b) {
    int masked = 0;
    for (int t = 0; t < tokens; t += kBlock) {
      const uint8_t*& values = b.values[t / kBlock];
      values = block(a_.values, at + t);
      const bool inside = at + t >= begin_ && at + t + kBlock <= end_;
      if (!kInt8 && !inside) values = mask_values(values, at + t, work_.masked[masked++]);
    }
  }

  // 32 dims of a span's values.
  Blocks unpacked(const Blocks& codes, int blocks) {
    Blocks b{};
    b.next = codes.next;
    for (int k = 0; k < blocks; ++k) {
      uint8_t* to = work_.unpacked + k * 2 * kTile;
      unpack(codes(k), kTile / 64, to, codes.early(k));
      b.values[k] = to;
    }
    return b;
  }

  // Where the keys are that are scored after a span: the next span's, the next sequence's or the next unit's. A line of each
  // block is requested at once, so that the processor has looked up where its memory is before the rest is requested.
  void find_next(int at) {
    std::fill_n(next_keys_, kSpan / kBlock, nullptr);
    int row = row_of(0), head = unit_.kv_head, from = at + kSpan, end = end_;
    const int upcoming = end_ == unit_.shared ? 0 : to_;  // after what all have in common, each from the first on
    if (from >= end && upcoming < unit_.num_sequences) {
      row = unit_.rows[upcoming], from = unit_.shared, end = end_of(row);
    } else if (from >= end) {
      if (!next_) return;
      row = *next_->rows, head = next_->kv_head, from = block_begin(begin_of(*next_)), end = a_.start[row] + 1;
    }
    for (int k = 0; k < kSpan / kBlock && from < end; ++k, from += kBlock) {
      next_keys_[k] = block_of(a_, a_.keys, row, head, from);
      _mm_prefetch(reinterpret_cast<const char*>(next_keys_[k]), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(block_of(a_, a_.values, row, head, from)), _MM_HINT_T1);
      if constexpr (kInt8) {
        for (uint8_t* pages : {a_.keys, a_.values}) {
          const char* scales = reinterpret_cast<const char*>(scales_of(a_, pages, row, head, from));
          _mm_prefetch(scales, _MM_HINT_T1);
          _mm_prefetch(scales + 64, _MM_HINT_T1);
        }
      }
    }
  }

  // A copy of 32 tokens' values without those that no query sees: leftovers may be NaN, which zero weights do not remove. (Codes
  // are finite, whatever they are.)
  const uint8_t* mask_values(const uint8_t* block, int at, uint16_t* to) {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(block);
    for (int pair = 0; pair < 16; ++pair) {
      const int token = at + 2 * pair;
      const bool even = token >= begin_ && token < end_, odd = token + 1 >= begin_ && token + 1 < end_;
      const Ints keep = all(static_cast<int32_t>((even ? 0x0000FFFFu : 0u) | (odd ? 0xFFFF0000u : 0u)));
      for (int tile = 0; tile < a_.head_dim / 16; ++tile) {
        const size_t line = size_t(tile) * (kTile / 2) + 32 * pair;
        store_line(to + line, both(keep, load_line(values + line)));
      }
    }
    return reinterpret_cast<const uint8_t*>(to);
  }

  void finish() {
    for (int line = 0; line < unit_.lines(); ++line) {
      const int row = unit_.rows[line / unit_.num_queries], flat = flat_of(line);
      const int token = a_.first[row] + flat / group_, head = unit_.kv_head * group_ + flat % group_;
      uint16_t* out = a_.out + (size_t(token) * a_.heads + head) * a_.head_dim;
      const Floats inverse = all(1.0f / work_.total[line]);
      for (int d = 0; d < a_.head_dim; d += 16) store_bf16(out + d, load(work_.mixed[line] + d) * inverse);
    }
  }

  const Attention& a_;
  const Unit& unit_;
  const Unit* next_;
  Workspace& work_;
  const int group_;
  // What is attended to now: sequences of the unit, context, and lines.
  int from_ = 0, to_ = 0, begin_ = 0, end_ = 0;
  LiveRows lines_{};
  // Where the keys of the span after this one are.
  const uint8_t* next_keys_[kSpan / kBlock] = {};
};

// Padding beside tokens is read by the next product, which takes kRows at a time: it must hold numbers.
void clear_beside(const Attention& a) {
  std::vector<char> real(a.tokens);
  for (int row = 0; row < a.rows; ++row) std::fill_n(real.begin() + a.first[row], a.length[row], 1);
  const size_t size = size_t(a.heads) * a.head_dim;
  for (int tile = 0; tile < a.tokens; tile += kRows) {
    const int end = std::min(tile + kRows, a.tokens);
    if (std::find(real.begin() + tile, real.begin() + end, 1) == real.begin() + end) continue;
    for (int token = tile; token < end; ++token) {
      if (!real[token]) std::fill_n(a.out + token * size, size, 0);
    }
  }
}

}  // namespace

void run(const Attention& a) {
  ThreadPool& pool = ThreadPool::get();
  const int threads = pool.size();
  const Units plan(a, threads);
  const std::vector<Token>& tokens = plan.tokens;
  const std::vector<Unit>& units = plan.units;
  if (plan.num_tokens < a.tokens) clear_beside(a);
  constexpr int kTokens = 4;
  pool.run((static_cast<int>(tokens.size()) + kTokens - 1) / kTokens, [&](Pieces& writes) {
    for (int index; writes.take(index);) {
      const size_t end = std::min(tokens.size(), size_t(index + 1) * kTokens);
      for (size_t at = size_t(index) * kTokens; at < end; ++at) {
        for (int head = 0; head < a.kv_heads; ++head) write_head(a, tokens[at].row, tokens[at].index, head);
      }
    }
  });
  const int count = static_cast<int>(units.size());
  // Where there are many units, each is claimed while the one before is attended to, so that its memory is on its way.
  const bool early = count >= 4 * threads;
  pool.run(count, [&](Pieces& pieces) {
    TileScope tiles;
    Workspace& work = own_workspace();
    const auto take = [&] {
      int index;
      return pieces.take(index) ? &units[index] : nullptr;
    };
    for (const Unit* unit = take(); unit;) {
      const Unit* next = early ? take() : nullptr;
      if (a.int8) {
        Attender<true>(a, *unit, next, work).run();
      } else {
        Attender<false>(a, *unit, next, work).run();
      }
      unit = early ? next : take();
    }
  });
}

}  // namespace asurge
