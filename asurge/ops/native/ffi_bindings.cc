// What Python loads: XLA FFI handlers, and a few plain C functions.
#include <iterator>

#include "attention.h"
#include "grouped.h"
#include "linear.h"
#include "huge_pages.h"
#include "pack.h"
#include "thread_pool.h"
#include "sampling.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Number = ffi::BufferR0<ffi::S32>;

template <typename T>
T* data_or_null(const ffi::AnyBuffer& buffer) {
  return buffer.element_count() ? static_cast<T*>(buffer.untyped_data()) : nullptr;
}

// Whether an operand is left out or has as many elements as it must: the kernels do not check sizes again.
bool fits(const ffi::AnyBuffer& buffer, size_t elements) {
  return buffer.element_count() == 0 || buffer.element_count() == elements;
}

// One of the equal parts that lie one behind the other in an operand, or null if it is left out.
template <typename T>
T* part_or_null(const ffi::AnyBuffer& buffer, int32_t part, size_t parts) {
  T* first = data_or_null<T>(buffer);
  return first ? first + buffer.size_bytes() / sizeof(T) / parts * part : nullptr;
}

// What products share, whatever their weights are stored as.
struct LinearOperands {
  ffi::AnyBuffer x, norm, bias, residual, live, allowed, layers;
  int32_t layer;
  ffi::Result<ffi::AnyBuffer> out;
  float epsilon;
  bool gated, gelu;
  int32_t candidates;
};

// Fills in all but the weights, of `columns` columns and in this many layers.
ffi::Error set_operands(asurge::Linear& call, LinearOperands& given, size_t layers, size_t columns) {
  const auto x_shape = given.x.dimensions();
  if (x_shape.size() != 2) return ffi::Error::InvalidArgument("linear takes x [rows, depth]");
  if (given.layer < 0 || size_t(given.layer) >= layers) return ffi::Error::InvalidArgument("linear has no such layer");
  call.x = data_or_null<uint16_t>(given.x);
  call.norm = part_or_null<uint16_t>(given.norm, given.layer, layers);
  call.epsilon = given.epsilon;
  call.bias = part_or_null<uint16_t>(given.bias, given.layer, layers);
  call.residual = data_or_null<uint16_t>(given.residual);
  call.gated = given.gated;
  call.activation = given.gelu ? asurge::Linear::Activation::kGeluTanh : asurge::Linear::Activation::kSilu;
  call.rows = static_cast<int>(x_shape[0]);
  call.depth = static_cast<int>(x_shape[1]);
  call.columns = static_cast<int>(columns);
  call.live = data_or_null<int32_t>(given.live);
  call.candidates = given.candidates;
  call.allowed = data_or_null<uint32_t>(given.allowed);
  ffi::AnyBuffer& out = *given.out;
  const size_t rows = x_shape[0], width = given.gated ? columns / 2 : columns;
  const bool argmax = out.element_type() == ffi::S32;
  if (!fits(given.norm, layers * call.depth) || !fits(given.bias, layers * columns) || !fits(given.residual, rows * columns) ||
      !fits(given.live, (rows + 15) / 16) || !fits(given.allowed, rows * ((given.candidates + 31) / 32)) ||
      out.element_count() != (argmax ? rows : rows * width)) {
    return ffi::Error::InvalidArgument("an operand of linear has the wrong size");
  }
  call.layers = data_or_null<int32_t>(given.layers);
  if (!fits(given.layers, (rows + 15) / 16)) return ffi::Error::InvalidArgument("linear takes a layer for each 16 rows");
  for (size_t tile = 0; tile < given.layers.element_count(); ++tile) {
    if (call.layers[tile] < 0 || size_t(call.layers[tile]) >= layers) return ffi::Error::InvalidArgument("linear has no such layer");
  }
  if (call.layers && (given.layer || call.norm || call.bias)) {
    return ffi::Error::InvalidArgument("linear does not combine layers of rows with what one layer has");
  }
  if (given.candidates < 0 || size_t(given.candidates) > columns || (given.gated && (columns % 32 || call.residual)) ||
      (call.residual && out.element_type() != ffi::BF16) || (given.gated && out.element_type() != ffi::BF16)) {
    return ffi::Error::InvalidArgument("linear does not combine these");
  }
  if (out.element_type() == ffi::F32) {
    call.out_f32 = static_cast<float*>(out.untyped_data());
  } else if (argmax) {
    call.out_argmax = static_cast<int32_t*>(out.untyped_data());
  } else {
    call.out_bf16 = static_cast<uint16_t*>(out.untyped_data());
  }
  return ffi::Error::Success();
}

ffi::Error linear(ffi::AnyBuffer x, ffi::AnyBuffer weight, ffi::AnyBuffer scale, ffi::AnyBuffer norm, ffi::AnyBuffer bias,
                  ffi::AnyBuffer residual, ffi::AnyBuffer live, ffi::AnyBuffer allowed, ffi::AnyBuffer row_layers, Number layer,
                  ffi::Result<ffi::AnyBuffer> out, float epsilon, bool gated, bool gelu, int32_t candidates) {
  const auto stack = weight.dimensions();
  if (stack.size() != 6) return ffi::Error::InvalidArgument("linear takes packed weights, a layer behind the other");
  const size_t layers = stack[0], columns = stack[1] * 16;
  asurge::Linear call{};
  LinearOperands given{x, norm, bias, residual, live, allowed, row_layers, *layer.typed_data(), out, epsilon, gated, gelu, candidates};
  if (auto error = set_operands(call, given, layers, columns); error.failure()) return error;
  call.weight = part_or_null<uint8_t>(weight, given.layer, layers);
  call.scale = part_or_null<float>(scale, given.layer, layers);
  call.layer_bytes = weight.size_bytes() / layers;
  if (stack[2] * 16 * stack[5] != call.depth || !fits(scale, layers * columns)) {
    return ffi::Error::InvalidArgument("x, the packed weight and its scales differ in size");
  }
  const bool int8 = weight.element_type() == ffi::S8;
  if (int8 != (call.scale != nullptr) || stack[3] != 16 || stack[4] != 16 || stack[5] != (int8 ? 4 : 2)) {
    return ffi::Error::InvalidArgument("int8 weights, and only they, are packed by four and have scales");
  }
  asurge::linear(call);
  return ffi::Error::Success();
}

// The bytes of a strip of each type.
struct StripBytes {
  size_t of[static_cast<size_t>(asurge::GroupedType::kCount)];

  explicit StripBytes(int depth) {
    for (size_t type = 0; type < std::size(of); ++type) of[type] = asurge::strip_bytes(static_cast<asurge::GroupedType>(type), depth);
  }
};

// The strips of one layer, if they lie within the weight.
const asurge::StripEntry* strips_of(const ffi::AnyBuffer& weight, const ffi::AnyBuffer& strips, int32_t layer,
                                    const StripBytes& bytes) {
  const auto shape = strips.dimensions();
  if (shape.size() != 3 || shape[2] != 2 || layer < 0 || layer >= shape[0]) return nullptr;
  const auto* entries = static_cast<const asurge::StripEntry*>(strips.untyped_data()) + layer * shape[1];
  const size_t whole = weight.size_bytes();
  for (int64_t strip = 0; strip < shape[1]; ++strip) {
    const size_t type = static_cast<uint32_t>(entries[strip].type);
    if (type >= std::size(bytes.of) || size_t(entries[strip].line) * 64 + bytes.of[type] > whole) return nullptr;
  }
  return entries;
}

ffi::Error grouped_linear(ffi::AnyBuffer x, ffi::AnyBuffer weight, ffi::AnyBuffer strips, ffi::AnyBuffer norm,
                          ffi::AnyBuffer bias, ffi::AnyBuffer residual, ffi::AnyBuffer live, ffi::AnyBuffer allowed,
                          ffi::AnyBuffer row_layers, Number layer, ffi::Result<ffi::AnyBuffer> out, float epsilon, bool gated, bool gelu,
                          int32_t candidates) {
  const auto shape = strips.dimensions();
  if (shape.size() != 3) return ffi::Error::InvalidArgument("linear takes strips [layers, columns / 16, 2]");
  asurge::Linear call{};
  LinearOperands given{x, norm, bias, residual, live, allowed, row_layers, *layer.typed_data(), out, epsilon, gated, gelu, candidates};
  if (auto error = set_operands(call, given, shape[0], shape[1] * 16); error.failure()) return error;
  call.weight = data_or_null<uint8_t>(weight);
  const StripBytes bytes(call.depth);
  for (size_t tile = 0; tile < row_layers.element_count(); ++tile) {
    if (!strips_of(weight, strips, call.layers[tile], bytes)) return ffi::Error::InvalidArgument("a strip lies outside of the weight");
  }
  call.strips = strips_of(weight, strips, given.layer, bytes);
  if (call.strips == nullptr) return ffi::Error::InvalidArgument("a strip lies outside of the weight, or its type is unknown");
  if (call.depth % 16) return ffi::Error::InvalidArgument("the depth of grouped weights is a multiple of 16");
  asurge::linear(call);
  return ffi::Error::Success();
}

ffi::Error grouped_rows(ffi::AnyBuffer weight, ffi::AnyBuffer strips, ffi::BufferR1<ffi::S32> columns,
                        ffi::Result<ffi::BufferR2<ffi::BF16>> out) {
  const auto shape = out->dimensions();
  const size_t count = columns.element_count();
  const int depth = static_cast<int>(shape[1]);
  asurge::GroupedRows rows{data_or_null<uint8_t>(weight), strips_of(weight, strips, 0, StripBytes(depth)), columns.typed_data(),
                           static_cast<int>(count), depth, reinterpret_cast<uint16_t*>(out->untyped_data())};
  if (rows.strips == nullptr || size_t(shape[0]) != count || depth % 16) {
    return ffi::Error::InvalidArgument("an operand of rows has the wrong size");
  }
  for (size_t index = 0; index < count; ++index) {
    if (rows.columns[index] < 0 || rows.columns[index] >= strips.dimensions()[1] * 16) {
      return ffi::Error::InvalidArgument("there is no such row");
    }
  }
  asurge::take_grouped_rows(rows);
  return ffi::Error::Success();
}

ffi::Error attention(ffi::AnyBuffer qkv, ffi::AnyBuffer cosine, ffi::AnyBuffer sine, ffi::AnyBuffer q_norm,
                     ffi::AnyBuffer k_norm, ffi::AnyBuffer start, ffi::AnyBuffer length, ffi::AnyBuffer first,
                     ffi::AnyBuffer page_table, ffi::AnyBuffer keys, ffi::AnyBuffer values, Number level_number,
                     ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> new_keys,
                     ffi::Result<ffi::AnyBuffer> new_values, float epsilon, float scale, float softcap,
                     int32_t decode, int32_t window, bool chunked) {
  const auto stack = keys.dimensions(), heads = qkv.dimensions(), table = page_table.dimensions();
  if (stack.size() != 5 || heads.size() != 3 || table.size() != 2) {
    return ffi::Error::InvalidArgument("attention takes qkv [tokens, heads, dim], levels of pages and a page table");
  }
  const size_t levels = stack[0];
  const int32_t level = *level_number.typed_data();
  if (level < 0 || size_t(level) >= levels) return ffi::Error::InvalidArgument("pages have no such level");
  const auto pages = stack.last(4);
  if (new_keys->untyped_data() != keys.untyped_data() || new_values->untyped_data() != values.untyped_data()) {
    return ffi::Error::Internal("pages must be written in place");
  }
  asurge::Attention call{};
  call.qkv = data_or_null<uint16_t>(qkv);
  call.cosine = data_or_null<float>(cosine);
  call.sine = data_or_null<float>(sine);
  call.q_norm = data_or_null<uint16_t>(q_norm);
  call.k_norm = data_or_null<uint16_t>(k_norm);
  call.epsilon = epsilon;
  call.start = data_or_null<int32_t>(start);
  call.length = data_or_null<int32_t>(length);
  call.first = data_or_null<int32_t>(first);
  call.page_table = data_or_null<int32_t>(page_table);
  call.keys = part_or_null<uint8_t>(*new_keys, level, levels);
  call.values = part_or_null<uint8_t>(*new_values, level, levels);
  call.out = static_cast<uint16_t*>(out->untyped_data());
  call.tokens = static_cast<int>(heads[0]);
  call.rows = static_cast<int>(table[0]);
  call.columns = static_cast<int>(table[1]);
  call.kv_heads = static_cast<int>(pages[1]);
  call.heads = static_cast<int>(heads[1]) - 2 * call.kv_heads;
  call.head_dim = static_cast<int>(heads[2]);
  call.page_size = static_cast<int>(pages[2]);
  call.int8 = keys.element_type() == ffi::U8;
  call.scale = scale;
  call.softcap = softcap;
  call.decode = decode;
  call.window = window;
  call.chunked = chunked;
  const size_t angles = size_t(call.tokens) * call.head_dim / 2, rows = call.rows;
  if (cosine.element_count() != angles || sine.element_count() != angles || !fits(q_norm, call.head_dim) ||
      !fits(k_norm, call.head_dim) || !call.q_norm != !call.k_norm || start.element_count() != rows ||
      length.element_count() != rows || first.element_count() != rows ||
      pages[3] != call.head_dim + (call.int8 ? 4 : 0) ||
      values.element_count() != keys.element_count() || values.element_type() != keys.element_type()) {
    return ffi::Error::InvalidArgument("an operand of attention has the wrong size");
  }
  if (call.heads <= 0 || call.heads % call.kv_heads || call.head_dim % 32 || call.head_dim > 256 ||
      call.page_size % 32) {
    return ffi::Error::InvalidArgument("attention does not serve this shape");
  }
  asurge::paged_attention(call);
  return ffi::Error::Success();
}

ffi::Error sample(ffi::BufferR2<ffi::F32> logits, ffi::BufferR1<ffi::F32> temperature, ffi::BufferR1<ffi::S32> top_k,
                  ffi::BufferR1<ffi::F32> top_p, ffi::BufferR1<ffi::F32> min_p, ffi::BufferR1<ffi::U32> seed,
                  ffi::BufferR1<ffi::S32> position, ffi::BufferR1<ffi::PRED> live, ffi::Result<ffi::BufferR1<ffi::S32>> out,
                  int32_t vocab_size) {
  const size_t rows = logits.dimensions()[0], columns = logits.dimensions()[1];
  for (const size_t count : {temperature.element_count(), top_k.element_count(), top_p.element_count(), min_p.element_count(),
                             seed.element_count(), position.element_count(), live.element_count(), out->element_count()}) {
    if (count != rows) return ffi::Error::InvalidArgument("an operand of sample has the wrong size");
  }
  if (vocab_size < 1 || size_t(vocab_size) > columns) return ffi::Error::InvalidArgument("sample has no such vocabulary");
  asurge::Sampling call{};
  call.logits = logits.typed_data();
  call.temperature = temperature.typed_data();
  call.top_k = top_k.typed_data();
  call.top_p = top_p.typed_data();
  call.min_p = min_p.typed_data();
  call.seed = seed.typed_data();
  call.position = position.typed_data();
  call.live = live.typed_data();
  call.rows = static_cast<int>(rows);
  call.columns = static_cast<int>(columns);
  call.vocab = vocab_size;
  call.out = out->typed_data();
  asurge::sample(call);
  return ffi::Error::Success();
}

ffi::Error pack(ffi::AnyBuffer stack, ffi::BufferR2<ffi::BF16> weight, Number layer_number, ffi::Result<ffi::AnyBuffer> out,
                ffi::Result<ffi::BufferR1<ffi::F32>> scale, bool gated) {
  const auto shape = stack.dimensions();
  if (shape.size() != 6) return ffi::Error::InvalidArgument("pack takes packed weights, a layer behind the other");
  if (out->untyped_data() != stack.untyped_data()) return ffi::Error::Internal("weights must be packed in place");
  const int32_t layer = *layer_number.typed_data();
  if (layer < 0 || layer >= shape[0]) return ffi::Error::InvalidArgument("pack has no such layer");
  const bool int8 = stack.element_type() == ffi::S8;
  asurge::Packing call{};
  call.weight = reinterpret_cast<const uint16_t*>(weight.untyped_data());
  call.out = part_or_null<uint8_t>(stack, layer, shape[0]);
  call.scale = int8 ? scale->typed_data() : nullptr;
  call.columns = static_cast<int>(weight.dimensions()[0]);
  call.depth = static_cast<int>(weight.dimensions()[1]);
  call.gated = gated;
  const int64_t strips = (call.columns + 15) / 16;
  if (shape[1] != strips || shape[3] != 16 || shape[4] != 16 || shape[5] != (int8 ? 4 : 2) ||
      shape[2] * 16 * shape[5] != call.depth || scale->element_count() != (int8 ? size_t(strips) * 16 : 0) ||
      (gated && call.columns % 32)) {
    return ffi::Error::InvalidArgument("an operand of pack has the wrong size");
  }
  asurge::pack(call);
  return ffi::Error::Success();
}

ffi::Error zeros(ffi::Result<ffi::AnyBuffer> out) {
  asurge::clear(static_cast<uint8_t*>(out->untyped_data()), out->size_bytes());
  return ffi::Error::Success();
}

// Operands and attributes of products, whatever their weights are stored as.
auto linear_binding() {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<Number>()
      .Ret<ffi::AnyBuffer>()
      .Attr<float>("epsilon")
      .Attr<bool>("gated")
      .Attr<bool>("gelu")
      .Attr<int32_t>("candidates");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(asurge_linear, linear, linear_binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(asurge_grouped_linear, grouped_linear, linear_binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(asurge_grouped_rows, grouped_rows,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::BF16>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(asurge_attention, attention,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Number>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("epsilon")
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int32_t>("decode")
                                  .Attr<int32_t>("window")
                                  .Attr<bool>("chunked"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(asurge_sample, sample,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::U32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::PRED>>()
                                  .Ret<ffi::BufferR1<ffi::S32>>()
                                  .Attr<int32_t>("vocab_size"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(asurge_pack, pack,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR2<ffi::BF16>>()
                                  .Arg<Number>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::BufferR1<ffi::F32>>()
                                  .Attr<bool>("gated"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(asurge_zeros, zeros, ffi::Ffi::Bind().Ret<ffi::AnyBuffer>());

extern "C" int64_t asurge_grouped_strip_bytes(int32_t type, int32_t depth) {
  return static_cast<int64_t>(asurge::strip_bytes(static_cast<asurge::GroupedType>(type), depth));
}

// See `asurge::GroupedPacking`.
extern "C" void asurge_grouped_pack(int32_t type, const uint8_t* rows, int64_t row_bytes, const int32_t* order, int32_t columns,
                                    int32_t depth, uint8_t* out, int64_t stride) {
  asurge::pack_grouped({static_cast<asurge::GroupedType>(type), rows, static_cast<size_t>(row_bytes), order, columns, depth, out,
                static_cast<size_t>(stride)});
}

// See `asurge::GroupedQuantizing`.
extern "C" void asurge_grouped_quantize(int32_t type, const uint16_t* weight, int32_t rows, int32_t depth, uint8_t* out) {
  asurge::quantize_grouped({static_cast<asurge::GroupedType>(type), weight, rows, depth, out});
}

extern "C" void asurge_set_threads(int threads) { asurge::ThreadPool::get().resize(threads); }

extern "C" bool asurge_set_niceness(int niceness) { return asurge::ThreadPool::get().set_niceness(niceness); }

extern "C" void asurge_set_quota(double processors) { asurge::ThreadPool::get().set_quota(processors); }

extern "C" void asurge_set_loop_threads(const int* ids, int count) { asurge::ThreadPool::get().set_loop_threads(ids, count); }

extern "C" asurge::PoolStatistics asurge_pool_statistics() { return asurge::ThreadPool::get().statistics(); }
