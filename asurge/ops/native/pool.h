// A team of threads for parallel regions of a few microseconds each.
//
// A decode step has some hundred such regions. Waking a sleeping thread takes longer than most of them, so members
// spin for a short while after a region before they sleep, and yield the core between looks.
#pragma once

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "places.h"

namespace asurge {

// Spins, but yields this core to any other thread that wants it.
class Spinner {
 public:
  void once() {
    if (++looks_ % kLooksBeforeYield == 0) {
      sched_yield();
    } else {
      _mm_pause();
    }
  }

 private:
  static constexpr unsigned kLooksBeforeYield = 64;
  unsigned looks_ = 0;
};

class Team {
 public:
  explicit Team(int size) : size_(size) {}

  // All members reach this point before any goes on.
  void barrier() {
    if (size_ == 1) return;
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    Spinner spinner;
    while (round_.load(std::memory_order_acquire) == round) spinner.once();
  }

  int size() const { return size_; }

 private:
  const int size_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

// Hands out indices below a limit, each once.
class Tickets {
 public:
  explicit Tickets(int limit) : limit_(limit) {}
  bool take(int& index) { return (index = next_.fetch_add(1, std::memory_order_relaxed)) < limit_; }

 private:
  const int limit_;
  std::atomic<int> next_{0};
};

class Pool {
 public:
  using Body = std::function<void(int member, Team& team)>;

  // Never destroyed: its threads may outlive static destruction.
  static Pool& get() {
    static Pool* pool = new Pool();
    return *pool;
  }

  // Runs body once per member, of which there are at most `most`; the caller is member 0. When another caller has the team, body
  // runs alone.
  void run(const Body& body, int most = kMostMembers) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    const int size = lock.owns_lock() ? std::min<int>(size_, most) : 1;
    if (size == 1) {
      Team alone(1);
      body(0, alone);
      return;
    }
    Team team(size);
    body_ = &body;
    team_ = &team;
    places_.note(0);
    running_.store(size - 1, std::memory_order_relaxed);
    const uint32_t count = region_.load(std::memory_order_relaxed) / kRegion + 1;
    region_.store(count * kRegion + static_cast<uint32_t>(size), std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) region_.notify_all();
    body(0, team);
    Spinner spinner;
    while (running_.load(std::memory_order_acquire) != 0) spinner.once();
  }

  int size() const { return size_; }

  // As many members as the system grants threads for.
  void resize(int size) {
    std::lock_guard<std::mutex> lock(mutex_);
    size = std::clamp(size, 1, kMostMembers);
    try {
      for (; threads_ + 1 < size; ++threads_) {
        std::thread([this, member = threads_ + 1, seen = region_.load()] { serve(member, seen); }).detach();
      }
    } catch (const std::system_error&) {
    }
    size_ = std::min(size, threads_ + 1);
  }

 private:
  static constexpr int kMostMembers = Places::kMost;
  static constexpr uint32_t kRegion = kMostMembers + 1;

  Pool() = default;

  void serve(int member, uint32_t seen) {
    pthread_setname_np(pthread_self(), ("asurge-" + std::to_string(member)).c_str());
    bool took_part = true;
    for (;;) {
      wait(seen, took_part ? kSpin : std::chrono::microseconds{0});
      // A member that is left out may see a later region than the one it woke for, but no region that waits for it can be over.
      seen = region_.load(std::memory_order_acquire);
      took_part = member < static_cast<int>(seen % kRegion);
      if (took_part) {
        places_.spread(member, team_->size());
        (*body_)(member, *team_);
        running_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  void wait(uint32_t seen, std::chrono::microseconds spin) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + spin;
    Spinner spinner;
    for (unsigned looks = 1; region_.load(std::memory_order_acquire) == seen; ++looks) {
      spinner.once();
      if (looks % 64 == 0 && Clock::now() > until) {
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        region_.wait(seen, std::memory_order_seq_cst);
        sleeping_.fetch_sub(1, std::memory_order_seq_cst);
        return;
      }
    }
  }

  static constexpr std::chrono::microseconds kSpin{200};
  std::mutex mutex_;
  int threads_ = 0;  // besides the callers
  std::atomic<int> size_{1};
  const Body* body_ = nullptr;
  Team* team_ = nullptr;
  Places places_;
  // How many regions there have been and, in the lowest bits, the members of this one: a member that wakes late must not take the
  // pool's size, which may have changed since, for that of a region that ended without it.
  std::atomic<uint32_t> region_{0};
  std::atomic<int> running_{0};
  std::atomic<int> sleeping_{0};
};

}  // namespace asurge
