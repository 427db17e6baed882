// A pool of threads for parallel regions of a few microseconds each, on a machine that has other work to do too.
//
// A decode step has some hundred such regions. A region is a number of pieces, and each thread that runs claims the next piece
// (dynamic scheduling): the caller alone can do them all, and no thread is waited for that has not begun. A thread that the
// system preempts in the middle of a piece must be waited for; the waiting thread then gives it its own processor (a rescue).
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
#include "quota_pacer.h"
#include "team_size.h"

namespace asurge {

// The counter of a region: hands out indices below a limit, each once.
template <typename System>
class BasicClaims {
 public:
  void open(int limit) { word_.store(uint64_t(limit) << 32, std::memory_order_release); }

  bool any_left() const {
    const uint64_t word = word_.load(std::memory_order_relaxed);
    return claimed(word) < limit(word);
  }

  // May claim from a region that was opened meanwhile, so the region's body must be read after the claim.
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

// The pieces of a region that one thread computes.
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

// `System` is `OperatingSystem`; tests substitute a simulation that preempts threads at any use of an atomic.
template <typename System>
class BasicThreadPool {
 public:
  using Pieces = BasicPieces<System>;

  static constexpr int kMostThreads = Affinity::kMostHelpers + 1, kMostLoops = 8;

  // Calls `body(pieces)` in this thread, and in others that have time, until all pieces [0, count) are done. Several threads may
  // call at once; the others then help any of them.
  template <typename Function>
  void run(int count, const Function& body) {
    pacer_.pace(system_);
    thread_local YieldState yields;
    yield_if_due(yields);
    // Also where the team has one thread at present: the region's time decides when to try more.
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

  // Sets the processors whose time the process may use; 0: no limit.
  void set_quota(double processors) { pacer_.set_quota(processors); }

  // Sets the threads that run event loops: a long time slice of theirs is no reason to stop yielding.
  void set_loop_threads(const typename System::ThreadId* ids, int count) {
    for (int loop = 0; loop < kMostLoops; ++loop) loops_[loop].store(loop < count ? ids[loop] : 0, std::memory_order_relaxed);
  }

  // Number of threads that take part now, callers included.
  int size() const { return size_.active(); }

  // Sets the number of threads: at most `size`, and as many as the system can start.
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

  // Sets the niceness of the pool's own threads (setpriority(2)), not of callers'. Returns whether it could be set: only privileged
  // processes may lower it.
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

  // Resets the pool in a forked child, which has no thread but its own.
  void forget_threads() {
    new (&resizing_) std::mutex;
    helpers_ = 0;
    sleeping_.store(0);
    system_.forget_threads();
    pacer_.forget_threads();
    for (Region& region : regions_) region.taken.store(false);
    size_.set_limit(1);
  }

  PoolStatistics statistics() const {
    PoolStatistics statistics = size_.statistics();
    statistics.quota_sleep_ns = pacer_.slept_ns();
    return statistics;
  }

  System& system() { return system_; }

 private:
  using ThreadId = typename System::ThreadId;
  using Claims = BasicClaims<System>;
  template <typename Value>
  using Atomic = typename System::template Atomic<Value>;

  // Body of a region: a reference to a callable that takes `Pieces`.
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
    Atomic<const Region*> region{nullptr};  // the region of that piece, or null
    Atomic<ThreadId> id{};
  };

  // When a thread last yielded its processor, and until when it does not.
  struct YieldState {
    int64_t yielded_ns = 0, no_yield_until = 0;
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

  // Number of regions that have helpers at once; further callers compute alone.
  static constexpr int kRegions = 8;
  // Time before a waiting thread checks whether another was preempted, and time it then watches that thread: longer than most
  // pieces take, and most time slices of this process's own threads that only hand something on.
  static constexpr int64_t kPatienceNs = 50'000;
  // Time without help after which a caller checks whether helpers wait for its own processor.
  static constexpr int64_t kUnhelpedNs = 1'000'000;
  // Time that threads spin for the next region: after they helped with one, and after they came too late.
  static constexpr int64_t kSpinNs = 200'000, kShortSpinNs = 40'000;
  // Least time between wake-ups of sleeping threads: those that always come too late would cost more than they bring.
  static constexpr int64_t kWakeNs = 300'000;
  // Threads yield this often, so that others of this process (an event loop that has woken) need not wait for the end of the time
  // slice. If it took longer than kLongYieldNs and no event loop ran meanwhile, another process took the processor, which would
  // take every one: threads then do not yield for kNoYieldNs.
  static constexpr int64_t kYieldEveryNs = 500'000, kLongYieldNs = 2'500'000, kNoYieldNs = 40'000'000;

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
      if (region.done.fetch_add(own, std::memory_order_acq_rel) + own != region.count) await_others(region);
      over_ns = system_.now_ns();
    }
    if (size_.note_region(over_ns, over_ns - region.began_ns, over_ns - waiting_ns, own, region.count)) note_growth();
  }

  // Moves helpers, one after another, off the caller's processor where nobody has helped for a while: the system wakes threads where
  // they slept or where they were woken from, and they may be waiting for this very processor while another is free.
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

  // Waits until the others have finished the pieces that they claimed.
  void await_others(Region& region) {
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
      if (is_preempted(watch, next) && system_.move_here(watch.id, helper)) await_moved_thread(region);
    }
  }

  // Sleeps, so that a thread that was moved to this processor can run.
  void await_moved_thread(Region& region) {
    size_.note_rescue();
    region.awaited.store(true, std::memory_order_seq_cst);
    const int done = region.done.load(std::memory_order_seq_cst);
    if (done != region.count) system_.sleep(region.done, done);
    region.awaited.store(false, std::memory_order_relaxed);
  }

  // State of watching one thread after another that is in the middle of a piece.
  struct Watch {
    explicit Watch(int64_t now_ns) : due_ns(now_ns + kPatienceNs) {}

    int64_t due_ns, since_ns = 0;
    const Worker* suspect = nullptr;
    const Region* region = nullptr;
    ThreadId id{};
    int64_t computed_ns = 0;
  };

  // Whether the watched thread has been preempted: it has used little processor time since watching began. `next` returns the
  // thread to watch after it.
  template <typename Next>
  bool is_preempted(Watch& watch, const Next& next) {
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
    self.id.store(system_.self());  // first: `set_niceness` either finds this thread, or has set the niceness it starts with
    system_.become_nice();
    YieldState yields;
    for (uint32_t seen = opened_.load(std::memory_order_acquire); !system_.over();) {
      if (!takes_part(helper)) await_growth(helper);
      yield_if_due(yields);
      const bool helped = help(helper, self);
      await_opening(helper, seen, helped ? kSpinNs : kShortSpinNs, yields);
      seen = opened_.load(std::memory_order_acquire);
    }
  }

  // Whether a helper belongs to the team now, whose first thread is a caller.
  bool takes_part(int helper) const { return helper + 1 < size_.active(); }

  bool help(int helper, Worker& self) {
    bool helped = false;
    for (Region& region : regions_) {
      if (!region.claims.any_left()) continue;
      system_.spread(helper, processor_.load(std::memory_order_relaxed));
      // Stored before the claim, so that a thread that is preempted right after it is found.
      self.region.store(&region, std::memory_order_relaxed);
      for (int index; region.claims.take(index);) {
        Pieces pieces(region.claims, index);
        region.body(pieces);
        region.done.fetch_add(pieces.count(), std::memory_order_seq_cst);
        // From here on another caller may have taken this region.
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

  // Waits until a region has been opened since `seen` was read: spins first, then sleeps.
  void await_opening(int helper, uint32_t seen, int64_t spin_ns, YieldState& yields) {
    if (spin_until_opened(helper, seen, spin_ns, yields)) return;
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    system_.sleep(opened_, seen);
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }

  bool spin_until_opened(int helper, uint32_t seen, int64_t spin_ns, YieldState& yields) {
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
      if (is_preempted(watch, next) && processor != system_.processor() && system_.move_here(watch.id, System::kNoHelper)) {
        size_.note_swap();
        system_.move_to(processor);
        return true;
      }
      yield_to_own_threads(yields, now);
    }
  }

  // Yields to threads of this process that wait for this processor.
  void yield_to_own_threads(YieldState& yields, int64_t now) {
    if (now < yields.no_yield_until) return;
    const int64_t loops_ns = loops_computed_ns();
    system_.yield();
    yields.yielded_ns = system_.now_ns();
    const int64_t took_ns = yields.yielded_ns - now;
    if (took_ns > kLongYieldNs && loops_computed_ns() - loops_ns < took_ns / 2) yields.no_yield_until = yields.yielded_ns + kNoYieldNs;
  }

  // Processor time that event loops have used.
  int64_t loops_computed_ns() const {
    int64_t sum = 0;
    for (const auto& loop : loops_) {
      if (const ThreadId id = loop.load(std::memory_order_relaxed)) sum += system_.computed_ns(id);
    }
    return sum;
  }

  void yield_if_due(YieldState& yields) {
    if (const int64_t now = system_.now_ns(); now > yields.yielded_ns + kYieldEveryNs) yield_to_own_threads(yields, now);
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
  BasicQuotaPacer<System> pacer_;
  TeamSize size_;
  std::mutex resizing_;
  Atomic<int> helpers_{0};  // started so far
  std::array<Worker, kMostThreads> workers_;
  std::array<Region, kRegions> regions_;
  std::array<Atomic<ThreadId>, kMostLoops> loops_{};
  alignas(64) Atomic<uint32_t> opened_{0};  // regions opened so far
  alignas(64) Atomic<int> sleeping_{0};  // threads that sleep until a region is opened
  Atomic<int> processor_{System::kNowhere};  // of the caller that opened the last region
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
