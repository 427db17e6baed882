// The thread pool under a simulated system: one thread runs at a time, and whenever one is about to touch what is shared, it may
// be interrupted or preempted for a long time slice of another process. Time is the number of steps.
//
// Takes `schedules FIRST COUNT`: random histories, by seed; or `interleavings`: all with up to two interruptions, the second soon
// after the first. Fails with the history that did not hold.
#include "thread_pool.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <semaphore>
#include <string>
#include <vector>

namespace {

constexpr int64_t kStepNs = 5'000, kTurnNs = 4'000'000;
constexpr int kMostSteps = 1'000'000;

std::string history;  // the history that is being tried

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s: %s\n", history.c_str(), what);
  std::_Exit(1);
}

// A step's decision: the thread that runs next (`kSame`: the running one), and whether the running one is preempted.
struct Choice {
  int next;
  bool put_aside;
};
constexpr int kSame = -1;

class Simulation {
 public:
  explicit Simulation(std::function<Choice(int step, int threads)> choose) : choose_(std::move(choose)) {}

  // Adds a simulated thread. All but the first wait to run.
  int enter() {
    threads_.emplace_back();
    return static_cast<int>(threads_.size()) - 1;
  }
  void await_turn(int thread) { turns_[thread].acquire(); }
  void leave(int thread) {
    threads_[thread].state = State::kGone;
    hand_over(thread, kSame);
  }

  // The running thread has come to a point where it may be interrupted; one that `waits` lets others run.
  void step(int thread, bool waits) {
    if (++steps_ > kMostSteps) fail("it goes on for ever");
    now_ns_ += kStepNs;
    threads_[thread].computed_ns += kStepNs;
    const Choice choice = over_ ? Choice{kSame, false} : choose_(steps_, static_cast<int>(threads_.size()));
    if (choice.put_aside) {
      threads_[thread].state = State::kAside;
      threads_[thread].until_ns = now_ns_ + kTurnNs;
    }
    hand_over(thread, choice.next == kSame && !waits && !choice.put_aside ? thread : choice.next);
  }

  void sleep(int thread, const void* word, const std::function<bool()>& unchanged) {
    if (over_ || !unchanged()) return;
    threads_[thread].state = State::kAsleep;
    threads_[thread].word = word;
    hand_over(thread, kSame);
  }

  void wake(const void* word, int most) {
    for (auto& thread : threads_) {
      if (most > 0 && thread.state == State::kAsleep && thread.word == word) {
        thread.state = State::kReady;
        --most;
      }
    }
  }

  bool rescue(int thread) {
    if (threads_[thread].state == State::kAside) threads_[thread].state = State::kReady;
    return true;
  }

  int64_t now_ns() {
    return now_ns_;
  }
  int64_t computed_ns(int thread) {
    return threads_[thread].computed_ns;
  }

  // All threads leave, but for the caller.
  void end(int caller) {
    {
        over_ = true;
      for (auto& thread : threads_) {
        if (thread.state != State::kGone) thread.state = State::kReady;
      }
    }
    for (;;) {
      step(caller, true);
        int left = 0;
      for (auto& thread : threads_) left += thread.state != State::kGone;
      if (left == 1) return;
    }
  }
  bool over() {
    return over_;
  }
  int steps() const { return steps_; }

 private:
  enum class State { kReady, kAside, kAsleep, kGone };
  static constexpr int kMostThreads = 16;

  template <size_t... index>
  static std::array<std::binary_semaphore, kMostThreads> make_turns(std::index_sequence<index...>) {
    return {std::binary_semaphore((void(index), 0))...};
  }
  struct Thread {
    State state = State::kReady;
    int64_t computed_ns = 0, until_ns = 0;
    const void* word = nullptr;
  };

  // From the running thread to one that is named, if that can run; else to the next that can. Returns when its turn comes again.
  void hand_over(int from, int wanted) {
    const int count = static_cast<int>(threads_.size());
    for (;;) {
      bool aside = false;
      for (auto& thread : threads_) {
        if (thread.state == State::kAside && thread.until_ns <= now_ns_) thread.state = State::kReady;
        aside |= thread.state == State::kAside;
      }
      int next = wanted >= 0 && wanted < count && threads_[wanted].state == State::kReady ? wanted : kSame;
      for (int after = 1; next == kSame && after <= count; ++after) {
        const int other = (from + after) % count;
        if (threads_[other].state == State::kReady) next = other;
      }
      if (next != kSame) {
        if (next == from) return;
        const bool gone = threads_[from].state == State::kGone;  // then this simulation may be, too, when another runs
        turns_[next].release();
        if (!gone) turns_[from].acquire();
        return;
      }
      if (!aside) fail("everybody waits for somebody");
      now_ns_ += kTurnNs / 8;
    }
  }

  std::vector<Thread> threads_;
  std::array<std::binary_semaphore, kMostThreads> turns_ = make_turns(std::make_index_sequence<kMostThreads>());
  std::function<Choice(int, int)> choose_;
  int steps_ = 0;
  int64_t now_ns_ = 1'000'000'000;
  bool over_ = false;
};

Simulation* simulation = nullptr;
bool rescues = true;  // whether threads may be moved
thread_local int own = -1;
thread_local bool in_piece = false;

// An atomic each of whose uses is a step.
template <typename Value>
class SimulatedAtomic {
 public:
  SimulatedAtomic(Value value = {}) : value_(value) {}
  Value load(std::memory_order = {}) const { return step(), value_; }
  operator Value() const { return load(); }
  void store(Value value, std::memory_order = {}) { step(), value_ = value; }
  Value operator=(Value value) { return store(value), value; }
  Value exchange(Value value, std::memory_order = {}) { return step(), std::exchange(value_, value); }
  Value fetch_add(Value value, std::memory_order = {}) { return step(), std::exchange(value_, value_ + value); }
  Value fetch_sub(Value value, std::memory_order = {}) { return step(), std::exchange(value_, value_ - value); }
  Value operator++() { return fetch_add(1) + 1; }
  bool operator==(Value value) const { return value_ == value; }

 private:
  static void step() { simulation->step(own, false); }
  Value value_;
};

class SimulatedSystem {
 public:
  using ThreadId = int;
  template <typename Value>
  using Atomic = SimulatedAtomic<Value>;
  static constexpr int kNoHelper = -1, kNowhere = -1;

  bool over() const { return simulation->over(); }
  void pause() { simulation->step(own, true); }
  void yield() { simulation->step(own, true); }
  int64_t now_ns() const { return simulation->now_ns(); }
  ThreadId self() const { return own; }
  int processor() const { return own; }

  template <typename Body>
  void start(int, Body body) {
    const int thread = simulation->enter();
    threads_.emplace_back([thread, body] {
      own = thread;
      simulation->await_turn(thread);
      body();
      simulation->leave(thread);
    });
  }
  void join() {
    for (auto& thread : threads_) thread.join();
  }

  template <typename Word>
  void sleep(const Atomic<Word>& word, Word value) {
    simulation->step(own, false);
    simulation->sleep(own, &word, [&] { return word == value; });
  }
  template <typename Word>
  void wake(const Atomic<Word>& word, int most = 1 << 30) {
    simulation->wake(&word, most);
  }
  int64_t computed_ns(ThreadId thread) const { return simulation->computed_ns(thread); }
  int64_t process_computed_ns() const { return 0; }
  void sleep_ns(int64_t) {}
  bool move_here(ThreadId thread, int) { return rescues && simulation->rescue(thread); }
  void move_to(int) {}
  void spread(int, int) {}
  bool waits_here(ThreadId) const { return false; }
  void push(int, ThreadId) {}
  void forget_threads() {}
  void set_niceness(int) {}
  void become_nice() {}
  bool be_nice(ThreadId) const { return true; }

 private:
  std::vector<std::thread> threads_;
};

using Pool = asurge::BasicThreadPool<SimulatedSystem>;

// Regions of some pieces: each is done once, and all are when the region is over.
void call(Pool& pool, int regions, int pieces) {
  for (int region = 0; region < regions; ++region) {
    std::vector<std::atomic<int>> begun(pieces + region), done(pieces + region);
    std::atomic<int> inside{0};
    pool.run(pieces + region, [&](Pool::Pieces& mine) {
      ++inside;
      for (int piece; mine.take(piece);) {
        if (begun[piece]++) fail("a piece was claimed twice");
        in_piece = true;
        simulation->step(own, own == 0);
        in_piece = false;
        ++done[piece];
      }
      --inside;
    });
    for (auto& piece : done) {
      if (piece != 1) fail("a region ended before its pieces");
    }
    if (inside != 0) fail("a region ended while somebody was in it");
  }
}

struct Shape {
  int helpers, callers, regions, pieces;
  bool resizes;
  int pause;
};

// Runs a history; returns the number of its steps.
int run(const Shape& shape, std::function<Choice(int, int)> choose) {
  Simulation here(std::move(choose));
  simulation = &here;
  own = here.enter();
  auto pool = std::make_unique<Pool>();
  pool->resize(1 + shape.helpers);
  std::vector<std::thread> callers;
  std::atomic<int> left{shape.callers - 1};
  for (int caller = 1; caller < shape.callers; ++caller) {
    const int thread = here.enter();
    callers.emplace_back([&, thread] {
      own = thread;
      here.await_turn(thread);
      call(*pool, shape.regions, shape.pieces);
      --left;
      here.leave(thread);
    });
  }
  for (int step = 0; step < shape.pause; ++step) here.step(own, true);  // the helpers look for work by then, or sleep
  call(*pool, shape.regions, shape.pieces);
  if (shape.resizes) {
    pool->resize(1);
    call(*pool, 1, shape.pieces);
    pool->resize(1 + shape.helpers);
    call(*pool, shape.regions, shape.pieces);
  }
  while (left > 0) here.step(own, true);
  here.end(own);
  for (auto& caller : callers) caller.join();
  pool->system().join();
  return here.steps();
}

// A team whose helper is preempted in every region, and may not be moved, goes on without it, and takes it back when the machine
// is quiet.
void try_sizes() {
  history = "sizes";
  rescues = false;
  bool busy = true;
  Simulation here([&](int, int) { return Choice{kSame, busy && own != 0 && in_piece}; });
  simulation = &here;
  own = here.enter();
  auto pool = std::make_unique<Pool>();
  pool->resize(2);
  const auto call_until = [&](int size) {
    for (int region = 0; pool->size() != size; ++region) {
      if (region == 10'000) fail("the team keeps its size");
      call(*pool, 1, 4);
    }
  };
  call_until(1);
  busy = false;
  call_until(2);
  here.end(own);
  pool->system().join();
  rescues = true;
}

void try_schedules(unsigned first, unsigned count) {
  for (unsigned seed = first; seed < first + count; ++seed) {
    history = "seed " + std::to_string(seed);
    std::mt19937 random(seed);
    const auto below = [&](unsigned limit) { return static_cast<int>(random() % limit); };
    const Shape shape{1 + below(4), 1 + below(3), 1 + below(3), 1 + below(6), below(2) == 0, below(2) * below(60)};
    const int rarely = 2 + below(30), aside = 2 + below(30);
    run(shape, [&](int, int threads) { return below(rarely) ? Choice{kSame, false} : Choice{below(threads), below(aside) == 0}; });
  }
}

void try_interleavings(const Shape& shape, int soon) {
  const int steps = run(shape, [](int, int) { return Choice{kSame, false}; });
  // An interruption: to each thread, or by a time slice of another process.
  const int kinds = 4;
  const auto choice = [](int kind) { return kind < 3 ? Choice{kind, false} : Choice{kSame, true}; };
  int histories = 0;
  for (int first = shape.pause + 1; first <= steps; ++first) {
    for (int kind = 0; kind < kinds; ++kind) {
      for (int later = 0; later <= soon; ++later) {
        for (int second = 0; second < (later ? kinds : 1); ++second, ++histories) {
          history = "interruptions " + std::to_string(kind) + " at " + std::to_string(first) + " and " + std::to_string(second) + " at +" + std::to_string(later);
          run(shape, [&](int step, int) {
            if (step == first) return choice(kind);
            return later && step == first + later ? choice(second) : Choice{kSame, false};
          });
        }
      }
    }
  }
  std::printf("%d histories of %d steps\n", histories, steps);
}

}  // namespace

int main(int count, char** arguments) {
  // One thread runs at a time: on one processor, the next one need not be woken on another.
  const cpu_set_t one = asurge::Affinity::only(sched_getcpu());
  sched_setaffinity(0, sizeof one, &one);
  if (count == 4) {
    try_schedules(std::atoi(arguments[2]), std::atoi(arguments[3]));
    try_sizes();
  } else {
    // Helpers that begin, that look for work, and that sleep.
    for (const auto& [pause, soon] : {std::pair(0, 3), std::pair(3, 3), std::pair(40, 2)}) {
      try_interleavings(Shape{2, 1, 2, 2, false, pause}, soon);
    }
  }
}
