// Yields of a thread that calls kernels, by a model of what runs meanwhile. Fails at the first line that does not hold.
#include "thread_pool.h"

#include <cstdio>
#include <cstdlib>

namespace {

void require(bool holds, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d: does not hold\n", line);
  std::exit(1);
}
#define REQUIRE(condition) require(condition, __LINE__)

constexpr int64_t kMillisecond = 1'000'000;
constexpr int kLoop = 7, kOther = 8;

struct System {
  using ThreadId = int;
  template <typename Value>
  using Atomic = std::atomic<Value>;
  static constexpr int kNoHelper = -1, kNowhere = -1;

  // What runs when the caller yields: a thread, for how long.
  static inline int next = kOther;
  static inline int64_t slice_ns = 0, now = 1'000 * kMillisecond, computed[10] = {};
  static inline int yields = 0;

  bool over() const { return false; }
  void pause() {}
  void yield() {
    ++yields;
    now += slice_ns;
    computed[next] += slice_ns;
  }
  int64_t now_ns() const { return now; }
  int64_t process_computed_ns() const { return now; }
  void sleep_ns(int64_t) {}
  int self() const { return 1; }
  int processor() const { return 0; }
  template <typename Body>
  void start(int, Body) {}
  template <typename Word, typename Value>
  void sleep(const Word&, Value) {}
  template <typename Word>
  void wake(const Word&, int = 0) {}
  int64_t computed_ns(int thread) const { return computed[thread]; }
  bool move_here(int, int) { return false; }
  void move_to(int) {}
  void spread(int, int) {}
  bool waits_here(int) const { return false; }
  void push(int, int) {}
  void forget_threads() {}
  void set_niceness(int) {}
  void become_nice() {}
  bool be_nice(int) const { return true; }
};

using Pool = asurge::BasicThreadPool<System>;

// Number of yields during regions of 100 us that take so long in all, slices of others left out.
int yields_of(Pool& pool, int64_t for_ns) {
  const int before = System::yields;
  for (int64_t done = 0; done < for_ns; done += kMillisecond / 10) {
    pool.run(1, [](Pool::Pieces& pieces) {
      for (int piece; pieces.take(piece);) System::now += kMillisecond / 10;
    });
  }
  return System::yields - before;
}

}  // namespace

int main() {
  Pool pool;
  const int loops[] = {kLoop};

  // Twice a millisecond where nobody takes the processor, or takes it for a moment.
  REQUIRE(yields_of(pool, 100 * kMillisecond) >= 150);
  System::slice_ns = kMillisecond;
  REQUIRE(yields_of(pool, 100 * kMillisecond) >= 90);

  // Where another process takes it for a whole slice, rarely.
  System::slice_ns = 4 * kMillisecond;
  const int rarely = yields_of(pool, 400 * kMillisecond);
  REQUIRE(rarely >= 5 && rarely <= 12);

  // An event loop is yielded to for as long as it computes; beside others that run then, not.
  System::now += 100 * kMillisecond;
  pool.set_loop_threads(loops, 1);
  System::next = kLoop;
  REQUIRE(yields_of(pool, 100 * kMillisecond) >= 90);
  System::next = kOther;
  REQUIRE(yields_of(pool, 400 * kMillisecond) <= 12);

  // It is one no longer.
  System::now += 100 * kMillisecond;
  System::next = kLoop;
  pool.set_loop_threads(nullptr, 0);
  REQUIRE(yields_of(pool, 400 * kMillisecond) <= 12);
}
