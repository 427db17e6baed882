// Which processors the threads of a pool run on.
//
// The system may leave two on one processor while another rests: both always have work, and it is reluctant to move a thread that
// has just run. After some milliseconds it does, but a step is over by then.
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

  // The calling thread, which is this helper, leaves its processor if a caller or an earlier helper is on it and no thread of the
  // pool is on another.
  void spread(int helper, int callers_processor) {
    const int here = sched_getcpu();
    note(helper, here);
    bool shared = here == callers_processor;
    for (int other = 0; other < helper && !shared; ++other) shared = processor_of(other) == here;
    if (shared && move(0, free_processors(callers_processor))) note(helper, sched_getcpu());
  }

  // Moves a thread that may wait for its turn on the processor of a caller to another.
  void push(pid_t thread, int callers_processor) { move(thread, free_processors(callers_processor)); }

  // Where a helper is. All threads read this all the time: only changes are written.
  void note(int helper, int processor) {
    if (processor_of(helper) != processor) processors_[helper].store(processor, std::memory_order_relaxed);
    if (helper >= helpers_.load(std::memory_order_relaxed)) helpers_.store(helper + 1, std::memory_order_relaxed);
  }

  // Moves a thread to one of some processors, at once if it waits for its turn. Where it may run stays as it was.
  static bool move(pid_t thread, const cpu_set_t& processors) {
    cpu_set_t allowed, to;
    if (sched_getaffinity(thread, sizeof allowed, &allowed) != 0) return false;
    CPU_AND(&to, &allowed, &processors);
    if (CPU_COUNT(&to) == 0 || sched_setaffinity(thread, sizeof to, &to) != 0) return false;
    sched_setaffinity(thread, sizeof allowed, &allowed);
    return true;
  }

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

  std::array<std::atomic<int>, kMostHelpers> processors_;
  std::atomic<int> helpers_{0};  // that have ever been anywhere
};

}  // namespace asurge
