#include "attention_tasks.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace asurge {
namespace {

const int* pages_of(const Attention& a, int row) { return a.page_table + size_t(row) * a.columns; }

// Pages that were full before this step.
int full_pages(const Attention& a, int row) { return std::min(a.start[row] / a.page_size, a.columns); }

// Tokens of context, in whole spans, that two sequences have in common.
int common(const Attention& a, int row, int other) {
  const int* pages = pages_of(a, row);
  const int most = std::min(full_pages(a, row), full_pages(a, other));
  const auto differ = std::mismatch(pages, pages + most, pages_of(a, other)).first;
  return static_cast<int>(differ - pages) * a.page_size / kSpan * kSpan;
}

}  // namespace

// Prefill chunks are the last rows, and the last queries of a chunk see most. Sequences that generate follow: those that share
// their beginning first, as they take longer together.
Units::Units(const Attention& a, int threads) : sequences_(a.rows) {
  const int group = a.heads / a.kv_heads;
  std::iota(sequences_.begin(), sequences_.end(), 0);
  for (int row = 0; row < a.rows; ++row) {
    num_tokens += a.length[row];
    if (writes_itself(a, row)) continue;
    for (int index = 0; index < a.length[row]; ++index) tokens.push_back({row, index});
  }
  const bool shares = a.window == 0 && group <= kRows;
  const auto waits = [&](int row) { return shares && a.length[row] == 1; };
  const auto generating = std::stable_partition(sequences_.begin(), sequences_.end(), waits);
  for (auto at = sequences_.end(); at-- != generating;) {
    const int flat = a.length[*at] * group;
    for (int head = 0; head < a.kv_heads; ++head) {
      for (int first = (flat - 1) / kQueries * kQueries; flat > 0 && first >= 0; first -= kQueries) {
        units.push_back({head, &*at, 1, first, std::min(kQueries, flat - first), 0});
      }
    }
  }
  auto found = prefix_groups(a, static_cast<int>(generating - sequences_.begin()));
  std::stable_sort(found.begin(), found.end(), [](auto& one, auto& other) { return one.shared > other.shared; });
  for (const auto& [first, size, shared] : found) {
    // Few enough sequences in a unit that every thread gets some.
    const int most = std::clamp(size * a.kv_heads / (4 * threads), 1, kQueries / group);
    const int parts = (size + most - 1) / most;
    for (int head = 0; head < a.kv_heads; ++head) {
      for (int part = 0; part < parts; ++part) {
        const int from = size * part / parts, to = size * (part + 1) / parts;
        units.push_back({head, &sequences_[first + from], to - from, 0, group, to - from > 1 ? shared : 0});
      }
    }
  }
}

// The first `generating` sequences, those with the same beginning together.
std::vector<Units::PrefixGroup> Units::prefix_groups(const Attention& a, int generating) {
  const auto begin = sequences_.begin(), end = begin + generating;
  // By bytes, which is faster than by numbers and as good: any order that compares from the beginning puts them together.
  std::sort(begin, end, [&](int row, int other) {
    const int own = full_pages(a, row), others = full_pages(a, other);
    const int order = std::memcmp(pages_of(a, row), pages_of(a, other), std::min(own, others) * sizeof(int));
    return order ? order < 0 : own < others;
  });
  std::vector<PrefixGroup> found;
  for (int at = 0; at < generating; ++at) {
    const int shared = found.empty() ? 0 : common(a, sequences_[found.back().first], sequences_[at]);
    // A sequence that shares much less than the others do begins a group of its own.
    if (shared > 0 && 2 * shared >= found.back().shared) {
      PrefixGroup& group = found.back();
      group.shared = group.size++ == 1 ? shared : std::min(group.shared, shared);
    } else {
      found.push_back({at, 1, 0});
    }
  }
  return found;
}

}  // namespace asurge
