// Zeroes large allocations in parallel, on transparent huge pages.
#include "huge_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "thread_pool.h"

namespace asurge {

namespace {

constexpr size_t kHuge = size_t{2} << 20;

// The huge pages that lie entirely within some memory.
struct HugePages {
  uintptr_t first, last;
  HugePages(uint8_t* memory, size_t bytes)
      : first((reinterpret_cast<uintptr_t>(memory) + kHuge - 1) / kHuge * kHuge),
        last(std::max(first, (reinterpret_cast<uintptr_t>(memory) + bytes) / kHuge * kHuge)) {}
};

}  // namespace

void clear(uint8_t* memory, size_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  const auto [first, last] = HugePages(memory, bytes);
  if (first == last) {
    std::memset(memory, 0, bytes);
    return;
  }
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  // Each piece is a huge page: the first thread to touch one waits until the system has allocated it.
  const int pages = static_cast<int>((last - first) / kHuge);
  ThreadPool::get().run(pages, [&](Pieces& parts) {
    for (int part; parts.take(part);) {
      const uintptr_t from = part == 0 ? begin : first + part * kHuge;
      const uintptr_t to = part + 1 == pages ? end : first + (part + 1) * kHuge;
      std::memset(reinterpret_cast<void*>(from), 0, to - from);
    }
  });
}

}  // namespace asurge
