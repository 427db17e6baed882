// The number of a pool's threads that take part in regions, adapted to how much each shortens them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace asurge {

// Counters of a pool since its creation. `asurge.ops.native.PoolStatistics` has the same fields.
struct PoolStatistics {
  int32_t limit, active;
  int64_t regions, pieces, helped_pieces, region_ns, waited_ns, rescues, swaps, pushes, quota_sleep_ns;
};

// One more thread shortens regions by a share of their computing time; a thread that is often preempted in the middle of a piece
// makes all others wait. Where waiting takes more time than the last thread saves, that thread is left out, and tried again after
// a while, which grows as long as the trials fail (exponential back-off).
//
// Counters of concurrent callers may lose updates: they serve for monitoring and this decision only.
class TeamSize {
 public:
  int active() const { return active_.load(std::memory_order_relaxed); }

  int limit() const { return limit_.load(std::memory_order_relaxed); }

  // Sets the most threads, and starts again with all of them.
  void set_limit(int size) {
    limit_.store(size, std::memory_order_relaxed);
    active_.store(size, std::memory_order_relaxed);
  }

  // Counts a finished region, of whose pieces the caller computed `own`. Returns whether the team has grown.
  bool note_region(int64_t now_ns, int64_t took_ns, int64_t waited_ns, int own, int count) {
    add(regions_, 1);
    add(pieces_, count);
    add(helped_pieces_, count - own);
    add(region_ns_, took_ns);
    add(waited_ns_, waited_ns);
    if (region_ns_.load(std::memory_order_relaxed) < due_ns_.load(std::memory_order_relaxed)) return false;
    if (deciding_.test_and_set(std::memory_order_acquire)) return false;
    const bool grown = decide(now_ns);
    deciding_.clear(std::memory_order_release);
    return grown;
  }

  void note_rescue() { add(rescues_, 1); }
  void note_swap() { add(swaps_, 1); }
  void note_push() { add(pushes_, 1); }

  PoolStatistics statistics() const {
    return {limit_.load(),     active_.load(),    regions_.load(), pieces_.load(), helped_pieces_.load(),
            region_ns_.load(), waited_ns_.load(), rescues_.load(), swaps_.load(),  pushes_.load(), 0};
  }

 private:
  // Long enough for several steps, so that one time slice of another process decides nothing.
  static constexpr int64_t kWindowNs = 50'000'000;
  static constexpr int64_t kLeastHoldNs = 100'000'000, kMostHoldNs = 3'200'000'000;

  bool decide(int64_t now_ns) {
    const int64_t waited = waited_ns_.load(std::memory_order_relaxed) - window_.waited_ns;
    const int64_t computed = region_ns_.load(std::memory_order_relaxed) - window_.region_ns - waited;
    window_ = {window_.region_ns + computed + waited, window_.waited_ns + waited};
    due_ns_.store(window_.region_ns + kWindowNs, std::memory_order_relaxed);
    const int size = active(), limit = this->limit();
    // Without the last thread, computing would take size / (size - 1) times as long; the gain counts half, as memory bandwidth
    // mostly is the limit.
    if (size > 1 && 2 * waited * (size - 1) > computed) {
      active_.store(size - 1, std::memory_order_relaxed);
      if (trying_) hold_ns_ = std::min(2 * hold_ns_, kMostHoldNs);
      grow_at_ns_ = now_ns + hold_ns_;
      trying_ = false;
      return false;
    }
    if (trying_) hold_ns_ = kLeastHoldNs;
    trying_ = size < limit && now_ns >= grow_at_ns_;
    if (trying_) active_.store(size + 1, std::memory_order_relaxed);
    return trying_;
  }

  static void add(std::atomic<int64_t>& to, int64_t value) {
    to.store(to.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
  }

  struct Window {
    int64_t region_ns = 0, waited_ns = 0;
  };

  std::atomic<int> limit_{1}, active_{1};
  std::atomic<int64_t> regions_{0}, pieces_{0}, helped_pieces_{0}, region_ns_{0}, waited_ns_{0}, rescues_{0}, swaps_{0}, pushes_{0};
  // State of `decide`, which one caller at a time runs.
  std::atomic_flag deciding_;
  std::atomic<int64_t> due_ns_{kWindowNs};  // on the clock of `region_ns_`
  Window window_;
  int64_t hold_ns_ = kLeastHoldNs, grow_at_ns_ = 0;
  bool trying_ = false;
};

}  // namespace asurge
