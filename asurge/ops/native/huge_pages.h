// Zeroed memory on huge pages, for the KV cache, which is read in small blocks at scattered addresses.
//
// With pages of 4 KiB most of these reads miss the TLB; huge pages of 2 MiB fit in it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace asurge {

// Zeroes memory that has not been written to yet, on huge pages where the system has them.
void clear(uint8_t* memory, size_t bytes);

}  // namespace asurge
