// What one thread attends to at a time.
#pragma once

#include <vector>

#include "attention.h"
#include "tiles.h"

namespace asurge {

constexpr int kSpan = 256;           // context tokens between two looks at the running maximum
constexpr int kQueries = 2 * kRows;  // query rows computed together

// Query rows of one KV head: of one sequence, or of several that generate after the same beginning, which is read once for all
// (Hydragen, Juravsky et al. 2024).
struct Unit {
  int kv_head;
  // The sequences.
  const int* rows;
  int num_sequences;
  // For each of them, query rows [first_query, first_query + num_queries): row i is query i / group, head i % group.
  int first_query, num_queries;
  // Tokens of context that all have in common. Whole spans, so that a sequence comes out the same whatever runs beside it.
  int shared;

  int lines() const { return num_sequences * num_queries; }
};

// Whether the unit of a sequence that generates writes the sequence's token: it then finds it in its core's caches, along with
// the rest of its block. A token that fills a page is written before that: from then on others may have the page in their
// beginning, even in this step. So are the tokens of prompts: one prompt may have several rows.
inline bool writes_itself(const Attention& a, int row) {
  return row < a.decode && a.length[row] == 1 && (a.start[row] + 1) % a.page_size != 0 && a.heads / a.kv_heads <= kQueries;
}

struct Token {
  int row, index;
};

// All of a step: the tokens to be written first, then the units, the longest first.
struct Units {
  Units(const Attention& a, int threads);
  Units(const Units&) = delete;
  Units& operator=(const Units&) = delete;

  std::vector<Token> tokens;
  std::vector<Unit> units;
  int num_tokens = 0;  // of all that are new

 private:
  struct PrefixGroup {
    int first, size;  // in `sequences_`
    int shared;
  };
  std::vector<PrefixGroup> prefix_groups(const Attention& a, int generating);
  std::vector<int> sequences_;
};

}  // namespace asurge
