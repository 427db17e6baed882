// Memory that is read in small pieces from anywhere.
//
// With pages of 4 KiB, the processor has to look up where each one lies, and again for the next keys and values; with huge pages
// it knows all of them at once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace asurge {

// Zeros in memory that nobody has written to yet, on huge pages where the system gives them.
void clear(uint8_t* memory, size_t bytes);

}  // namespace asurge
