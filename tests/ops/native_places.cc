// Fails at the first line that does not hold. Takes two processors that this process may use.
#include "places.h"

#include <cstdio>
#include <cstdlib>

namespace {

cpu_set_t only(int first, int second) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(first, &set);
  CPU_SET(second, &set);
  return set;
}

void allow(int first, int second) {
  const cpu_set_t set = only(first, second);
  sched_setaffinity(0, sizeof set, &set);
}

// The calling thread, as this member, is on this processor.
void put(asurge::Places& places, int member, int processor) {
  allow(processor, processor);
  places.note(member);
}

void require(bool holds, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d: does not hold\n", line);
  std::exit(1);
}
#define REQUIRE(condition) require(condition, __LINE__)

}  // namespace

int main(int, char** arguments) {
  const int one = std::atoi(arguments[1]), other = std::atoi(arguments[2]);
  asurge::Places places;
  put(places, 0, one);

  // Nowhere else to go.
  places.spread(1, 2);
  REQUIRE(sched_getcpu() == one);

  // Room for both: who comes later leaves, and may go on to be moved by the system as before.
  allow(one, other);
  places.spread(1, 2);
  REQUIRE(sched_getcpu() == other);
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  const cpu_set_t both = only(one, other);
  REQUIRE(CPU_EQUAL(&allowed, &both));

  // A third finds both taken and stays.
  allow(other, other);
  allow(one, other);
  places.spread(2, 3);
  REQUIRE(sched_getcpu() == other);

  // Where the second was does not matter once it is no member any more.
  asurge::Places fewer;
  put(fewer, 5, other);
  put(fewer, 0, one);
  allow(one, other);
  fewer.spread(1, 2);
  REQUIRE(sched_getcpu() == other);

  // Who is alone on a processor stays.
  put(fewer, 0, one);
  put(fewer, 1, other);
  allow(one, other);
  fewer.spread(1, 2);
  REQUIRE(sched_getcpu() == other);
}
