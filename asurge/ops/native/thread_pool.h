// A pool of threads for parallel regions of a few microseconds each, on a machine that has other work to do too.
//
// A decode step has some hundred such regions. A region is a number of pieces, and whoever holds a processor claims the next
// one: the caller alone can do them all, and nobody is waited for who has not begun. What may have to be waited for is a thread
// that the system puts aside in the middle of a piece; who waits then gives it the processor it waits on (`rescue`).
//
// Waking a sleeping thread takes longer than most regions, so threads spin for a short while after a region before they sleep.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <new>
#include <system_error>
#include <utility>

#include "operating_system.h"
#include "team_size.h"

namespace asurge {

// Numbers below a limit, each handed out once.
template <typename System>
class BasicClaims {
 public:
  void open(int limit) { word_.store(uint64_t(limit) << 32, std::memory_order_release); }

  bool any_left() const {
    const uint64_t word = word_.load(std::memory_order_relaxed);
    return claimed(word) < limit(word);
  }

  // What has been opened anew meanwhile is claimed as well, so what a number is about must be looked up after the claim.
  bool take(int& index) {
    if (!any_left()) return false;
    const uint64_t word = word_.fetch_add(1, std::memory_order_acquire);
    index = static_cast<int>(claimed(word));
    return claimed(word) < limit(word);
  }

 private:
  static uint32_t claimed(uint64_t word) { return static_cast<uint32_t>(word); }
  static uint32_t limit(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

  typename System::template Atomic<uint64_t> word_{0};
};

// The pieces of a region that one thread does.
template <typename System>
class BasicPieces {
 public:
  using Claims = BasicClaims<System>;

  explicit BasicPieces(Claims& claims) : claims_(claims) {}
  BasicPieces(Claims& claims, int first) : claims_(claims), first_(first), count_(1) {}

  // Claims another piece, until there is none left. All pieces that were claimed must be done when the body returns.
  bool take(int& index) {
    if (first_ != kNone) {
      index = std::exchange(first_, kNone);
      return true;
    }
    if (!claims_.take(index)) return false;
    ++count_;
    return true;
  }

  int count() const { return count_; }

 private:
  static constexpr int kNone = -1;
  Claims& claims_;
  int first_ = kNone, count_ = 0;
};

// `System` is `OperatingSystem`; tests have another, which interrupts threads at any use of an atomic.
template <typename System>
class BasicThreadPool {
 public:
  using Pieces = BasicPieces<System>;

  static constexpr int kMostThreads = Affinity::kMostHelpers + 1;

  // Calls `body(pieces)` in this thread, and in others that have time, until all pieces [0, count) are done. Several threads may
  // call at once; the others then help any of them.
  template <typename Function>
  void run(int count, const Function& body) {
    // Also where the team is one at present: it is noted how long regions take, and when to try more.
    Region* region = count > 1 && size_.limit() > 1 ? acquire() : nullptr;
    if (region == nullptr) {
      Claims claims;
      claims.open(count);
      Pieces pieces(claims);
      body(pieces);
      return;
    }
    open(*region, count, Body(body));
    Pieces own(region->claims);
    body(own);
    finish(*region, own.count());
    release(*region);
  }

  // The threads that take part now, callers included.
  int size() const { return size_.active(); }

  // As many threads as the system grants, at most this many.
  void resize(int size) {
    std::lock_guard<std::mutex> lock(resizing_);
    size = std::clamp(size, 1, kMostThreads);
    try {
      for (; helpers_ + 1 < size; ++helpers_) {
        system_.start(helpers_, [this, helper = helpers_.load()] { serve(helper); });
      }
    } catch (const std::system_error&) {
    }
    size_.set_limit(std::min(size, helpers_ + 1));
    note_growth();
  }

  // How nice the pool's own threads are to others (setpriority(2)); callers' threads are not its own. Less nice than before is for
  // privileged processes only: whether it could be done.
  bool set_niceness(int niceness) {
    std::lock_guard<std::mutex> lock(resizing_);
    system_.set_niceness(niceness);
    bool done = true;
    for (int helper = 0; helper < helpers_; ++helper) {
      const ThreadId id = workers_[helper].id.load();
      if (id) done &= system_.be_nice(id);
    }
    return done;
  }

  // In a forked child there are no threads but its own.
  void forget_threads() {
    new (&resizing_) std::mutex;
    helpers_ = 0;
    sleeping_.store(0);
    system_.forget_threads();
    for (Region& region : regions_) region.taken.store(false);
    size_.set_limit(1);
  }

  PoolStatistics statistics() const { return size_.statistics(); }

  System& system() { return system_; }

 private:
  using ThreadId = typename System::ThreadId;
  using Claims = BasicClaims<System>;
  template <typename Value>
  using Atomic = typename System::template Atomic<Value>;

  // What is to be done with pieces: a reference to something callable.
  class Body {
   public:
    Body() = default;
    template <typename Function>
    explicit Body(const Function& function)
        : function_(&function), call_([](const void* f, Pieces& pieces) { (*static_cast<const Function*>(f))(pieces); }) {}
    void operator()(Pieces& pieces) const { call_(function_, pieces); }

   private:
    const void* function_ = nullptr;
    void (*call_)(const void*, Pieces&) = nullptr;
  };

  struct Region;

  // A thread that may be in the middle of a piece.
  struct Worker {
    Atomic<const Region*> region{nullptr};  // of that piece
    Atomic<ThreadId> id{};
  };

  // When a thread last gave its turn away, and until when it does not.
  struct Turns {
    int64_t gave_ns = 0, keeps_until = 0;
  };

  struct alignas(128) Region {
    Claims claims;
    alignas(64) Atomic<int> done{0};
    Atomic<bool> awaited{false};  // the caller sleeps until all is done
    alignas(64) Body body;
    int count = 0;
    int64_t began_ns = 0, helped_ns = 0;
    unsigned pushed = 0;
    Worker caller;
    Atomic<bool> taken{false};
  };

  // So many callers have help at once.
  static constexpr int kRegions = 8;
  // How long threads that wait do not ask whether another was put aside, and then watch it: longer than most pieces take, and
  // most turns of this process's own threads that only hand something on.
  static constexpr int64_t kPatienceNs = 50'000;
  // After how long without help a caller asks whether helpers wait behind it.
  static constexpr int64_t kUnhelpedNs = 1'000'000;
  // After a region, threads look for the next this long if they helped, and if they came too late.
  static constexpr int64_t kSpinNs = 200'000, kShortSpinNs = 40'000;
  // Sleeping threads are woken this often at most: who comes too late, time after time, would cost more than it brings.
  static constexpr int64_t kWakeNs = 300'000;
  // Threads give their turn away this often, so that others of this process (an event loop that has woken) do not wait for its end.
  // It comes back soon if such a thread takes it. If it took that long, it went to somebody who would take any: for a while no
  // more are given away.
  static constexpr int64_t kTurnNs = 500'000, kLongNs = 2'500'000, kKeepNs = 40'000'000;

  Region* acquire() {
    for (Region& region : regions_) {
      if (!region.taken.load(std::memory_order_relaxed) && !region.taken.exchange(true, std::memory_order_acquire)) return &region;
    }
    return nullptr;
  }

  void release(Region& region) { region.taken.store(false, std::memory_order_release); }

  void open(Region& region, int count, const Body& body) {
    region.body = body;
    region.count = count;
    region.done.store(0, std::memory_order_relaxed);
    region.caller.id.store(system_.self(), std::memory_order_relaxed);
    region.caller.region.store(&region, std::memory_order_relaxed);
    thread_local Turns turns;
    give_turn_if_due(turns);
    const int processor = system_.processor();
    if (processor_.load(std::memory_order_relaxed) != processor) processor_.store(processor, std::memory_order_relaxed);
    region.began_ns = system_.now_ns();
    region.claims.open(count);
    opened_.fetch_add(1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0 && region.began_ns > woken_ns_.load(std::memory_order_relaxed) + kWakeNs) {
      woken_ns_.store(region.began_ns, std::memory_order_relaxed);
      system_.wake(opened_, count - 1);
    }
  }

  void finish(Region& region, int own) {
    region.caller.region.store(nullptr, std::memory_order_relaxed);
    const int64_t waiting_ns = system_.now_ns();
    int64_t over_ns = waiting_ns;
    if (own == region.count) {
      push_helper(region, waiting_ns);
    } else {
      region.helped_ns = waiting_ns;
      if (region.done.fetch_add(own, std::memory_order_acq_rel) + own != region.count) await(region);
      over_ns = system_.now_ns();
    }
    if (size_.note_region(over_ns, over_ns - region.began_ns, over_ns - waiting_ns, own, region.count)) note_growth();
  }

  // Where nobody has helped for a while, helpers may wait for their turn on this very processor while another is free: the system
  // wakes them where they slept, or where they were woken. They are sent away, one after another.
  void push_helper(Region& region, int64_t now_ns) {
    const int helpers = size() - 1;
    if (now_ns < region.helped_ns + kUnhelpedNs || helpers < 1) return;
    region.helped_ns = now_ns;
    const int helper = static_cast<int>(region.pushed++ % helpers);
    const ThreadId id = workers_[helper].id.load(std::memory_order_relaxed);
    if (!system_.waits_here(id)) return;
    size_.note_push();
    system_.push(helper, id);
  }

  // Until the others have done what they claimed.
  void await(Region& region) {
    Watch watch(system_.now_ns());
    int helper = -1;
    const auto next = [&]() -> const Worker* {
      for (const int count = helpers_.load(std::memory_order_relaxed); ++helper < count;) {
        if (workers_[helper].region.load(std::memory_order_relaxed) == &region) return &workers_[helper];
      }
      helper = -1;
      return nullptr;
    };
    for (unsigned looks = 1; region.done.load(std::memory_order_acquire) != region.count; ++looks) {
      system_.pause();
      if (looks % 16 != 0) continue;
      if (stands_still(watch, next) && system_.move_here(watch.id, helper)) await_rescued(region);
    }
  }

  // Leaves the processor to a thread that was moved here.
  void await_rescued(Region& region) {
    size_.note_rescue();
    region.awaited.store(true, std::memory_order_seq_cst);
    const int done = region.done.load(std::memory_order_seq_cst);
    if (done != region.count) system_.sleep(region.done, done);
    region.awaited.store(false, std::memory_order_relaxed);
  }

  // Watches one thread after another that is in the middle of a piece.
  struct Watch {
    explicit Watch(int64_t now_ns) : due_ns(now_ns + kPatienceNs) {}

    int64_t due_ns, since_ns = 0;
    const Worker* suspect = nullptr;
    const Region* region = nullptr;
    ThreadId id{};
    int64_t computed_ns = 0;
  };

  // Whether the thread that is watched has not computed since that began: the system has put it aside. `next` is to be watched
  // after it.
  template <typename Next>
  bool stands_still(Watch& watch, const Next& next) {
    const int64_t now = system_.now_ns();
    if (now < watch.due_ns) return false;
    const auto in_piece = [&] { return watch.suspect->region.load(std::memory_order_acquire) == watch.region; };
    const bool found = watch.suspect && in_piece() && system_.computed_ns(watch.id) - watch.computed_ns < (now - watch.since_ns) / 4;
    if (found) {
      watch.due_ns = now + kPatienceNs;
      return true;
    }
    watch.suspect = next();
    watch.due_ns = now + kPatienceNs;
    if (watch.suspect == nullptr) return false;
    watch.since_ns = now;
    watch.region = watch.suspect->region.load(std::memory_order_acquire);
    watch.id = watch.suspect->id.load(std::memory_order_relaxed);
    watch.computed_ns = system_.computed_ns(watch.id);
    return false;
  }

  void serve(int helper) {
    Worker& self = workers_[helper];
    self.id.store(system_.self());  // first: `set_niceness` either finds it, or has said how nice it is to be
    system_.become_nice();
    Turns turns;
    for (uint32_t seen = opened_.load(std::memory_order_acquire); !system_.over();) {
      if (!takes_part(helper)) await_growth(helper);
      give_turn_if_due(turns);
      const bool helped = help(helper, self);
      await_opening(helper, seen, helped ? kSpinNs : kShortSpinNs, turns);
      seen = opened_.load(std::memory_order_acquire);
    }
  }

  // The first thread is a caller.
  bool takes_part(int helper) const { return helper + 1 < size_.active(); }

  bool help(int helper, Worker& self) {
    bool helped = false;
    for (Region& region : regions_) {
      if (!region.claims.any_left()) continue;
      system_.spread(helper, processor_.load(std::memory_order_relaxed));
      // Said before the claim, so that a thread that is put aside right behind it is found.
      self.region.store(&region, std::memory_order_relaxed);
      for (int index; region.claims.take(index);) {
        Pieces pieces(region.claims, index);
        region.body(pieces);
        region.done.fetch_add(pieces.count(), std::memory_order_seq_cst);
        // From here on this region may be another caller's.
        if (region.awaited.load(std::memory_order_seq_cst)) {
          system_.wake(region.done);
          system_.spread(helper, processor_.load(std::memory_order_relaxed));
        }
        helped = true;
      }
      self.region.store(nullptr, std::memory_order_relaxed);
    }
    return helped;
  }

  // Until a region has been opened since `seen` was read.
  void await_opening(int helper, uint32_t seen, int64_t spin_ns, Turns& turns) {
    if (spin_until_opened(helper, seen, spin_ns, turns)) return;
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    system_.sleep(opened_, seen);
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }

  bool spin_until_opened(int helper, uint32_t seen, int64_t spin_ns, Turns& turns) {
    const int64_t began = system_.now_ns();
    Watch watch(began);
    size_t at = 0;
    const auto next = [&]() -> const Worker* {
      for (; at < regions_.size(); ++at) {
        if (regions_[at].caller.region.load(std::memory_order_relaxed)) return &regions_[at++].caller;
      }
      at = 0;
      return nullptr;
    };
    for (unsigned looks = 0;; ++looks) {
      if (opened_.load(std::memory_order_acquire) != seen) return true;
      system_.pause();
      if (looks % 64 != 0) continue;
      const int64_t now = system_.now_ns();
      if (now >= began + spin_ns) return false;
      const int processor = processor_.load(std::memory_order_relaxed);
      system_.spread(helper, processor);
      if (stands_still(watch, next) && processor != system_.processor() && system_.move_here(watch.id, System::kNoHelper)) {
        size_.note_swap();
        system_.move_to(processor);
        return true;
      }
      give_turn(turns, now);
    }
  }

  // Lets threads of this process that wait for this processor go first.
  void give_turn(Turns& turns, int64_t now) {
    if (now < turns.keeps_until) return;
    system_.yield();
    turns.gave_ns = system_.now_ns();
    if (turns.gave_ns - now > kLongNs) turns.keeps_until = turns.gave_ns + kKeepNs;
  }

  void give_turn_if_due(Turns& turns) {
    if (const int64_t now = system_.now_ns(); now > turns.gave_ns + kTurnNs) give_turn(turns, now);
  }

  void note_growth() {
    grown_.fetch_add(1, std::memory_order_seq_cst);
    system_.wake(grown_);
  }

  void await_growth(int helper) {
    for (;;) {
      const uint32_t seen = grown_.load(std::memory_order_seq_cst);
      if (takes_part(helper) || system_.over()) return;
      system_.sleep(grown_, seen);
    }
  }

  System system_;
  TeamSize size_;
  std::mutex resizing_;
  Atomic<int> helpers_{0};  // that have been started
  std::array<Worker, kMostThreads> workers_;
  std::array<Region, kRegions> regions_;
  alignas(64) Atomic<uint32_t> opened_{0};  // regions so far
  alignas(64) Atomic<int> sleeping_{0};  // until one is opened
  Atomic<int> processor_{System::kNowhere};  // that the last region was opened on
  Atomic<int64_t> woken_ns_{0};
  Atomic<uint32_t> grown_{0};  // how often the team may have become larger
};

using Pieces = BasicPieces<OperatingSystem>;

class ThreadPool : public BasicThreadPool<OperatingSystem> {
 public:
  // Never destroyed: its threads may outlive static destruction.
  static ThreadPool& get() {
    static ThreadPool* pool = make();
    return *pool;
  }

 private:
  static ThreadPool* make() {
    auto* pool = new ThreadPool();
    pthread_atfork(nullptr, nullptr, [] { get().forget_threads(); });
    return pool;
  }
};

}  // namespace asurge
