// Keeps a process within its quota of processor time by many short sleeps instead of a long stop.
//
// The system stops all threads of a control group that has used up its quota until the period is over (mostly 100 ms): a process that
// uses 1.1 processors and has one stands still for 9 ms in every period. Here callers of kernels sleep off what the process has used
// beyond its quota, a millisecond or two at a time (token bucket).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace asurge {

template <typename System>
class BasicQuotaPacer {
 public:
  // Sets the processors whose time the process may use; 0: no limit.
  void set_quota(double processors) { quota_.store(processors, std::memory_order_relaxed); }

  // Sleeps off what the process has used beyond its quota. Cheap: the process's clock is read every kLookNs at most.
  void pace(System& system) {
    const double quota = quota_.load(std::memory_order_relaxed);
    if (quota == 0) return;
    const int64_t now = system.now_ns();
    if (now < due_ns_.load(std::memory_order_relaxed) || pacing_.test_and_set(std::memory_order_acquire)) return;
    const int64_t used = system.process_computed_ns();
    const double earned = quota * static_cast<double>(now - looked_ns_) - static_cast<double>(used - used_ns_);
    balance_ns_ = std::min(balance_ns_ + earned, kMostSavedNs);
    looked_ns_ = now;
    used_ns_ = used;
    due_ns_.store(now + kLookNs, std::memory_order_relaxed);
    const int64_t sleep_ns = static_cast<int64_t>(-balance_ns_ / quota);
    pacing_.clear(std::memory_order_release);
    if (sleep_ns > kLeastSleepNs) {
      slept_ns_.store(slept_ns_.load(std::memory_order_relaxed) + sleep_ns, std::memory_order_relaxed);
      system.sleep_ns(std::min(sleep_ns, kMostSleepNs));
    }
  }

  // Resets the state in a forked child, whose parent may have been in `pace`.
  void forget_threads() { pacing_.clear(); }

  int64_t slept_ns() const { return slept_ns_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kLookNs = 500'000, kLeastSleepNs = 1'000'000, kMostSleepNs = 5'000'000;
  // Unused time that is kept for a burst: the system keeps none beyond a period.
  static constexpr double kMostSavedNs = 2e6;

  std::atomic<double> quota_{0};
  std::atomic<int64_t> due_ns_{0}, slept_ns_{0};
  std::atomic_flag pacing_;  // guards what follows
  double balance_ns_ = 0;
  int64_t looked_ns_ = 0, used_ns_ = 0;
};

}  // namespace asurge
