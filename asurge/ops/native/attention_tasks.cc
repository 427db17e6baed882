// Builds the task list of a step, and finds the sequences that share a prefix.
#include "attention_tasks.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace asurge {
namespace {

const int* pages_of(const Attention& a, int row) { return a.page_table + size_t(row) * a.columns; }

// Number of a row's pages that were full before this step.
int full_pages(const Attention& a, int row) { return std::min(a.start[row] / a.page_size, a.columns); }

// Length of the prefix that two sequences share, in tokens of whole spans.
int shared_prefix_tokens(const Attention& a, int row, int other) {
  const int* pages = pages_of(a, row);
  const int most = std::min(full_pages(a, row), full_pages(a, other));
  const auto differ = std::mismatch(pages, pages + most, pages_of(a, other)).first;
  return static_cast<int>(differ - pages) * a.page_size / kSpan * kSpan;
}

}  // namespace

// Prefill first: its chunks are the last rows, and the last queries of a chunk have the longest context. Decode rows follow, those
// that share a prefix first, as they take longer together.
TaskList::TaskList(const Attention& a, int threads) : sequences_(a.rows) {
  const int group = a.heads / a.kv_heads;
  std::iota(sequences_.begin(), sequences_.end(), 0);
  for (int row = 0; row < a.rows; ++row) {
    num_tokens += a.length[row];
    if (writes_own_token(a, row)) continue;
    for (int index = 0; index < a.length[row]; ++index) tokens.push_back({row, index});
  }
  const bool shares = a.window == 0 && group <= kRows;
  const auto shareable = [&](int row) { return shares && a.length[row] == 1; };
  const auto decodes_end = std::stable_partition(sequences_.begin(), sequences_.end(), shareable);
  for (auto at = sequences_.end(); at-- != decodes_end;) {
    const int flat = a.length[*at] * group;
    for (int head = 0; head < a.kv_heads; ++head) {
      for (int first = (flat - 1) / kQueries * kQueries; flat > 0 && first >= 0; first -= kQueries) {
        tasks.push_back({head, &*at, 1, first, std::min(kQueries, flat - first), 0});
      }
    }
  }
  auto found = prefix_groups(a, static_cast<int>(decodes_end - sequences_.begin()));
  std::stable_sort(found.begin(), found.end(), [](auto& one, auto& other) { return one.shared > other.shared; });
  for (const auto& [first, size, shared] : found) {
    // Few enough sequences for each task that every thread gets some.
    const int most = std::clamp(size * a.kv_heads / (4 * threads), 1, kQueries / group);
    const int parts = (size + most - 1) / most;
    for (int head = 0; head < a.kv_heads; ++head) {
      for (int part = 0; part < parts; ++part) {
        const int from = size * part / parts, to = size * (part + 1) / parts;
        tasks.push_back({head, &sequences_[first + from], to - from, 0, group, to - from > 1 ? shared : 0});
      }
    }
  }
}

// Groups the first `num_decodes` sequences by their shared prefix.
std::vector<TaskList::PrefixGroup> TaskList::prefix_groups(const Attention& a, int num_decodes) {
  const auto begin = sequences_.begin(), end = begin + num_decodes;
  // Sorted by the bytes of page numbers, which is faster than by the numbers: any such order
  // puts shared prefixes together.
  std::sort(begin, end, [&](int row, int other) {
    const int own = full_pages(a, row), others = full_pages(a, other);
    const int order = std::memcmp(pages_of(a, row), pages_of(a, other), std::min(own, others) * sizeof(int));
    return order ? order < 0 : own < others;
  });
  std::vector<PrefixGroup> found;
  for (int at = 0; at < num_decodes; ++at) {
    const int shared = found.empty() ? 0 : shared_prefix_tokens(a, sequences_[found.back().first], sequences_[at]);
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
