// Fails at the first line that does not hold. Takes two processors that this process may use.
#include "operating_system.h"

#include <cstdio>
#include <cstdlib>

namespace {

cpu_set_t both_of(int first, int second) {
  cpu_set_t set = asurge::Affinity::only(first);
  CPU_SET(second, &set);
  return set;
}

void allow(int first, int second) {
  const cpu_set_t set = both_of(first, second);
  sched_setaffinity(0, sizeof set, &set);
}

// The calling thread is on this processor, and may be on both.
void put(int processor, int one, int other) {
  allow(processor, processor);
  allow(one, other);
}

void require(bool holds, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d: does not hold\n", line);
  std::exit(1);
}
#define REQUIRE(condition) require(condition, __LINE__)

bool may_run_on(pid_t thread, int one, int other) {
  cpu_set_t allowed;
  sched_getaffinity(thread, sizeof allowed, &allowed);
  const cpu_set_t both = both_of(one, other);
  return CPU_EQUAL(&allowed, &both);
}

}  // namespace

int main(int, char** arguments) {
  const int one = std::atoi(arguments[1]), other = std::atoi(arguments[2]);
  asurge::Affinity affinity;

  // No other processor is allowed.
  allow(one, one);
  affinity.spread(0, one);
  REQUIRE(sched_getcpu() == one);

  // A helper leaves its caller's processor, and keeps its affinity mask.
  put(one, one, other);
  affinity.spread(0, one);
  REQUIRE(sched_getcpu() == other && may_run_on(0, one, other));

  // A helper on a processor of its own stays.
  affinity.spread(0, one);
  REQUIRE(sched_getcpu() == other);

  // Another helper finds both processors taken and stays.
  affinity.spread(1, one);
  REQUIRE(sched_getcpu() == other);

  // A helper that shares an earlier helper's processor moves to a free one.
  asurge::Affinity fresh;
  fresh.note(0, one);
  put(one, one, other);
  fresh.spread(1, asurge::Affinity::kNowhere);
  REQUIRE(sched_getcpu() == other);

  // A thread that waits for this processor is found, and runs once it was moved away.
  asurge::OperatingSystem system;
  std::atomic<pid_t> id{0};
  std::atomic<bool> over{false}, ran{false};
  put(one, one, other);
  std::thread waiting([&] {
    put(one, one, other);
    id = gettid();
    while (!over) ran = ran || sched_getcpu() == other;
  });
  while (id == 0) sched_yield();
  const int64_t until = system.now_ns() + 5'000'000'000;
  bool seen = false;
  while (!ran && system.now_ns() < until) {
    allow(one, one);  // this thread stays
    if (system.waits_here(id)) {
      seen = true;
      system.push(0, id);
    } else if (!ran) {
      asurge::Affinity::move(id, asurge::Affinity::only(one));
    }
  }
  REQUIRE(ran && seen && may_run_on(id, one, other));
  REQUIRE(system.computed_ns(id) > 0);
  REQUIRE(system.move_here(id, 0) && may_run_on(id, one, other));

  // Threads that move each other at the same time leave both free to run anywhere.
  const pid_t own = gettid();
  allow(one, other);
  std::thread moving([&] {
    for (int turn = 0; turn < 2'000; ++turn) asurge::Affinity::move(id, asurge::Affinity::only(turn % 2 ? one : other));
  });
  for (int turn = 0; turn < 2'000; ++turn) {
    asurge::Affinity::move(turn % 3 ? id.load() : own, asurge::Affinity::only(turn % 2 ? other : one));
  }
  moving.join();
  REQUIRE(may_run_on(id, one, other) && may_run_on(own, one, other));
  over = true;
  waiting.join();

  // A thread that does not exist is not moved.
  REQUIRE(!system.move_here(1 << 22, 0) && !system.waits_here(1 << 22));
}
