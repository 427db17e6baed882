// Paged attention: FlashAttention (Dao et al. 2022) over KV pages, one task of `attention_tasks.h` after another.
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
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// What a thread keeps between tasks.
struct Workspace {
  alignas(64) float scores[kQueries][kSpan];
  alignas(64) float product[kQueries][kQueries];
  alignas(64) float accumulator[kQueries][kMaxHeadDim];  // weighted values so far, not yet divided by `running_sum`
  alignas(64) uint8_t queries[2 * kMaxHeadDim / 32 * kInput];
  alignas(64) uint8_t weights[2 * kSpan / 32 * kInput];
  // Copies of the first and last values of a span, with zeros for tokens outside of the context.
  alignas(64) uint16_t masked[2][kBlock * kMaxHeadDim];
  // For int8 pages: keys of 32 tokens, or 32 dims of a span's values, converted to bf16; and the scales of the span's values.
  alignas(64) uint8_t unpacked[std::max(kMaxHeadDim, kSpan) * kBlock * 2];
  alignas(64) float value_scale[kSpan];
  // State of the online softmax, in units of score * scale * log2(e). `rescale` is what the last span multiplied older sums by.
  float running_max[kQueries], running_sum[kQueries], rescale[kQueries];
};

// Not inlined: each use of a thread-local variable would look it up again.
__attribute__((noinline)) Workspace& own_workspace() {
  thread_local Workspace work;
  return work;
}

// The B operand of weights @ values: tiles of 32 tokens each, and the tiles to prefetch meanwhile.
struct ValueTiles {
  const uint8_t* values[kSpan / kBlock];
  const uint8_t* const* next;
  int offset;
  const uint8_t* operator()(int k) const { return values[k] + offset; }
  const uint8_t* early(int k, ptrdiff_t = 0) const { return next[k] ? next[k] + offset : nullptr; }
};

// The B operand of queries @ keys for int8 pages: tiles one after another, and the tiles to prefetch meanwhile.
struct KeyCodes {
  const uint8_t* first;
  const uint8_t* next;
  const uint8_t* operator()(int k) const { return first + size_t(k) * kCodeTile; }
  const uint8_t* early(int k) const { return next + size_t(k) * kCodeTile; }
};

// Computes one task with an online softmax: the context is read span by span, and what is accumulated is rescaled whenever the
// running maximum grows.
template <bool kInt8>
class FlashAttention {
  // Whether the next span is prefetched between products (or while codes are read), instead of in bursts.
  static constexpr bool kPrefetchesBetween = kInt8 || kFetchesBetween;

 public:
  // `next` is the task that the same thread computes after this one, or null.
  FlashAttention(const Attention& a, const AttentionTask& task, const AttentionTask* next, Workspace& work)
      : a_(a), task_(task), next_(next), work_(work), group_(a.heads / a.kv_heads) {}

  void compute() {
    if (next_ && !kPrefetchesBetween) {
      prefetch(a_.keys, *next_->rows, next_->kv_head, block_begin(context_begin(*next_)));
      prefetch(a_.values, *next_->rows, next_->kv_head, block_begin(context_begin(*next_)));
    }
    for (int at = 0; at < task_.num_sequences; ++at) {
      if (writes_own_token(a_, task_.rows[at])) write_kv_head(a_, task_.rows[at], 0, task_.kv_head);
    }
    const int queries = task_.num_query_rows();
    std::fill_n(work_.running_max, queries, kMinusInfinity);
    std::fill_n(work_.running_sum, queries, 0.0f);
    for (int query = 0; query < queries; ++query) std::fill_n(work_.accumulator[query], a_.head_dim, 0.0f);
    if (task_.shared) attend(0, task_.num_sequences, 0, task_.shared);
    for (int at = 0; at < task_.num_sequences; ++at) {
      attend(at, at + 1, task_.shared ? task_.shared : context_begin(task_), context_end(task_.rows[at]));
    }
    write_output();
  }

 private:
  // Attention of the sequences [from, to) of the task together to context [begin, end), read from the pages of the first.
  void attend(int from, int to, int begin, int end) {
    from_ = from;
    to_ = to;
    begin_ = begin;
    end_ = end;
    const int queries = (to - from) * task_.num_queries;
    live_ = {std::min(queries, kRows), std::max(queries - kRows, 0)};
    load_queries();
    for (int at = block_begin(begin_); at < end_; at += kSpan) {
      const int tokens = std::min(kSpan, block_begin(end_ - at + kBlock - 1));
      compute_scores(at, tokens);
      if constexpr (kPrefetchesBetween) find_next_keys(at);
      softmax(at, tokens);
      accumulate_values(at, tokens);
    }
  }

  int window_begin(int position) const {
    if (a_.window == 0) return 0;
    return a_.chunked ? position / a_.window * a_.window : std::max(0, position - a_.window + 1);
  }

  // The context of a task: from what its first query sees to the position of its last query in a sequence.
  int context_begin(const AttentionTask& task) const {
    return task.shared ? 0 : window_begin(a_.start[*task.rows] + task.first_query / group_);
  }
  int context_end(int row) const { return a_.start[row] + (task_.first_query + task_.num_queries - 1) / group_ + 1; }

  // Of the query rows that `attend` computes now: index of the first in the softmax state, their number, and the sequence and the
  // index in the sequence (token * group + head) of each.
  int first_state() const { return from_ * task_.num_queries; }
  int num_live() const { return live_.first + live_.second; }
  int row_of(int query) const { return task_.rows[from_ + query / task_.num_queries]; }
  int flat_query(int query) const { return task_.first_query + query % task_.num_queries; }

  void load_queries() {
    const int depth = a_.head_dim / 32;
    alignas(64) uint16_t rotated[kMaxHeadDim];
    for (int query = 0; query < num_live(); ++query) {
      const int flat = flat_query(query), token = a_.first[row_of(query)] + flat / group_;
      norm_and_rope(a_, token, task_.kv_head * group_ + flat % group_, a_.q_norm, rotated);
      for (int tile = 0; tile < depth; ++tile) {
        copy_input(work_.queries + (query / kRows * depth + tile) * kInput + query % kRows * kLine, rotated + 32 * tile);
      }
    }
  }

  // Scores of `tokens` context tokens from position `at`, a multiple of 32 as page sizes are.
  void compute_scores(int at, int tokens) {
    const int depth = a_.head_dim / 32, below = depth * kInput, strip = depth * kTile;
    for (int t = 0; t < tokens; t += kBlock) {
      const uint8_t* keys = block(a_.keys, at + t);
      const uint8_t* values = block(a_.values, at + t);
      float* out = &work_.scores[0][t];
      if constexpr (!kInt8) {
        Fetch fetch;
        if constexpr (kPrefetchesBetween) {
          fetch.near = fetch.next = values - keys;
        } else {
          prefetch(a_.values, row_of(0), task_.kv_head, at + t);
          if (at + t + a_.page_size < end_) prefetch(a_.keys, row_of(0), task_.kv_head, at + t + a_.page_size);
        }
        product(work_.queries, below, Strip{keys}, strip, depth, out, kSpan, fetch);
      } else if (num_live() <= kMostFromCodes) {
        multiply_codes(num_live(), work_.queries, KeyCodes{keys, values}, depth * kCodeTile, depth, out, kSpan);
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
    if (live_.second) {
      multiply<Depth::kBf16, 2, 2>(a, a_stride, b, b_stride, depth, out, columns, live_, fetch);
    } else {
      multiply<Depth::kBf16, 1, 2>(a, a_stride, b, b_stride, depth, out, columns, live_, fetch);
    }
  }

  // Multiplies scores by the keys' scales. Scales of tokens outside of the context may be anything: they become 0.
  void scale_scores(int at, int tokens) {
    for (int t = 0; t < tokens; t += 16) {
      const Mask valid = within(at + t, begin_, end_);
      const float* of_keys = scales_from(a_, a_.keys, row_of(0), task_.kv_head, at + t);
      const float* of_values = scales_from(a_, a_.values, row_of(0), task_.kv_head, at + t);
      const Floats scale = load_where(valid, of_keys);
      store(work_.value_scale + t, load_where(valid, of_values));
      for (int query = 0; query < num_live(); ++query) {
        float* scores = work_.scores[query] + t;
        store(scores, load(scores) * scale);
      }
    }
  }

  const uint8_t* block(uint8_t* pages, int at) const { return block_of(a_, pages, row_of(0), task_.kv_head, at); }

  // Prefetches a block of a page: pages lie anywhere, and the hardware prefetcher starts anew at each.
  void prefetch(uint8_t* pages, int row, int kv_head, int at) {
    const char* from = reinterpret_cast<const char*>(block_of(a_, pages, row, kv_head, at));
    for (int byte = 0; byte < kBlock * a_.head_dim * 2; byte += 64) _mm_prefetch(from + byte, _MM_HINT_T1);
  }

  // One update of the online softmax: scores become weights relative to the running maximum.
  void softmax(int at, int tokens) {
    for (int query = 0; query < num_live(); ++query) {
      if (a_.softcap > 0) soft_cap(work_.scores[query], tokens);
      const int position = a_.start[row_of(query)] + flat_query(query) / group_;
      const int from = window_begin(position) - at, to = position - at;
      if (from > 0 || to < tokens - 1) mask_scores(work_.scores[query], tokens, from, to);
      softmax_row(query, tokens);
    }
  }

  // Soft-caps scores that are not yet scaled: scale * result = softcap * tanh(scale * score / softcap).
  void soft_cap(float* scores, int tokens) const {
    const Floats inner = all(2 * a_.scale / a_.softcap), outer = all(a_.softcap / a_.scale);
    for (int t = 0; t < tokens; t += 16) {
      const Floats tangent = fms(sigmoid(load(scores + t) * inner), all(2.0f), all(1.0f));
      store(scores + t, tangent * outer);
    }
  }

  // The causal mask and the window: scores before `from` and after `to` become -inf.
  void mask_scores(float* scores, int tokens, int from, int to) {
    const auto mask_lanes = [&](int t) {
      store(scores + t, select(within(t, from, to + 1), load(scores + t), all(kMinusInfinity)));
    };
    for (int t = 0; t < std::min(from, tokens); t += 16) mask_lanes(t);
    for (int t = std::max(0, to + 1) / 16 * 16; t < tokens; t += 16) mask_lanes(t);
  }

  void softmax_row(int query, int tokens) {
    const float* scores = work_.scores[query];
    uint8_t* row = work_.weights + query / kRows * (kSpan / 32) * kInput + query % kRows * kLine;
    Floats most = max(load(scores), load(scores + 16));
    for (int t = 32; t < tokens; t += 32) most = max(most, max(load(scores + t), load(scores + t + 16)));
    const float factor = a_.scale * kLog2E, before = work_.running_max[first_state() + query];
    const float running_max = std::max(before, largest(most) * factor);
    if (running_max == kMinusInfinity) {  // the whole span is masked
      for (int t = 0; t < tokens; t += 32) std::memset(row + t / 32 * kInput, 0, kLine);
      work_.rescale[query] = 0.0f;
      return;
    }
    const Floats scale = all(factor), shift = all(running_max);
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
    const float rescale = before == kMinusInfinity ? 0.0f : std::exp2(before - running_max);
    float& running_sum = work_.running_sum[first_state() + query];
    running_sum = running_sum * rescale + sum(weights);
    work_.running_max[first_state() + query] = running_max;
    work_.rescale[query] = rescale;
  }

  void accumulate_values(int at, int tokens) {
    ValueTiles b{};
    b.next = next_keys_;
    find_value_tiles(at, tokens, b);
    const int blocks = tokens / kBlock;
    const size_t below = kSpan / 32 * kInput;
    float* out = &work_.product[0][0];
    for (int d = 0; d < a_.head_dim; d += 32) {
      b.offset = d / 16 * (kInt8 ? kCodeTile : kTile);
      if constexpr (!kInt8) {
        product(work_.weights, below, b, kTile, blocks, out, kQueries, Fetch{kPrefetchesBetween, kPrefetchesBetween});
      } else if (num_live() <= kMostFromCodes) {
        multiply_codes(num_live(), work_.weights, b, kCodeTile, blocks, out, kQueries);
      } else {
        product(work_.weights, below, unpacked(b, blocks), kTile, blocks, out, kQueries, {});
      }
      for (int query = 0; query < num_live(); ++query) {
        const Floats rescale = all(work_.rescale[query]);
        for (int part = 0; part < 32; part += 16) {
          float* accumulator = work_.accumulator[first_state() + query] + d + part;
          store(accumulator, fma(load(accumulator), rescale, load(&work_.product[query][part])));
        }
      }
    }
  }

  void find_value_tiles(int at, int tokens, ValueTiles& b) {
    int masked = 0;
    for (int t = 0; t < tokens; t += kBlock) {
      const uint8_t*& values = b.values[t / kBlock];
      values = block(a_.values, at + t);
      const bool inside = at + t >= begin_ && at + t + kBlock <= end_;
      if (!kInt8 && !inside) values = mask_values(values, at + t, work_.masked[masked++]);
    }
  }

  // Converts 32 dims of a span's values from int8 to bf16.
  ValueTiles unpacked(const ValueTiles& codes, int blocks) {
    ValueTiles b{};
    b.next = codes.next;
    for (int k = 0; k < blocks; ++k) {
      uint8_t* to = work_.unpacked + k * 2 * kTile;
      unpack(codes(k), kTile / 64, to, codes.early(k));
      b.values[k] = to;
    }
    return b;
  }

  // Finds the keys that are read after this span: the next span's, the next sequence's or the next task's. A cache line of each
  // block is prefetched at once, so that the TLB has the block's address before the rest is requested.
  void find_next_keys(int at) {
    std::fill_n(next_keys_, kSpan / kBlock, nullptr);
    int row = row_of(0), head = task_.kv_head, from = at + kSpan, end = end_;
    const int upcoming = end_ == task_.shared ? 0 : to_;  // after the shared prefix, each sequence from the first on
    if (from >= end && upcoming < task_.num_sequences) {
      row = task_.rows[upcoming], from = task_.shared, end = context_end(row);
    } else if (from >= end) {
      if (!next_) return;
      row = *next_->rows, head = next_->kv_head, from = block_begin(context_begin(*next_)), end = a_.start[row] + 1;
    }
    for (int k = 0; k < kSpan / kBlock && from < end; ++k, from += kBlock) {
      next_keys_[k] = block_of(a_, a_.keys, row, head, from);
      _mm_prefetch(reinterpret_cast<const char*>(next_keys_[k]), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(block_of(a_, a_.values, row, head, from)), _MM_HINT_T1);
      if constexpr (kInt8) {
        for (uint8_t* pages : {a_.keys, a_.values}) {
          const char* scales = reinterpret_cast<const char*>(scales_from(a_, pages, row, head, from));
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

  void write_output() {
    for (int query = 0; query < task_.num_query_rows(); ++query) {
      const int row = task_.rows[query / task_.num_queries], flat = flat_query(query);
      const int token = a_.first[row] + flat / group_, head = task_.kv_head * group_ + flat % group_;
      uint16_t* out = a_.out + (size_t(token) * a_.heads + head) * a_.head_dim;
      const Floats inverse = all(1.0f / work_.running_sum[query]);
      for (int d = 0; d < a_.head_dim; d += 16) store_bf16(out + d, load(work_.accumulator[query] + d) * inverse);
    }
  }

  const Attention& a_;
  const AttentionTask& task_;
  const AttentionTask* next_;
  Workspace& work_;
  const int group_;
  // What `attend` computes now: sequences of the task, context, and query rows.
  int from_ = 0, to_ = 0, begin_ = 0, end_ = 0;
  LiveRows live_{};
  // Keys of the next span, by block, or null.
  const uint8_t* next_keys_[kSpan / kBlock] = {};
};

// Zeroes padding in tiles that have tokens: the next product reads whole tiles of kRows, and must not find NaN.
void zero_padding(const Attention& a) {
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

void paged_attention(const Attention& a) {
  ThreadPool& pool = ThreadPool::get();
  const int threads = pool.size();
  const TaskList list(a, threads);
  const std::vector<NewToken>& tokens = list.tokens;
  const std::vector<AttentionTask>& tasks = list.tasks;
  if (list.num_tokens < a.tokens) zero_padding(a);
  constexpr int kTokens = 4;
  pool.run((static_cast<int>(tokens.size()) + kTokens - 1) / kTokens, [&](Pieces& writes) {
    for (int index; writes.take(index);) {
      const size_t end = std::min(tokens.size(), size_t(index + 1) * kTokens);
      for (size_t at = size_t(index) * kTokens; at < end; ++at) {
        for (int head = 0; head < a.kv_heads; ++head) write_kv_head(a, tokens[at].row, tokens[at].index, head);
      }
    }
  });
  const int count = static_cast<int>(tasks.size());
  // Where there are many tasks, each is claimed while the one before is computed, so that its memory is prefetched.
  const bool early = count >= 4 * threads;
  pool.run(count, [&](Pieces& pieces) {
    TileScope tiles;
    Workspace& work = own_workspace();
    const auto take = [&] {
      int index;
      return pieces.take(index) ? &tasks[index] : nullptr;
    };
    for (const AttentionTask* task = take(); task;) {
      const AttentionTask* next = early ? take() : nullptr;
      if (a.int8) {
        FlashAttention<true>(a, *task, next, work).compute();
      } else {
        FlashAttention<false>(a, *task, next, work).compute();
      }
      task = early ? next : take();
    }
  });
}

}  // namespace asurge
