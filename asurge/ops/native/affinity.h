// Placement of a pool's threads on processors.
//
// The system may leave two threads on one processor while another is idle: it is reluctant to move a thread that has just run.
// After some milliseconds it does, but a step is over by then.
#pragma once

#include <sched.h>

#include <array>
#include <atomic>
#include <cstring>

namespace asurge {

class Affinity {
 public:
  static constexpr int kMostHelpers = 1023;
  static constexpr int kNowhere = -1;

  Affinity() {
    for (auto& processor : processors_) processor.store(kNowhere, std::memory_order_relaxed);
  }

  // Moves the calling thread, which is this helper, to a processor without threads of the pool, if a caller or an earlier helper
  // shares its processor.
  void spread(int helper, int callers_processor) {
    const int here = sched_getcpu();
    note(helper, here);
    bool shared = here == callers_processor;
    for (int other = 0; other < helper && !shared; ++other) shared = processor_of(other) == here;
    if (shared && move(0, free_processors(callers_processor))) note(helper, sched_getcpu());
  }

  // Moves a helper that waits for a caller's processor to another.
  void push(int helper, pid_t thread, int callers_processor) {
    note(helper, callers_processor);
    move(thread, free_processors(callers_processor));
  }

  // Records the processor of a helper. All threads read this all the time: only changes are written.
  void note(int helper, int processor) {
    if (processor_of(helper) != processor) processors_[helper].store(processor, std::memory_order_relaxed);
    if (helper >= helpers_.load(std::memory_order_relaxed)) helpers_.store(helper + 1, std::memory_order_relaxed);
  }

  // Moves a thread to one of some processors, at once if it waits to run, and restores its affinity mask. Not while another thread
  // moves one: that would read the temporary mask, and restore that.
  static bool move(pid_t thread, const cpu_set_t& processors) {
    if (moving_.test_and_set(std::memory_order_acquire)) return false;
    cpu_set_t allowed, to;
    bool moved = sched_getaffinity(thread, sizeof allowed, &allowed) == 0;
    if (moved) {
      CPU_AND(&to, &allowed, &processors);
      moved = CPU_COUNT(&to) > 0 && sched_setaffinity(thread, sizeof to, &to) == 0;
      if (moved) sched_setaffinity(thread, sizeof allowed, &allowed);
    }
    moving_.clear(std::memory_order_release);
    return moved;
  }

  // Resets the lock in a forked child, where no thread is moving any.
  static void forget_moves() { moving_.clear(); }

  static cpu_set_t only(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    return set;
  }

 private:
  int processor_of(int helper) const { return processors_[helper].load(std::memory_order_relaxed); }

  cpu_set_t free_processors(int callers_processor) const {
    cpu_set_t free;
    std::memset(&free, 0xFF, sizeof free);
    CPU_CLR(callers_processor, &free);
    for (int other = 0; other < helpers_.load(std::memory_order_relaxed); ++other) {
      if (const int processor = processor_of(other); processor != kNowhere) CPU_CLR(processor, &free);
    }
    return free;
  }

  static inline std::atomic_flag moving_;
  std::array<std::atomic<int>, kMostHelpers> processors_;
  std::atomic<int> helpers_{0};  // helpers whose processor has been recorded
};

}  // namespace asurge
