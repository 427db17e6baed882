// Time that a process uses under a quota, by a model of threads that compute and of others that compute beside them.
// Fails at the first line that does not hold.
#include "quota_pacer.h"

#include <cstdio>
#include <cstdlib>

namespace {

void require(bool holds, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d: does not hold\n", line);
  std::exit(1);
}
#define REQUIRE(condition) require(condition, __LINE__)

constexpr int64_t kMicrosecond = 1'000, kMillisecond = 1'000'000;

struct Process {
  int64_t time_ns = 7'000'000'000, used_ns = 3'000'000'000, longest_sleep_ns = 0, sleeps = 0;

  int64_t now_ns() const { return time_ns; }
  int64_t process_computed_ns() const { return used_ns; }
  void sleep_ns(int64_t duration_ns) {
    time_ns += duration_ns;
    longest_sleep_ns = std::max(longest_sleep_ns, duration_ns);
    ++sleeps;
  }

  // Calls kernels of `region_ns` for a while, during which the process uses `processors` in all. Returns the time used.
  int64_t compute(asurge::BasicQuotaPacer<Process>& pacer, int64_t for_ns, double processors, int64_t region_ns) {
    const int64_t before = used_ns;
    for (const int64_t until = time_ns + for_ns; time_ns < until;) {
      pacer.pace(*this);
      time_ns += region_ns;
      used_ns += static_cast<int64_t>(processors * static_cast<double>(region_ns));
    }
    return used_ns - before;
  }
};

}  // namespace

int main() {
  // Without a quota, and below it, nobody sleeps.
  {
    asurge::BasicQuotaPacer<Process> pacer;
    Process process;
    process.compute(pacer, 100 * kMillisecond, 2.0, 100 * kMicrosecond);
    pacer.set_quota(1.5);
    process.compute(pacer, 1'000 * kMillisecond, 1.4, 100 * kMicrosecond);
    REQUIRE(process.sleeps == 0 && pacer.slept_ns() == 0);
  }
  // Beyond it, every period of 100 ms uses what is granted, to within 5 ms, in sleeps of a few milliseconds; also where regions are long.
  for (const double quota : {0.5, 1.0, 1.5, 3.2}) {
    for (const double excess : {1.1, 1.6, 2.0}) {
      for (const int64_t region_ns : {20 * kMicrosecond, 300 * kMicrosecond, 2'000 * kMicrosecond}) {
        asurge::BasicQuotaPacer<Process> pacer;
        pacer.set_quota(quota);
        Process process;
        process.compute(pacer, 50 * kMillisecond, quota * excess, region_ns);
        for (int period = 0; period < 20; ++period) {
          const int64_t began_ns = process.time_ns;
          const int64_t used = process.compute(pacer, 100 * kMillisecond, quota * excess, region_ns);
          const double granted = quota * static_cast<double>(process.time_ns - began_ns);
          REQUIRE(static_cast<double>(used) < granted + quota * 5 * kMillisecond);
          REQUIRE(static_cast<double>(used) > granted - quota * 5 * kMillisecond);
        }
        REQUIRE(process.longest_sleep_ns <= 5 * kMillisecond);
        REQUIRE(pacer.slept_ns() >= process.sleeps * kMillisecond);
      }
    }
  }
  // Rest is saved for a burst of two milliseconds, no more; a stop by the system itself is made good.
  {
    asurge::BasicQuotaPacer<Process> pacer;
    pacer.set_quota(1.0);
    Process process;
    process.compute(pacer, 10 * kMillisecond, 1.0, 100 * kMicrosecond);
    process.time_ns += 5'000 * kMillisecond;
    const int64_t used = process.compute(pacer, 20 * kMillisecond, 2.0, 100 * kMicrosecond);
    REQUIRE(used <= 20 * kMillisecond + 5 * kMillisecond && process.sleeps > 0);
  }
  // The quota is lifted, and a forked child begins with a clock of its own.
  {
    asurge::BasicQuotaPacer<Process> pacer;
    pacer.set_quota(1.0);
    Process parent;
    parent.compute(pacer, 50 * kMillisecond, 2.0, 100 * kMicrosecond);
    Process child;
    child.time_ns = parent.time_ns;
    child.used_ns = 0;
    pacer.forget_threads();
    const int64_t used = child.compute(pacer, 100 * kMillisecond, 2.0, 100 * kMicrosecond);
    REQUIRE(used < 110 * kMillisecond && child.sleeps > 0);
    pacer.set_quota(0);
    child.sleeps = 0;
    child.compute(pacer, 100 * kMillisecond, 2.0, 100 * kMicrosecond);
    REQUIRE(child.sleeps == 0);
  }
}
