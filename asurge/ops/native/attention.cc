#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pool.h"
#include "tiles.h"

namespace asurge {
namespace {

constexpr int kSpan = 256;             // context tokens between two looks at the running maximum
constexpr int kQueries = 2 * kRows;    // query rows computed together
constexpr int kMaxHeadDim = 256;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// One head of one token: normalised and rotated, as the reference rounds it.
void load_head(const Attention& a, int token, int head, const uint16_t* norm, uint16_t* to) {
  const int dim = a.head_dim, half = dim / 2;
  const uint16_t* x = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + head) * dim;
  alignas(64) uint16_t normed[kMaxHeadDim];
  if (norm) {
    __m512 sum = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 16) sum = _mm512_fmadd_ps(load_bf16(x + d), load_bf16(x + d), sum);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / dim + a.epsilon));
    for (int d = 0; d < dim; d += 16) {
      const __m512 value = round_bf16(_mm512_mul_ps(load_bf16(x + d), factor));
      store_bf16(normed + d, _mm512_mul_ps(value, load_bf16(norm + d)));
    }
    x = normed;
  }
  const float* cosine = a.cosine + size_t(token) * half;
  const float* sine = a.sine + size_t(token) * half;
  for (int d = 0; d < half; d += 16) {
    const __m512 first = load_bf16(x + d), second = load_bf16(x + half + d);
    const __m512 c = _mm512_loadu_ps(cosine + d), s = _mm512_loadu_ps(sine + d);
    store_bf16(to + d, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
    store_bf16(to + half + d, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
  }
}

size_t page_offset(const Attention& a, int row, int position, int kv_head) {
  const int page = a.page_table[size_t(row) * a.columns + position / a.page_size];
  return (size_t(page) * a.kv_heads + kv_head) * a.page_size * a.head_dim;
}

void write_token(const Attention& a, int row, int index) {
  const int token = a.first[row] + index, position = a.start[row] + index;
  const int offset = position % a.page_size, dim = a.head_dim;
  for (int head = 0; head < a.kv_heads; ++head) {
    alignas(64) uint32_t key[kMaxHeadDim / 2];
    load_head(a, token, a.heads + head, a.k_norm, reinterpret_cast<uint16_t*>(key));
    const size_t page = page_offset(a, row, position, head);
    uint32_t* keys = reinterpret_cast<uint32_t*>(a.keys + page) + offset / 16 * (dim / 2) * 16 + offset % 16;
    for (int pair = 0; pair < dim / 2; ++pair) keys[pair * 16] = key[pair];
    const uint16_t* value = a.qkv + (size_t(token) * (a.heads + 2 * a.kv_heads) + a.heads + a.kv_heads + head) * dim;
    uint16_t* values = a.values + page + size_t(offset / 32) * 32 * dim + offset % 32 / 2 * 32 + offset % 2;
    for (int d = 0; d < dim; ++d) values[d / 16 * (kTile / 2) + d % 16 * 2] = value[d];
  }
}

// Query rows of one KV head that share a sequence: row i is query i / group, head i % group.
struct Unit {
  int row, kv_head, first, count;
};

struct Workspace {
  alignas(64) float scores[kQueries][kSpan];
  alignas(64) float product[kQueries][kQueries];
  alignas(64) float mixed[kQueries][kMaxHeadDim];
  alignas(64) uint8_t queries[2 * kMaxHeadDim / 32 * kTile];
  alignas(64) uint8_t weights[2 * kSpan / 32 * kTile];
  alignas(64) uint16_t masked[32 * kMaxHeadDim];
  float best[kQueries], total[kQueries];
};

// Not inlined: each use of a thread-local variable would look it up again.
__attribute__((noinline)) Workspace& own_workspace() {
  thread_local Workspace work;
  return work;
}

class Attender {
 public:
  Attender(const Attention& a, const Unit& unit, Workspace& work)
      : a_(a), unit_(unit), work_(work), group_(a.heads / a.kv_heads), two_(unit.count > kRows) {
    start_ = a.start[unit.row];
    const int last = start_ + (unit.first + unit.count - 1) / group_;
    begin_ = seen_from(start_ + unit.first / group_);
    end_ = last + 1;
  }

  void run() {
    load_queries();
    std::fill_n(work_.best, unit_.count, kNothing);
    std::fill_n(work_.total, unit_.count, 0.0f);
    for (int line = 0; line < unit_.count; ++line) std::fill_n(work_.mixed[line], a_.head_dim, 0.0f);
    for (int at = begin_ / 32 * 32; at < end_; at += kSpan) {
      const int tokens = std::min(kSpan, (end_ - at + 31) / 32 * 32);
      score(at, tokens);
      weigh(at, tokens);
      mix(at, tokens);
    }
    store();
  }

 private:
  int seen_from(int position) const { return a_.window ? std::max(0, position - a_.window + 1) : 0; }

  void load_queries() {
    const int depth = a_.head_dim / 32;
    alignas(64) uint16_t query[kMaxHeadDim];
    for (int line = 0; line < unit_.count; ++line) {
      const int flat = unit_.first + line;
      load_head(a_, a_.first[unit_.row] + flat / group_, unit_.kv_head * group_ + flat % group_, a_.q_norm, query);
      for (int tile = 0; tile < depth; ++tile) {
        uint8_t* to = work_.queries + (line / kRows * depth + tile) * kTile + line % kRows * 64;
        std::memcpy(to, query + 32 * tile, 64);
      }
    }
  }

  // Scores of `tokens` context tokens from `at`, a multiple of 32 as pages are.
  void score(int at, int tokens) {
    const int depth = a_.head_dim / 32, strip = depth * kTile;
    for (int t = 0; t < tokens; t += 32) {
      const uint8_t* keys = reinterpret_cast<const uint8_t*>(
          a_.keys + page_offset(a_, unit_.row, at + t, unit_.kv_head) + size_t((at + t) % a_.page_size) * a_.head_dim);
      prefetch(a_.values, at + t);
      if (at + t + a_.page_size < end_) prefetch(a_.keys, at + t + a_.page_size);
      float* out = &work_.scores[0][t];
      if (two_) {
        multiply<Depth::kBf16, 2, 2>(work_.queries, strip, keys, strip, depth, kTile, kTile, out, kSpan);
      } else {
        multiply<Depth::kBf16, 1, 2>(work_.queries, strip, keys, strip, depth, kTile, kTile, out, kSpan);
      }
    }
  }

  // Pages lie anywhere, and the processor's own prefetching starts anew at each: ask for 32 tokens' worth early.
  void prefetch(const uint16_t* pages, int at) {
    const char* from = reinterpret_cast<const char*>(pages + page_offset(a_, unit_.row, at, unit_.kv_head) +
                                                     size_t(at % a_.page_size) * a_.head_dim);
    for (int byte = 0; byte < 32 * a_.head_dim * 2; byte += 64) _mm_prefetch(from + byte, _MM_HINT_T1);
  }

  // Scores to weights against the largest score so far; what was mixed before shrinks accordingly.
  void weigh(int at, int tokens) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 nothing = _mm512_set1_ps(kNothing), scale = _mm512_set1_ps(a_.scale);
    for (int line = 0; line < unit_.count; ++line) {
      const int position = start_ + (unit_.first + line) / group_;
      const __m512i from = _mm512_set1_epi32(seen_from(position) - at), to = _mm512_set1_epi32(position - at);
      float* scores = work_.scores[line];
      __m512 most = nothing;
      for (int t = 0; t < tokens; t += 16) {
        const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(t));
        const __mmask16 seen = _mm512_cmpge_epi32_mask(index, from) & _mm512_cmple_epi32_mask(index, to);
        const __m512 value = _mm512_mask_mul_ps(nothing, seen, _mm512_load_ps(scores + t), scale);
        _mm512_store_ps(scores + t, value);
        most = _mm512_max_ps(most, value);
      }
      const float before = work_.best[line], best = std::max(before, _mm512_reduce_max_ps(most));
      uint8_t* row = work_.weights + line / kRows * (kSpan / 32) * kTile + line % kRows * 64;
      if (best == kNothing) {  // none of this span is seen
        for (int t = 0; t < tokens; t += 32) std::memset(row + t / 32 * kTile, 0, 64);
        continue;
      }
      const __m512 shift = _mm512_set1_ps(best);
      __m512 sum = _mm512_setzero_ps();
      for (int t = 0; t < tokens; t += 16) {
        const __m512 value = _mm512_load_ps(scores + t);
        const __mmask16 seen = _mm512_cmp_ps_mask(value, nothing, _CMP_NEQ_UQ);
        const __m512 weight = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(value, shift)));
        sum = _mm512_add_ps(sum, weight);
        store_bf16(reinterpret_cast<uint16_t*>(row + t / 32 * kTile) + t % 32, weight);
      }
      const float shrink = before == kNothing ? 0.0f : std::exp(before - best);
      work_.total[line] = work_.total[line] * shrink + _mm512_reduce_add_ps(sum);
      work_.best[line] = best;
      if (shrink != 1.0f) {
        for (int d = 0; d < a_.head_dim; d += 16) {
          float* mixed = work_.mixed[line] + d;
          _mm512_store_ps(mixed, _mm512_mul_ps(_mm512_load_ps(mixed), _mm512_set1_ps(shrink)));
        }
      }
    }
  }

  void mix(int at, int tokens) {
    // A page is the longest run of values in one place; a tile pair of dims at a time stays in registers over it.
    for (int t = 0; t < tokens;) {
      const int offset = (at + t) % a_.page_size;
      int run = std::min(tokens - t, a_.page_size - offset);
      const uint16_t* values = a_.values + page_offset(a_, unit_.row, at + t, unit_.kv_head) + size_t(offset) * a_.head_dim;
      if (at + t < begin_ || at + t + 32 > end_) {
        run = 32;
        values = mask_values(values, at + t);
      } else if (at + t + run > end_) {
        run -= 32;  // the last block is masked by itself
      }
      mix_run(values, t, run);
      t += run;
    }
  }

  // A copy of 32 tokens' values without those nobody sees: leftovers may be NaN, which zero weights do not remove.
  const uint16_t* mask_values(const uint16_t* values, int at) {
    for (int pair = 0; pair < 16; ++pair) {
      const int token = at + 2 * pair;
      const bool even = token >= begin_ && token < end_, odd = token + 1 >= begin_ && token + 1 < end_;
      const __mmask32 keep = (even ? 0x55555555u : 0u) | (odd ? 0xAAAAAAAAu : 0u);
      for (int tile = 0; tile < a_.head_dim / 16; ++tile) {
        const size_t line = size_t(tile) * (kTile / 2) + 32 * pair;
        _mm512_store_si512(work_.masked + line, _mm512_maskz_loadu_epi16(keep, values + line));
      }
    }
    return work_.masked;
  }

  void mix_run(const uint16_t* values, int t, int run) {
    const size_t step = size_t(32) * a_.head_dim * 2, weight_strip = kSpan / 32 * kTile;
    const uint8_t* weights = work_.weights + t / 32 * kTile;
    float* out = &work_.product[0][0];
    for (int d = 0; d < a_.head_dim; d += 32) {
      const uint8_t* from = reinterpret_cast<const uint8_t*>(values) + d / 16 * kTile;
      if (two_) {
        multiply<Depth::kBf16, 2, 2>(weights, weight_strip, from, kTile, run / 32, kTile, step, out, kQueries);
      } else {
        multiply<Depth::kBf16, 1, 2>(weights, weight_strip, from, kTile, run / 32, kTile, step, out, kQueries);
      }
      for (int line = 0; line < unit_.count; ++line) {
        for (int part = 0; part < 32; part += 16) {
          float* mixed = work_.mixed[line] + d + part;
          _mm512_store_ps(mixed, _mm512_add_ps(_mm512_load_ps(mixed), _mm512_load_ps(&work_.product[line][part])));
        }
      }
    }
  }

  void store() {
    for (int line = 0; line < unit_.count; ++line) {
      const int flat = unit_.first + line;
      const int token = a_.first[unit_.row] + flat / group_, head = unit_.kv_head * group_ + flat % group_;
      uint16_t* out = a_.out + (size_t(token) * a_.heads + head) * a_.head_dim;
      const __m512 inverse = _mm512_set1_ps(1.0f / work_.total[line]);
      for (int d = 0; d < a_.head_dim; d += 16) {
        store_bf16(out + d, _mm512_mul_ps(_mm512_load_ps(work_.mixed[line] + d), inverse));
      }
    }
  }

  const Attention& a_;
  const Unit& unit_;
  Workspace& work_;
  const int group_;
  const bool two_;
  int start_, begin_, end_;
};

}  // namespace

void run(const Attention& a) {
  const int group = a.heads / a.kv_heads;
  struct Token {
    int row, index;
  };
  std::vector<Token> tokens;
  std::vector<Unit> units;
  // The last rows are prefill chunks, and of a chunk the last queries see most: the longest units go first.
  for (int row = a.rows - 1; row >= 0; --row) {
    for (int index = 0; index < a.length[row]; ++index) tokens.push_back({row, index});
    const int flat = a.length[row] * group;
    for (int head = 0; head < a.kv_heads; ++head) {
      for (int first = (flat - 1) / kQueries * kQueries; flat > 0 && first >= 0; first -= kQueries) {
        units.push_back({row, head, first, std::min(kQueries, flat - first)});
      }
    }
  }
  // Padding is read by the next product: it must hold numbers.
  if (static_cast<int>(tokens.size()) < a.tokens) std::memset(a.out, 0, size_t(a.tokens) * a.heads * a.head_dim * 2);
  constexpr int kTokens = 4;
  Tickets writes((static_cast<int>(tokens.size()) + kTokens - 1) / kTokens), attends(static_cast<int>(units.size()));
  Pool::get().run([&](int, Team& team) {
    int index;
    while (writes.take(index)) {
      const size_t end = std::min(tokens.size(), size_t(index + 1) * kTokens);
      for (size_t at = size_t(index) * kTokens; at < end; ++at) write_token(a, tokens[at].row, tokens[at].index);
    }
    team.barrier();
    TileScope tiles;
    Workspace& work = own_workspace();
    while (attends.take(index)) Attender(a, units[index], work).run();
  });
}

}  // namespace asurge
