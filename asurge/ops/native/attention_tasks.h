// Attention of a step, split into tasks for threads: query rows of one KV head, for one sequence or for several with a shared
// prefix.
#pragma once

#include <vector>

#include "attention.h"
#include "tiles.h"

namespace asurge {

constexpr int kSpan = 256;           // context tokens for each update of the online softmax
constexpr int kQueries = 2 * kRows;  // query rows of a task at most

// Query rows of one KV head: of one sequence, or of several decode rows that share a prefix, whose keys and values are read once
// for all (Hydragen, Juravsky et al. 2024).
struct AttentionTask {
  int kv_head;
  // Indices of the sequences among the rows of `Attention`.
  const int* rows;
  int num_sequences;
  // For each sequence, query rows [first_query, first_query + num_queries): row i is query i / group, head i % group.
  int first_query, num_queries;
  // Length of the shared prefix in tokens. Whole spans, so that a sequence comes out the same whatever runs beside it.
  int shared;

  int num_query_rows() const { return num_sequences * num_queries; }
};

// Whether the task of a decode row writes the keys and values of the row's token itself: they are then in its core's caches, with
// the rest of their block. A token that fills a page is written before all tasks: from then on others may share the page in
// their prefix, even in this step. So are the tokens of prompts: one prompt may have several rows.
inline bool writes_own_token(const Attention& a, int row) {
  return row < a.decode && a.length[row] == 1 && (a.start[row] + 1) % a.page_size != 0 && a.heads / a.kv_heads <= kQueries;
}

// A token whose keys and values are written before the tasks: `index` counts from the first new token of its row.
struct NewToken {
  int row, index;
};

// The work of a step: tokens whose keys and values are written first, then the tasks, the longest first.
struct TaskList {
  TaskList(const Attention& a, int threads);
  TaskList(const TaskList&) = delete;
  TaskList& operator=(const TaskList&) = delete;

  std::vector<NewToken> tokens;
  std::vector<AttentionTask> tasks;
  int num_tokens = 0;  // new tokens of all rows

 private:
  struct PrefixGroup {
    int first, size;  // in `sequences_`
    int shared;
  };
  std::vector<PrefixGroup> prefix_groups(const Attention& a, int num_decodes);
  std::vector<int> sequences_;
};

}  // namespace asurge
