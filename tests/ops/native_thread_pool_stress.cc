// The thread pool as it is, for sanitizers: several callers at once, a team that changes its size, sleepers, and a fork.
#include "thread_pool.h"

#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace {

void call(int regions, int seed) {
  for (int region = 0; region < regions; ++region) {
    const int count = 1 + (region * 7 + seed) % 40;
    std::vector<int> values(count);
    asurge::ThreadPool::get().run(count, [&](asurge::Pieces& pieces) {
      for (int piece; pieces.take(piece);) {
        for (int step = 0; step < (region + piece) % 50; ++step) values[piece] += step % 3;
        values[piece] = piece + 1;
      }
    });
    if (std::accumulate(values.begin(), values.end(), 0) != count * (count + 1) / 2) std::abort();
    if (region % 500 == 0) usleep(1'000);  // long enough to fall asleep
  }
}

}  // namespace

int main(int, char** arguments) {
  const int regions = std::atoi(arguments[1]);
  asurge::ThreadPool& pool = asurge::ThreadPool::get();
  pool.resize(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) callers.emplace_back(call, regions, caller);
  for (int turn = 0; turn < 50; ++turn) {
    pool.resize(1 + turn % 4);
    pool.set_niceness(turn / 10);
    usleep(2'000);
  }
  for (auto& caller : callers) caller.join();
  if (std::atoi(arguments[2])) {
    const pid_t child = fork();
    if (child == 0) {  // the child has none of the threads, and can start one again
      call(100, 0);
      pool.resize(2);
      call(100, 1);
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    if (status != 0) std::abort();
  }
  std::printf("%lld\n", static_cast<long long>(pool.statistics().helped_pieces));
}
