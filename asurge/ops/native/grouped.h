// Weights of 2 to 8 bits whose scales belong to groups of 16 or 32 numbers along the depth, as GGUF has them.
//
// A strip holds 16 columns. Its blocks follow each other along the depth: of 64 numbers, with a float16 scale for each group and
// column; or of 256, with a float16 scale for each column and, to be multiplied by it, an integer of 8 bits for each group
// ("two levels", llama.cpp's K-quants). A format may have minima, stored in the same way. All come before the codes:
//   one level:  scales [64 / group][16] f16 (or FP8, E4M3, of which half is meant), minima likewise, 2 parts of codes
//   two levels: scale [16] f16, minimum [16] f16 (or padding), scales [256 / group][16] int8, minima likewise, 8 parts of codes
// A part is 32 numbers of each column: 8 vectors of 64 bytes, of which vector v holds numbers 4 v to 4 v + 3 of all columns, as
// dot products of bytes take them. Of 4 bits and more, 4 lines hold the low nibbles: vector v in the low half of line v, vector
// v + 4 in the high half. Then come, or in 2 and 3 bits first, 2 lines of 2 bits (vector 4 h + k in bits 2 k of line h), and for
// an odd number of bits a line of single ones (vector v in bytes 8 v to 8 v + 7). Codes of 8 bits are 8 lines as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace asurge {

// The numbers of formats, as `asurge.ops.grouped` has them.
enum class GroupedType : int32_t {
  kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kIQ4_NL, kIQ4_XS, kMXFP4, kNVFP4, kCount
};

enum class Codebook { kNone, kIQ4, kE2M1 };

enum class Scales { kF16, kE4M3 };

// Signed numbers of 8 bits that nibbles stand for: non-linear ones of llama.cpp, and twice those of FP4 (E2M1).
alignas(16) inline constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
alignas(16) inline constexpr int8_t kE2M1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// A weight is scale * (code - zero) + minimum, its code looked up where there is a codebook. `zero_bits`: the zero is a power of
// two, or there is none (-1).
template <int bits_, int group_, bool two_levels_, bool has_minimum_, int zero_bits_, Codebook book_ = Codebook::kNone,
          Scales scales_ = Scales::kF16>
struct GroupedFormat {
  static constexpr int bits = bits_, group = group_, zero_bits = zero_bits_;
  static constexpr bool two_levels = two_levels_, has_minimum = has_minimum_;
  static constexpr Codebook book = book_;
  static constexpr Scales scales = scales_;
  static constexpr int block = two_levels ? 256 : 64;    // numbers along the depth
  static constexpr int groups = block / group;
  static constexpr int part_bytes = 64 * bits;
  static constexpr int factor_bytes = two_levels || scales == Scales::kE4M3 ? 1 : 2;  // of a scale, or of a minimum
  static constexpr int scale_bytes = groups * 16 * factor_bytes;
  static constexpr int scales_at = two_levels ? 64 : 0;
  static constexpr int minima_at = scales_at + scale_bytes;
  static constexpr int codes_at = minima_at + (has_minimum ? scale_bytes : 0);
  static constexpr int block_bytes = codes_at + block / 32 * part_bytes;
  // Codes lie around zero and are multiplied as signed numbers of 8 bits.
  static constexpr bool is_signed = bits == 8 || book == Codebook::kIQ4;
};

template <GroupedType type>
struct FormatOf;
template <>
struct FormatOf<GroupedType::kQ4_0> : GroupedFormat<4, 32, false, false, 3> {};
template <>
struct FormatOf<GroupedType::kQ4_1> : GroupedFormat<4, 32, false, true, -1> {};
template <>
struct FormatOf<GroupedType::kQ5_0> : GroupedFormat<5, 32, false, false, 4> {};
template <>
struct FormatOf<GroupedType::kQ5_1> : GroupedFormat<5, 32, false, true, -1> {};
template <>
struct FormatOf<GroupedType::kQ8_0> : GroupedFormat<8, 32, false, false, 7> {};
template <>
struct FormatOf<GroupedType::kQ2_K> : GroupedFormat<2, 16, true, true, -1> {};
template <>
struct FormatOf<GroupedType::kQ3_K> : GroupedFormat<3, 16, true, false, 2> {};
template <>
struct FormatOf<GroupedType::kQ4_K> : GroupedFormat<4, 32, true, true, -1> {};
template <>
struct FormatOf<GroupedType::kQ5_K> : GroupedFormat<5, 32, true, true, -1> {};
template <>
struct FormatOf<GroupedType::kQ6_K> : GroupedFormat<6, 16, true, false, 5> {};
template <>
struct FormatOf<GroupedType::kIQ4_NL> : GroupedFormat<4, 32, false, false, 7, Codebook::kIQ4> {};
template <>
struct FormatOf<GroupedType::kIQ4_XS> : GroupedFormat<4, 32, true, false, 7, Codebook::kIQ4> {};
template <>
struct FormatOf<GroupedType::kMXFP4> : GroupedFormat<4, 32, false, false, 4, Codebook::kE2M1> {};
template <>
struct FormatOf<GroupedType::kNVFP4> : GroupedFormat<4, 16, false, false, 4, Codebook::kE2M1, Scales::kE4M3> {};

// body(type) of a type that is a constant.
template <typename Body>
decltype(auto) with_type(GroupedType type, const Body& body) {
  switch (type) {
    case GroupedType::kQ4_0:
      return body(std::integral_constant<GroupedType, GroupedType::kQ4_0>());
    case GroupedType::kQ4_1:
      return body(std::integral_constant<GroupedType, GroupedType::kQ4_1>());
    case GroupedType::kQ5_0:
      return body(std::integral_constant<GroupedType, GroupedType::kQ5_0>());
    case GroupedType::kQ5_1:
      return body(std::integral_constant<GroupedType, GroupedType::kQ5_1>());
    case GroupedType::kQ8_0:
      return body(std::integral_constant<GroupedType, GroupedType::kQ8_0>());
    case GroupedType::kQ2_K:
      return body(std::integral_constant<GroupedType, GroupedType::kQ2_K>());
    case GroupedType::kQ3_K:
      return body(std::integral_constant<GroupedType, GroupedType::kQ3_K>());
    case GroupedType::kQ4_K:
      return body(std::integral_constant<GroupedType, GroupedType::kQ4_K>());
    case GroupedType::kQ5_K:
      return body(std::integral_constant<GroupedType, GroupedType::kQ5_K>());
    case GroupedType::kQ6_K:
      return body(std::integral_constant<GroupedType, GroupedType::kQ6_K>());
    case GroupedType::kIQ4_NL:
      return body(std::integral_constant<GroupedType, GroupedType::kIQ4_NL>());
    case GroupedType::kIQ4_XS:
      return body(std::integral_constant<GroupedType, GroupedType::kIQ4_XS>());
    case GroupedType::kMXFP4:
      return body(std::integral_constant<GroupedType, GroupedType::kMXFP4>());
    default:
      return body(std::integral_constant<GroupedType, GroupedType::kNVFP4>());
  }
}

// body(format) of a type.
template <typename Body>
decltype(auto) with_format(GroupedType type, const Body& body) {
  return with_type(type, [&](auto constant) -> decltype(auto) { return body(FormatOf<constant()>()); });
}

// The bytes of a strip of 16 columns.
inline size_t strip_bytes(GroupedType type, int depth) {
  return with_format(type, [&](auto format) {
    return size_t((depth + format.block - 1) / format.block) * format.block_bytes;
  });
}

// Where a strip lies in an array of bytes, in lines of 64, and its type.
struct StripEntry {
  uint32_t line;
  GroupedType type;
};

// Rows of a tensor as a GGUF file has them, put into strips.
struct GroupedPacking {
  GroupedType type;
  const uint8_t* rows;    // [.., row_bytes]
  size_t row_bytes;
  const int32_t* order;   // [columns]: the row of each column, or -1: zeros
  int columns, depth;     // columns: a multiple of 16
  uint8_t* out;           // strips of `strip_bytes`, `stride` bytes from one to the next
  size_t stride;
};

void pack_grouped(const GroupedPacking& packing);

// Rows in bf16 as a GGUF file would have them, in Q4_1 or Q8_0.
struct GroupedQuantizing {
  GroupedType type;
  const uint16_t* weight;  // [rows, depth]
  int rows, depth;         // depth: a multiple of 32
  uint8_t* out;
};

void quantize_grouped(const GroupedQuantizing& made);

// Weights of some columns, as bf16: [count, depth].
struct GroupedRows {
  const uint8_t* weight;
  const StripEntry* strips;
  const int32_t* columns;
  int count, depth;
  uint16_t* out;
};

void take_grouped_rows(const GroupedRows& rows);

}  // namespace asurge
