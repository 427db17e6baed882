// Operating system interface of the thread pool: threads, sleep (futex), clocks, niceness and affinity.
#pragma once

#include <fcntl.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "affinity.h"

namespace asurge {

class OperatingSystem {
 public:
  using ThreadId = pid_t;
  template <typename Value>
  using Atomic = std::atomic<Value>;

  bool over() const { return false; }

  void pause() { _mm_pause(); }
  void yield() { sched_yield(); }

  int64_t now_ns() const { return nanoseconds(CLOCK_MONOTONIC); }

  ThreadId self() const {
    if (id_ == 0) id_ = gettid();
    return id_;
  }

  int processor() const { return sched_getcpu(); }

  // Starts a thread. Throws std::system_error where the system has no more.
  template <typename Body>
  void start(int helper, Body body) {
    std::thread([this, helper, body] {
      pthread_setname_np(pthread_self(), ("asurge-" + std::to_string(helper + 1)).c_str());
      request_long_slices();
      body();
    }).detach();
  }

  // Requests longer time slices for the calling thread than other threads have: those then run at once when they wake up, instead
  // of when the slice is over (Linux 6.12 and later; earlier ones ignore it).
  void request_long_slices() const {
    struct {
      uint32_t size = 48, policy = SCHED_OTHER;
      uint64_t flags = 0;
      int32_t nice = 0;
      uint32_t priority = 0;
      uint64_t runtime_ns = 0, deadline_ns = 0, period_ns = 0;
    } attributes;
    if (sched_getscheduler(0) != SCHED_OTHER) return;
    attributes.runtime_ns = kLongTurnNs;
    attributes.nice = getpriority(PRIO_PROCESS, static_cast<id_t>(self()));
    syscall(SYS_sched_setattr, 0, &attributes, 0);
  }

  // Sets the calling thread's niceness to that of the pool.
  void become_nice() const {
    if (niceness_.load() != kAsProcess) be_nice(self());
  }

  // Sets the niceness of threads that start later.
  void set_niceness(int niceness) { niceness_.store(niceness); }

  bool be_nice(ThreadId thread) const { return setpriority(PRIO_PROCESS, static_cast<id_t>(thread), niceness_.load()) == 0; }

  // Sleeps while the word has this value; may return early.
  template <typename Word>
  void sleep(const std::atomic<Word>& word, Word value) {
    static_assert(sizeof(word) == sizeof(uint32_t));
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
  }

  template <typename Word>
  void wake(const std::atomic<Word>& word, int most = INT_MAX) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, most, nullptr, nullptr, 0);
  }

  // Processor time that a thread has used; a constant where that is not known.
  int64_t computed_ns(ThreadId thread) const {
    return nanoseconds(static_cast<clockid_t>(~static_cast<unsigned>(thread) << 3 | 6));  // as pthread_getcpuclockid
  }

  // Processor time that all threads of the process have used.
  int64_t process_computed_ns() const { return nanoseconds(CLOCK_PROCESS_CPUTIME_ID); }

  void sleep_ns(int64_t duration_ns) const {
    const timespec duration{duration_ns / 1'000'000'000, duration_ns % 1'000'000'000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &duration, nullptr);
  }

  // Moves a thread that waits for another processor to this one; `helper` is its index or kNoHelper.
  bool move_here(ThreadId thread, int helper) {
    const int here = processor();
    if (!Affinity::move(thread, Affinity::only(here))) return false;
    if (helper != kNoHelper) affinity_.note(helper, here);
    return true;
  }

  // Moves the calling thread to a processor.
  void move_to(int processor) { Affinity::move(0, Affinity::only(processor)); }

  // Moves the calling helper to a free processor if it shares one; see `Affinity::spread`.
  void spread(int helper, int callers_processor) { affinity_.spread(helper, callers_processor); }

  // Whether a thread waits for the processor that the calling thread runs on.
  bool waits_here(ThreadId thread) const {
    char path[64], line[512];
    std::snprintf(path, sizeof path, "/proc/self/task/%d/stat", static_cast<int>(thread));
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    const ssize_t size = read(file, line, sizeof line - 1);
    close(file);
    if (size <= 0) return false;
    line[size] = 0;
    // After the name: state, 35 numbers, and the processor (proc(5)).
    const char* at = std::strrchr(line, ')');
    if (at == nullptr || at[1] == 0 || at[2] != 'R') return false;
    for (int field = 2; field < 39 && at; ++field) at = std::strchr(at + 1, ' ');
    return at && std::atoi(at) == processor();
  }

  // Moves a helper that waits for this processor to another.
  void push(int helper, ThreadId thread) { affinity_.push(helper, thread, processor()); }

  // Resets the state in a forked child.
  void forget_threads() {
    id_ = 0;  // the thread has a new id there
    Affinity::forget_moves();
  }

  static constexpr int kNoHelper = -1, kNowhere = Affinity::kNowhere;

 private:
  static constexpr uint64_t kLongTurnNs = 5'000'000;

  static int64_t nanoseconds(clockid_t clock) {
    timespec time;
    return clock_gettime(clock, &time) == 0 ? int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec : -1;
  }

  Affinity affinity_;
  static constexpr int kAsProcess = INT_MIN;
  static inline thread_local pid_t id_ = 0;
  std::atomic<int> niceness_{kAsProcess};
};

}  // namespace asurge
