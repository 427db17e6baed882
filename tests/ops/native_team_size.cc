// Size of a thread pool beside other processes, by a model: regions of a millisecond, of which those that meet a time slice of
// another process on some thread's processor take longer by it. Fails at the first line that does not hold.
#include "team_size.h"

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

struct Machine {
  int processors;
  asurge::TeamSize size;
  int64_t now_ns = 0;
  int changes = 0;

  explicit Machine(int processors) : processors(processors) { size.set_limit(processors); }

  // Other processes keep `busy` processors, and take a time slice of this length from each thread without a free one, in every region.
  void compute(int64_t for_ns, int busy, int64_t turn_ns) {
    for (const int64_t until = now_ns + for_ns; now_ns < until;) {
      const int before = size.active();
      const int64_t waited = before > processors - busy ? turn_ns : 0;
      const int64_t took = kMillisecond * processors / before + waited;
      now_ns += took;
      size.note_region(now_ns, took, waited, 1, before);
      changes += size.active() != before;
    }
  }
  int active() const { return size.active(); }
};

}  // namespace

int main() {
  // A quiet machine changes nothing.
  Machine quiet(8);
  quiet.compute(2'000 * kMillisecond, 0, 0);
  REQUIRE(quiet.active() == 8 && quiet.changes == 0);

  // Of eight processors, two are other processes': the team becomes six, tries a seventh less and less often, and grows back
  // when they are free.
  Machine beside(8);
  beside.compute(2'000 * kMillisecond, 2, 2 * kMillisecond);
  REQUIRE(beside.active() == 6 || beside.active() == 7);
  beside.changes = 0;
  beside.compute(32'000 * kMillisecond, 2, 2 * kMillisecond);
  REQUIRE(beside.changes <= 2 * 14 && beside.active() <= 7);
  beside.compute(5'000 * kMillisecond, 0, 0);
  REQUIRE(beside.active() == 8);

  // Short waits are worth it.
  Machine rarely(2);
  rarely.compute(5'000 * kMillisecond, 1, kMillisecond / 5);
  REQUIRE(rarely.active() == 2 && rarely.changes == 0);

  // Down to one thread, which waits for no other; and a new limit counts at once.
  Machine crowded(4);
  crowded.compute(1'000 * kMillisecond, 4, 10 * kMillisecond);
  REQUIRE(crowded.active() <= 2);
  crowded.size.set_limit(3);
  REQUIRE(crowded.active() == 3);

  const asurge::PoolStatistics statistics = crowded.size.statistics();
  REQUIRE(statistics.limit == 3 && statistics.regions > 0 && statistics.waited_ns > 0);
  REQUIRE(statistics.pieces - statistics.helped_pieces == statistics.regions);
}
