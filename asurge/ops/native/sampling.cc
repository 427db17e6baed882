// What `asurge.ops.sampling` does with all rows at once, done with one row after another: the same steps, which are explained
// there, from the same noise.
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
constexpr float kFloor = -104.0f;  // the exponential of anything lower is 0

struct Candidate {
  float value;
  int id;
};

// What a row keeps; `least` is the logarithm of min-p.
struct Cuts {
  int top_k;
  float top_p, least;
};

// Memory that a thread keeps, for vocabularies up to some size.
struct Space {
  std::vector<float> scaled, weights, peaks, sums, noise;
  std::vector<Candidate> found;

  void fit(int blocks) {
    if (static_cast<int>(peaks.size()) >= blocks) return;
    for (auto* numbers : {&scaled, &weights}) numbers->resize(size_t(blocks) * kBlock);
    for (auto* numbers : {&peaks, &sums}) numbers->resize(blocks);
    noise.resize(std::max(blocks, kBlock));
  }
};

// 16 logits, finite: NaN counts as lowest, and padding lies below that.
inline Floats finite(const float* logits, int at, int vocab) {
  const auto bounded = [](Floats x) { return min(max(x, all(kLowest)), all(-kLowest)); };
  if (at + 16 <= vocab) return bounded(load(logits + at));
  const Mask real = within(at, 0, vocab);
  return select(real, bounded(load_where(real, logits + at)), all(kPadding));
}

inline Floats exponential(Floats x) { return power_of_two(x * all(kLog2E)); }

class Row {
 public:
  Row(const float* logits, int vocab, Space& space)
      : logits_(logits), vocab_(vocab), blocks_((vocab + kBlock - 1) / kBlock), space_(space) {
    space_.fit(blocks_);
    for (int block = 0; block < blocks_; ++block) {
      Floats most = all(kPadding);
      for (int at = block * kBlock; at < (block + 1) * kBlock; at += 16) most = max(most, finite(logits_, at, vocab_));
      peak(block) = largest(most);
    }
  }

  // The first of the largest.
  int greedy() const {
    const auto peaks = space_.peaks.begin();
    const auto most = std::max_element(peaks, peaks + blocks_);
    const int block = static_cast<int>(most - peaks);
    return first_in(block, [&](int at) { return equal(finite(logits_, at, vocab_), all(*most)); });
  }

  int draw(float temperature, Cuts cuts, Key key) {
    scale(temperature);
    const bool narrow = 0 < cuts.top_k && cuts.top_k <= kCandidates;
    const std::vector<Candidate>& found = top();
    const int count = static_cast<int>(found.size());
    float weights[kCandidates], noise[kCandidates], listed = 0.0f;
    for (int rank = 0; rank < count; ++rank) {
      weights[rank] = narrow && rank >= cuts.top_k ? 0.0f : std::exp(found[rank].value);
      listed += weights[rank];
    }
    const float total = std::accumulate(space_.sums.begin(), space_.sums.begin() + blocks_, 0.0f);
    const float nucleus = cuts.top_p * (narrow ? listed : total);
    gumbel(key, noise, kCandidates);
    float most = -std::numeric_limits<float>::infinity(), before = 0.0f;
    int drawn = 0;
    for (int rank = 0; rank < count; before += weights[rank++]) {
      const bool in_nucleus = cuts.top_p >= 1 || before < nucleus;
      const bool kept = !(narrow && rank >= cuts.top_k) && in_nucleus && found[rank].value >= cuts.least;
      if ((kept || rank == 0) && found[rank].value + noise[rank] > most) {
        most = found[rank].value + noise[rank];
        drawn = found[rank].id;
      }
    }
    const float last = count == kCandidates ? found.back().value : kPadding;
    const bool by_mass = cuts.top_k == 0 && cuts.top_p < 1 && listed >= nucleus;
    const bool by_size = last < cuts.least && (cuts.top_k == 0 || cuts.top_p >= 1);
    return narrow || by_mass || by_size ? drawn : draw_wide(cuts, last, key);
  }

 private:
  float& peak(int block) { return space_.peaks[block]; }
  const float* scaled(int block) const { return space_.scaled.data() + block * kBlock; }

  // Of a block, the first number that `matches`, which tells for 16.
  template <typename Matches>
  static int first_in(int block, const Matches& matches) {
    for (int at = block * kBlock;; at += 16) {
      if (const uint32_t found = bits_of(matches(at))) return at + std::countr_zero(found);
    }
  }

  // Logits less the largest, by temperature; of each block the largest of them, and the sum of their exponentials.
  void scale(float temperature) {
    const Floats most = all(*std::max_element(space_.peaks.begin(), space_.peaks.begin() + blocks_));
    for (int block = 0; block < blocks_; ++block) {
      Floats highest = all(kPadding), sums = all(0.0f);
      for (int at = block * kBlock; at < (block + 1) * kBlock; at += 16) {
        const Floats x = finite(logits_, at, vocab_);
        const Floats cooled = max((x - most) / all(temperature), all(kLowest));
        const Floats scaled = select(above(x, all(kLowest)), cooled, x);
        store(space_.scaled.data() + at, scaled);
        highest = max(highest, scaled);
        sums = sums + exponential(scaled);
      }
      peak(block) = largest(highest);
      space_.sums[block] = sum(sums);
    }
  }

  // The largest, in order; of equals the first.
  const std::vector<Candidate>& top() {
    std::vector<Candidate>& found = space_.found;
    found.clear();
    float least = kPadding;  // what is no larger, and comes later, is none of them
    if (blocks_ > kCandidates) {
      std::copy_n(space_.peaks.begin(), blocks_, space_.noise.begin());
      const auto last = space_.noise.begin() + kCandidates - 1;
      std::nth_element(space_.noise.begin(), last, space_.noise.begin() + blocks_, std::greater<>());
      least = std::nextafter(*last, kPadding);
    }
    for (int block = 0; block < blocks_; ++block) {
      if (peak(block) <= least) continue;
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

  // Where more than the candidates can be drawn: a block by its weight, then a token inside it.
  int draw_wide(Cuts cuts, float last, Key key) {
    const bool searching = cuts.top_k > 0 || cuts.top_p < 1;
    float cut = kFloor;
    if (searching || cuts.least > kFloor) {
      cut = std::max(searching ? search(cuts, last) : kFloor, cuts.least);
      weigh(cut);
    }
    float* noise = space_.noise.data();
    gumbel(split(key, 0), noise, blocks_);
    for (int block = 0; block < blocks_; ++block) noise[block] += std::log(space_.sums[block]);
    const int block = static_cast<int>(std::max_element(noise, noise + blocks_) - noise);
    gumbel(split(key, 1), noise, kBlock);
    for (int at = 0; at < kBlock; ++at) noise[at] += scaled(block)[at] >= cut ? scaled(block)[at] : kPadding;
    return block * kBlock + static_cast<int>(std::max_element(noise, noise + kBlock) - noise);
  }

  // The logit from which on tokens are kept, by number and by mass.
  float search(Cuts cuts, float last) {
    float cut = kFloor;
    if (cuts.top_k > 0) {
      cut = bisect([&](float from) { return count(from) - cuts.top_k; }, std::max(last, kFloor), kFloor);
    }
    if (cuts.top_p >= 1) return cut;
    const float goal = cuts.top_p * weigh(cut);
    const float high = cuts.top_k > 0 ? 0.0f : std::max(last, kFloor);
    return bisect([&](float from) { return mass(from) - goal; }, high, cut);
  }

  // Weights from a cut on, their sums by block, and of all.
  float weigh(float cut) {
    float total = 0.0f;
    for (int block = 0; block < blocks_; ++block) {
      Floats sums = all(0.0f);
      for (int at = 0; at < kBlock; at += 16) {
        const Floats x = load(scaled(block) + at);
        const Floats weights = select(at_least(x, all(cut)), exponential(x), all(0.0f));
        store(space_.weights.data() + block * kBlock + at, weights);
        sums = sums + weights;
      }
      total += space_.sums[block] = sum(sums);
    }
    return total;
  }

  int count(float from) {
    int found = 0;
    each_from(from, [&](Mask kept, int) { found += std::popcount(bits_of(kept)); });
    return found;
  }

  float mass(float from) {
    Floats found = all(0.0f);
    each_from(from, [&](Mask kept, int at) { found = found + select(kept, load(space_.weights.data() + at), all(0.0f)); });
    return sum(found);
  }

  // `see(kept, at)` for 16 numbers after another, of blocks that have any from this one on.
  template <typename See>
  void each_from(float from, const See& see) {
    for (int block = 0; block < blocks_; ++block) {
      if (peak(block) < from) continue;
      for (int at = 0; at < kBlock; at += 16) see(at_least(load(scaled(block) + at), all(from)), block * kBlock + at);
    }
  }

  // The highest cut between `high` and `low`, at most 0, at which there is enough; or `low`.
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
  Space& space_;
};

int draw(const Sampling& call, int row, Space& space) {
  Row drawn(call.logits + size_t(row) * call.columns, call.vocab, space);
  const float temperature = call.temperature[row];
  if (!(temperature > 0)) return drawn.greedy();
  const int top_k = call.top_k[row] < call.vocab ? std::max(call.top_k[row], 0) : 0;
  const Key key = fold_in(fold_in({0, 0}, call.seed[row]), static_cast<uint32_t>(call.position[row]));
  return drawn.draw(temperature, {top_k, call.top_p[row], std::log(call.min_p[row])}, key);
}

}  // namespace

void run(const Sampling& call) {
  ThreadPool::get().run(call.rows, [&](Pieces& rows) {
    thread_local Space space;
    for (int row; rows.take(row);) call.out[row] = call.live && !call.live[row] ? 0 : draw(call, row, space);
  });
}

}  // namespace asurge
