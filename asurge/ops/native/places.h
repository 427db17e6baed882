// Which processors the members of a team run on.
//
// The system may leave two on one processor while another rests: both always have work, and it is reluctant to move a thread that
// has just run. After some milliseconds it does, but a step is over by then.
#pragma once

#include <sched.h>

#include <array>
#include <atomic>

namespace asurge {

class Places {
 public:
  static constexpr int kMost = 1023;  // members

  Places() {
    for (auto& place : places_) place.store(kNowhere, std::memory_order_relaxed);
  }

  // The calling thread, which is this member, stays where it is.
  void note(int member) { settle(member, sched_getcpu()); }

  // Of `size` members, this one leaves its processor if an earlier member is on it and another processor is free.
  void spread(int member, int size) {
    const int here = sched_getcpu();
    settle(member, here);
    for (int other = 0; other < member; ++other) {
      if (places_[other].load(std::memory_order_relaxed) == here) return leave(member, size);
    }
  }

 private:
  static constexpr int kNowhere = -1;

  // All members read this all the time: only changes are written.
  void settle(int member, int place) {
    if (places_[member].load(std::memory_order_relaxed) != place) places_[member].store(place, std::memory_order_relaxed);
  }

  void leave(int member, int size) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t free = allowed;
    for (int other = 0; other < size; ++other) {
      const int place = places_[other].load(std::memory_order_relaxed);
      if (place != kNowhere) CPU_CLR(place, &free);
    }
    if (CPU_COUNT(&free) == 0) return;
    // A thread is moved at once from where it may not be, and stays put when it may be anywhere again.
    sched_setaffinity(0, sizeof free, &free);
    sched_setaffinity(0, sizeof allowed, &allowed);
    note(member);
  }

  std::array<std::atomic<int>, kMost> places_;
};

}  // namespace asurge
