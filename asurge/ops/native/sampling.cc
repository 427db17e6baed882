// Temperature, top-k, top-p and min-p sampling with Gumbel noise: the algorithm of `asurge.ops.sampling`, which explains it, for one
// row after another and with the same noise.
#include "sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "threefry.h"
#include "thread_pool.h"
#include "tiles.h"

namespace asurge {
namespace {

constexpr int kBlock = 128, kCandidates = 64;
constexpr float kLowest = -1e30f, kPadding = 2 * kLowest;
constexpr float kFloor = -104.0f;  // exponentials of lower numbers are 0

struct Candidate {
  float value;
  int id;
};

// Top-k, top-p and min-p of a row.
struct Filters {
  int top_k;
  float top_p, log_min_p;
};

// Memory that a thread keeps between rows; it grows with the vocabulary.
struct Workspace {
  std::vector<float> scaled, weights, block_maxima, sums, noise;
  std::vector<Candidate> found;

  void fit(int blocks) {
    if (static_cast<int>(block_maxima.size()) >= blocks) return;
    for (auto* numbers : {&scaled, &weights}) numbers->resize(size_t(blocks) * kBlock);
    for (auto* numbers : {&block_maxima, &sums}) numbers->resize(blocks);
    noise.resize(std::max(blocks, kBlock));
  }
};

// Loads 16 logits and makes them finite: NaN counts as lowest, and padding lies below that.
inline Floats load_finite(const float* logits, int at, int vocab) {
  const auto bounded = [](Floats x) { return min(max(x, all(kLowest)), all(-kLowest)); };
  if (at + 16 <= vocab) return bounded(load(logits + at));
  const Mask real = within(at, 0, vocab);
  return select(real, bounded(load_where(real, logits + at)), all(kPadding));
}

inline Floats exponential(Floats x) { return power_of_two(x * all(kLog2E)); }

// Logits of a row, in blocks of kBlock with the largest of each block.
class LogitsRow {
 public:
  LogitsRow(const float* logits, int vocab, Workspace& workspace)
      : logits_(logits), vocab_(vocab), blocks_((vocab + kBlock - 1) / kBlock), workspace_(workspace) {
    workspace_.fit(blocks_);
    for (int block = 0; block < blocks_; ++block) {
      Floats most = all(kPadding);
      for (int at = block * kBlock; at < (block + 1) * kBlock; at += 16) most = max(most, load_finite(logits_, at, vocab_));
      block_max(block) = largest(most);
    }
  }

  // Argmax: the first of the largest.
  int greedy() const {
    const auto block_maxima = workspace_.block_maxima.begin();
    const auto most = std::max_element(block_maxima, block_maxima + blocks_);
    const int block = static_cast<int>(most - block_maxima);
    return first_in(block, [&](int at) { return equal(load_finite(logits_, at, vocab_), all(*most)); });
  }

  int sample(float temperature, Filters filters, Key key) {
    scale(temperature);
    const bool narrow = 0 < filters.top_k && filters.top_k <= kCandidates;
    const std::vector<Candidate>& found = top_candidates();
    const int count = static_cast<int>(found.size());
    float weights[kCandidates], noise[kCandidates], listed = 0.0f;
    for (int rank = 0; rank < count; ++rank) {
      weights[rank] = narrow && rank >= filters.top_k ? 0.0f : std::exp(found[rank].value);
      listed += weights[rank];
    }
    const float total = std::accumulate(workspace_.sums.begin(), workspace_.sums.begin() + blocks_, 0.0f);
    const float nucleus = filters.top_p * (narrow ? listed : total);
    gumbel(key, noise, kCandidates);
    float most = -std::numeric_limits<float>::infinity(), before = 0.0f;
    int sampled = 0;
    for (int rank = 0; rank < count; before += weights[rank++]) {
      const bool in_nucleus = filters.top_p >= 1 || before < nucleus;
      const bool kept = !(narrow && rank >= filters.top_k) && in_nucleus && found[rank].value >= filters.log_min_p;
      if ((kept || rank == 0) && found[rank].value + noise[rank] > most) {
        most = found[rank].value + noise[rank];
        sampled = found[rank].id;
      }
    }
    const float last = count == kCandidates ? found.back().value : kPadding;
    const bool by_mass = filters.top_k == 0 && filters.top_p < 1 && listed >= nucleus;
    const bool by_size = last < filters.log_min_p && (filters.top_k == 0 || filters.top_p >= 1);
    return narrow || by_mass || by_size ? sampled : sample_all_blocks(filters, last, key);
  }

 private:
  float& block_max(int block) { return workspace_.block_maxima[block]; }
  const float* scaled(int block) const { return workspace_.scaled.data() + block * kBlock; }

  // Index of the first number in a block that `matches`, which returns a mask for 16.
  template <typename Matches>
  static int first_in(int block, const Matches& matches) {
    for (int at = block * kBlock;; at += 16) {
      if (const uint32_t found = bits_of(matches(at))) return at + std::countr_zero(found);
    }
  }

  // Subtracts the largest logit and divides by temperature; stores each block's largest, and its sum of exponentials.
  void scale(float temperature) {
    const Floats most = all(*std::max_element(workspace_.block_maxima.begin(), workspace_.block_maxima.begin() + blocks_));
    for (int block = 0; block < blocks_; ++block) {
      Floats highest = all(kPadding), sums = all(0.0f);
      for (int at = block * kBlock; at < (block + 1) * kBlock; at += 16) {
        const Floats x = load_finite(logits_, at, vocab_);
        const Floats cooled = max((x - most) / all(temperature), all(kLowest));
        const Floats scaled = select(above(x, all(kLowest)), cooled, x);
        store(workspace_.scaled.data() + at, scaled);
        highest = max(highest, scaled);
        sums = sums + exponential(scaled);
      }
      block_max(block) = largest(highest);
      workspace_.sums[block] = sum(sums);
    }
  }

  // The kCandidates largest, in descending order; ties by token id.
  const std::vector<Candidate>& top_candidates() {
    std::vector<Candidate>& found = workspace_.found;
    found.clear();
    float least = kPadding;  // later numbers that are no larger are no candidates
    if (blocks_ > kCandidates) {
      std::copy_n(workspace_.block_maxima.begin(), blocks_, workspace_.noise.begin());
      const auto last = workspace_.noise.begin() + kCandidates - 1;
      std::nth_element(workspace_.noise.begin(), last, workspace_.noise.begin() + blocks_, std::greater<>());
      least = std::nextafter(*last, kPadding);
    }
    for (int block = 0; block < blocks_; ++block) {
      if (block_max(block) <= least) continue;
      for (int at = 0; at < kBlock; at += 16) {
        for (uint32_t some = bits_of(above(load(scaled(block) + at), all(least))); some; some &= some - 1) {
          const int within = at + std::countr_zero(some);
          found.push_back({scaled(block)[within], block * kBlock + within});
        }
        if (found.size() < 4 * kCandidates) continue;
        std::nth_element(found.begin(), found.begin() + kCandidates - 1, found.end(), comes_first);
        found.resize(kCandidates);
        least = found.back().value;
      }
    }
    const auto end = found.begin() + std::min<size_t>(found.size(), kCandidates);
    std::partial_sort(found.begin(), end, found.end(), comes_first);
    found.erase(end, found.end());
    return found;
  }

  static bool comes_first(const Candidate& one, const Candidate& other) {
    return one.value != other.value ? one.value > other.value : one.id < other.id;
  }

  // Samples from all blocks, where tokens other than the candidates are kept: first a block by its weight, then a token in it.
  int sample_all_blocks(Filters filters, float last, Key key) {
    const bool searching = filters.top_k > 0 || filters.top_p < 1;
    float threshold = kFloor;
    if (searching || filters.log_min_p > kFloor) {
      threshold = std::max(searching ? find_threshold(filters, last) : kFloor, filters.log_min_p);
      compute_weights(threshold);
    }
    float* noise = workspace_.noise.data();
    gumbel(split(key, 0), noise, blocks_);
    for (int block = 0; block < blocks_; ++block) noise[block] += std::log(workspace_.sums[block]);
    const int block = static_cast<int>(std::max_element(noise, noise + blocks_) - noise);
    gumbel(split(key, 1), noise, kBlock);
    for (int at = 0; at < kBlock; ++at) noise[at] += scaled(block)[at] >= threshold ? scaled(block)[at] : kPadding;
    return block * kBlock + static_cast<int>(std::max_element(noise, noise + kBlock) - noise);
  }

  // The least logit that top-k and top-p keep.
  float find_threshold(Filters filters, float last) {
    float threshold = kFloor;
    if (filters.top_k > 0) {
      threshold = bisect([&](float from) { return count_at_least(from) - filters.top_k; }, std::max(last, kFloor), kFloor);
    }
    if (filters.top_p >= 1) return threshold;
    const float goal = filters.top_p * compute_weights(threshold);
    const float high = filters.top_k > 0 ? 0.0f : std::max(last, kFloor);
    return bisect([&](float from) { return mass_at_least(from) - goal; }, high, threshold);
  }

  // Weights of the logits from a threshold on, and their sum for each block; returns the total.
  float compute_weights(float threshold) {
    float total = 0.0f;
    for (int block = 0; block < blocks_; ++block) {
      Floats sums = all(0.0f);
      for (int at = 0; at < kBlock; at += 16) {
        const Floats x = load(scaled(block) + at);
        const Floats weights = select(at_least(x, all(threshold)), exponential(x), all(0.0f));
        store(workspace_.weights.data() + block * kBlock + at, weights);
        sums = sums + weights;
      }
      total += workspace_.sums[block] = sum(sums);
    }
    return total;
  }

  int count_at_least(float from) {
    int found = 0;
    for_each_at_least(from, [&](Mask kept, int) { found += std::popcount(bits_of(kept)); });
    return found;
  }

  float mass_at_least(float from) {
    Floats found = all(0.0f);
    for_each_at_least(from, [&](Mask kept, int at) { found = found + select(kept, load(workspace_.weights.data() + at), all(0.0f)); });
    return sum(found);
  }

  // Calls `see(kept, at)` for each 16 numbers of the blocks that have any number of at least `from`.
  template <typename See>
  void for_each_at_least(float from, const See& see) {
    for (int block = 0; block < blocks_; ++block) {
      if (block_max(block) < from) continue;
      for (int at = 0; at < kBlock; at += 16) see(at_least(load(scaled(block) + at), all(from)), block * kBlock + at);
    }
  }

  // The highest threshold between `high` and `low`, both at most 0, at which `excess` is not negative; or `low`.
  template <typename Excess>
  static float bisect(const Excess& excess, float high, float low) {
    int32_t shallow = std::bit_cast<int32_t>(std::abs(high)), deep = std::bit_cast<int32_t>(std::abs(low));
    while (shallow < deep) {
      const int32_t middle = shallow + (deep - shallow) / 2;
      const auto over = excess(-std::bit_cast<float>(middle));
      if (over >= 0) deep = middle;
      if (over <= 0) shallow = middle + (over < 0);
    }
    return -std::bit_cast<float>(deep);
  }

  const float* logits_;
  const int vocab_, blocks_;
  Workspace& workspace_;
};

int sample_row(const Sampling& call, int row, Workspace& workspace) {
  LogitsRow logits(call.logits + size_t(row) * call.columns, call.vocab, workspace);
  const float temperature = call.temperature[row];
  if (!(temperature > 0)) return logits.greedy();
  const int top_k = call.top_k[row] < call.vocab ? std::max(call.top_k[row], 0) : 0;
  const Key key = fold_in(fold_in({0, 0}, call.seed[row]), static_cast<uint32_t>(call.position[row]));
  return logits.sample(temperature, {top_k, call.top_p[row], std::log(call.min_p[row])}, key);
}

}  // namespace

void sample(const Sampling& call) {
  ThreadPool::get().run(call.rows, [&](Pieces& rows) {
    thread_local Workspace workspace;
    for (int row; rows.take(row);) call.out[row] = call.live && !call.live[row] ? 0 : sample_row(call, row, workspace);
  });
}

}  // namespace asurge
