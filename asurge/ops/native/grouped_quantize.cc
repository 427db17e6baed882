// Weights in bf16 as blocks of a GGUF type.
#include <algorithm>
#include <cmath>

#include "gguf_blocks.h"
#include "simd.h"
#include "thread_pool.h"

namespace asurge {
namespace {

constexpr int kNumbers = 32;  // of a block
constexpr int kFits = 3;      // how often scale and minimum of 4 bits are fitted again to the codes they gave

struct Affine {
  float scale, minimum;
};

Affine in_f16(Affine exact) {
  const auto through = [](float x) { return x < 0 ? -from_f16(to_f16(-x)) : from_f16(to_f16(x)); };
  return {through(exact.scale), through(exact.minimum)};
}

// The codes that an affine map gives, and the squared error.
float encode(const float* x, Affine map, uint8_t* codes) {
  const float inverse = map.scale > 0 ? 1.0f / map.scale : 0.0f;
  float error = 0.0f;
  for (int i = 0; i < kNumbers; ++i) {
    const float code = std::clamp(std::nearbyint((x[i] - map.minimum) * inverse), 0.0f, 15.0f);
    const float miss = map.minimum + map.scale * code - x[i];
    codes[i] = static_cast<uint8_t>(code);
    error += miss * miss;
  }
  return error;
}

// The affine map with the least squared error for these codes.
Affine fit(const float* x, const uint8_t* codes, Affine otherwise) {
  float sum = 0, squares = 0, sum_x = 0, products = 0;
  for (int i = 0; i < kNumbers; ++i) {
    sum += codes[i];
    squares += float(codes[i]) * codes[i];
    sum_x += x[i];
    products += codes[i] * x[i];
  }
  const float determinant = kNumbers * squares - sum * sum;
  if (determinant <= 0) return otherwise;
  const float scale = (kNumbers * products - sum * sum_x) / determinant;
  return scale > 0 ? Affine{scale, (sum_x - scale * sum) / kNumbers} : otherwise;
}

void store_f16(uint8_t* to, float value) {
  const uint16_t bits = value < 0 ? to_f16(-value) | 0x8000 : to_f16(value);
  std::memcpy(to, &bits, 2);
}

// Q4_1: the map from the smallest and the largest number, then fitted.
void quantize_4(const float* x, uint8_t* to) {
  const auto [low, high] = std::minmax_element(x, x + kNumbers);
  Affine best = in_f16({(*high - *low) / 15, *low});
  uint8_t codes[kNumbers], others[kNumbers];
  float error = encode(x, best, codes);
  for (int turn = 0; turn < kFits; ++turn) {
    const Affine fitted = in_f16(fit(x, codes, best));
    const float other = encode(x, fitted, others);
    if (!(other < error)) break;
    best = fitted;
    error = other;
    std::copy(others, others + kNumbers, codes);
  }
  store_f16(to, best.scale);
  store_f16(to + 2, best.minimum);
  for (int i = 0; i < 16; ++i) to[4 + i] = codes[i] | codes[i + 16] << 4;
}

// Q8_0, symmetric.
void quantize_8(const float* x, uint8_t* to) {
  float most = 0;
  for (int i = 0; i < kNumbers; ++i) most = std::max(most, std::abs(x[i]));
  const float scale = from_f16(to_f16(most / 127));
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  store_f16(to, scale);
  for (int i = 0; i < kNumbers; ++i) {
    to[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f)));
  }
}

}  // namespace

void quantize_grouped(const GroupedQuantizing& made) {
  const bool four = made.type == GroupedType::kQ4_1;
  const size_t block_bytes = four ? 20 : 34, blocks = made.depth / kNumbers;
  ThreadPool::get().run(made.rows, [&](Pieces& rows) {
    for (int row; rows.take(row);) {
      const uint16_t* from = made.weight + size_t(row) * made.depth;
      uint8_t* to = made.out + row * blocks * block_bytes;
      for (size_t block = 0; block < blocks; ++block, from += kNumbers, to += block_bytes) {
        alignas(64) float x[kNumbers];
        store(x, load_bf16(from));
        store(x + 16, load_bf16(from + 16));
        four ? quantize_4(x, to) : quantize_8(x, to);
      }
    }
  });
}

}  // namespace asurge
