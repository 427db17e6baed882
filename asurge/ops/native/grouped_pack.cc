#include <algorithm>

#include "gguf_blocks.h"
#include "simd.h"
#include "thread_pool.h"

namespace asurge {
namespace {

constexpr int kColumns = 16;

// Four numbers of each column, from `first` on.
Ints gather(const Unpacked (&columns)[kColumns], int first) {
  alignas(64) uint8_t line[64];
  for (int column = 0; column < kColumns; ++column) std::memcpy(line + 4 * column, columns[column].codes + first, 4);
  return load_line(line);
}

// Codes of 32 numbers of 16 columns, as `grouped.h` says.
template <typename F>
void store_part(const Unpacked (&columns)[kColumns], int first, uint8_t* to) {
  Ints vectors[8];
  for (int v = 0; v < 8; ++v) vectors[v] = gather(columns, first + 4 * v);
  if constexpr (F::bits == 8) {
    for (int v = 0; v < 8; ++v) store_line(to + 64 * v, vectors[v]);
    return;
  }
  constexpr bool low = F::bits >= 4, twos = F::bits == 6 || F::bits < 4;
  const Ints nibble = all(0x0F0F0F0F), two = all(0x03030303);
  if constexpr (low) {
    for (int v = 0; v < 4; ++v, to += 64) {
      store_line(to, either(both(vectors[v], nibble), shift_left<4>(both(vectors[v + 4], nibble))));
    }
  }
  if constexpr (twos) {
    for (int h = 0; h < 2; ++h, to += 64) {
      Ints line = all(0);
      for (int k = 3; k >= 0; --k) line = either(shift_left<2>(line), both(shift_right<low ? 4 : 0>(vectors[4 * h + k]), two));
      store_line(to, line);
    }
  }
  if constexpr (F::bits == 5 || F::bits == 3) {
    for (int v = 0; v < 8; ++v, to += 8) {
      const uint64_t set = highest_bits(shift_left<8 - F::bits>(vectors[v]));
      std::memcpy(to, &set, 8);
    }
  }
}

template <typename F>
void store_factors(const Unpacked (&columns)[kColumns], uint8_t* to) {
  for (int column = 0; column < kColumns; ++column) {
    const Unpacked& from = columns[column];
    if constexpr (F::two_levels) {
      std::memcpy(to + 2 * column, &from.outer, 2);
      std::memcpy(to + 32 + 2 * column, &from.outer_minimum, 2);
    }
    for (int group = 0; group < F::groups; ++group) {
      constexpr int size = F::factor_bytes;
      const int at = size * (kColumns * group + column);
      std::memcpy(to + F::scales_at + at, &from.scales[group], size);
      if constexpr (F::has_minimum) std::memcpy(to + F::minima_at + at, &from.minima[group], size);
    }
  }
}

template <GroupedType type>
void pack_strip(const GroupedPacking& packing, int strip) {
  using F = FormatOf<type>;
  const uint8_t* rows[kColumns];
  for (int column = 0; column < kColumns; ++column) {
    const int row = packing.order[strip * kColumns + column];
    rows[column] = row < 0 ? nullptr : packing.rows + row * packing.row_bytes;
  }
  uint8_t* to = packing.out + strip * packing.stride;
  Unpacked columns[kColumns];
  for (int first = 0; first < packing.depth; first += F::block, to += F::block_bytes) {
    for (int column = 0; column < kColumns; ++column) {
      if (rows[column] == nullptr) {
        columns[column] = {};
      } else if constexpr (F::two_levels) {
        rows[column] += unpack_super<type>(rows[column], columns[column]);
      } else {
        rows[column] += unpack_small<type>(rows[column], packing.depth - first, columns[column]);
      }
    }
    store_factors<F>(columns, to);
    for (int part = 0; part < F::block / 32; ++part) {
      store_part<F>(columns, 32 * part, to + F::codes_at + part * F::part_bytes);
    }
  }
}

// The weights of one column at 32 numbers.
template <typename F>
void weights_of(const uint8_t* block, int part, int column, float* out) {
  const uint8_t* codes = block + F::codes_at + part * F::part_bytes;
  constexpr int low_lines = F::bits == 4 || F::bits == 5 || F::bits == 6 ? 4 : 0;
  constexpr bool twos = F::bits == 6 || F::bits == 2 || F::bits == 3;
  const uint8_t *two_bits = codes + 64 * low_lines, *single = two_bits + (twos ? 128 : 0);
  const auto f16 = [](const uint8_t* at) { return from_f16(load_u16(at)); };
  const auto factor = [&](int first, int group, int outer) {
    const uint8_t* at = block + first;
    if constexpr (F::scales == Scales::kE4M3) return 0.5f * from_ue4m3(at[kColumns * group + column]);
    if constexpr (!F::two_levels) return f16(at + 2 * (kColumns * group + column));
    const uint8_t byte = at[kColumns * group + column];
    return f16(block + outer + 2 * column) * (F::has_minimum ? static_cast<float>(byte) : static_cast<float>(static_cast<int8_t>(byte)));
  };
  float scale = 0.0f, minimum = 0.0f;
  for (int i = 0; i < 32; ++i) {
    const int vector = i / 4, byte = 4 * column + i % 4;
    if (i % F::group == 0) {
      scale = factor(F::scales_at, (32 * part + i) / F::group, 0);
      if constexpr (F::has_minimum) minimum = factor(F::minima_at, (32 * part + i) / F::group, 32);
    }
    int code = 0;
    if constexpr (F::bits == 8) code = static_cast<int8_t>(codes[64 * vector + byte]);
    if constexpr (low_lines) code = codes[64 * (vector % 4) + byte] >> (vector < 4 ? 0 : 4) & 15;
    if constexpr (twos) code |= (two_bits[64 * (vector / 4) + byte] >> (2 * (vector % 4)) & 3) << (low_lines ? 4 : 0);
    if constexpr (F::bits == 5 || F::bits == 3) code |= (single[8 * vector + byte / 8] >> (byte % 8) & 1) << (F::bits - 1);
    if constexpr (F::book == Codebook::kIQ4) {
      code = kIQ4Values[code];
    } else if constexpr (F::book == Codebook::kE2M1) {
      code = kE2M1Values[code];
    } else if constexpr (F::bits != 8 && F::zero_bits >= 0) {
      code -= 1 << F::zero_bits;
    }
    out[i] = code * scale + minimum;
  }
}

void take_row(const GroupedRows& rows, int index) {
  const int column = rows.columns[index];
  const StripEntry entry = rows.strips[column / kColumns];
  const uint8_t* block = rows.weight + size_t(entry.line) * 64;
  uint16_t* out = rows.out + size_t(index) * rows.depth;
  with_format(entry.type, [&](auto format) {
    using F = decltype(format);
    alignas(64) float part[32];
    for (int first = 0; first < rows.depth; first += 32) {
      weights_of<F>(block + first / F::block * F::block_bytes, first % F::block / 32, column % kColumns, part);
      for (int k = 0; k < 32 && first + k < rows.depth; k += 16) store_bf16(out + first + k, load(part + k));
    }
  });
}

}  // namespace

void pack_grouped(const GroupedPacking& packing) {
  ThreadPool::get().run(packing.columns / kColumns, [&](Pieces& strips) {
    for (int strip; strips.take(strip);) {
      with_type(packing.type, [&](auto type) { pack_strip<type()>(packing, strip); });
    }
  });
}

void take_grouped_rows(const GroupedRows& rows) {
  ThreadPool::get().run(rows.count, [&](Pieces& pieces) {
    for (int index; pieces.take(index);) take_row(rows, index);
  });
}

}  // namespace asurge
