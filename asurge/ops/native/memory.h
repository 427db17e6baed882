// Memory that is read in small pieces from anywhere.
//
// Where 4 KiB lie has to be looked up for each such page anew, and again for the next keys and values; with huge pages
// all of them are known to the processor at once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace asurge {

// Zeros in memory that nobody has written to yet, on huge pages where the system gives them.
void clear(uint8_t* memory, size_t bytes);

}  // namespace asurge
