#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "pool.h"

namespace asurge {

void clear(uint8_t* memory, size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  if (first >= last) {
    std::memset(memory, 0, bytes);
    return;
  }
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a request: everything works without it too
  // Each member writes whole pages: the first to touch one waits until the system has made it.
  const int pages = static_cast<int>((last - first) / kHuge);
  Tickets parts(pages);
  Pool::get().run([&](int, Team&) {
    for (int part; parts.take(part);) {
      const uintptr_t from = part == 0 ? begin : first + part * kHuge;
      const uintptr_t to = part + 1 == pages ? end : first + (part + 1) * kHuge;
      std::memset(reinterpret_cast<void*>(from), 0, to - from);
    }
  });
}

}  // namespace asurge
