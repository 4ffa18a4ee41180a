// SPDX-License-Identifier: Apache-2.0
// Attention-weighted sum of bilinear samples of a feature pyramid.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"
#include "common/host_device.h"

namespace avskernels {

using torch::stable::Tensor;

// Refuses more pixels than the kernels' token numbers count.
inline void require_few_tokens(const Tensor& value) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (value.size(1) > most) {
    fail("deformable_attention: expected value of at most ", most, " tokens, got ", shape(value));
  }
}

struct DeformableAttention {
  static constexpr const char* kSpecification = R"(
    deformable_attention(
      Tensor value: floating [B, S, heads, D]
      Tensor spatial_shapes: int64 [L, 2] anywhere
      Tensor sampling_locations: sums(value) [B, Q, heads, L, P, 2]
      Tensor attention_weights: sums(value) [B, Q, heads, L, P]
    ) ->
      Tensor output: as(value) [B, Q, heads*D]
  )";
  Tensor value;
  Tensor spatial_shapes;  // (H, W)
  Tensor sampling_locations;
  Tensor attention_weights;
  void require() const { require_few_tokens(value); }
};
Tensor deformable_attention_cpu(const DeformableAttention& in);

// grad_output stands last because its last dimension is a product of sizes bound before it.
struct DeformableAttentionBackward {
  static constexpr const char* kSpecification = R"(
    _deformable_attention_backward(
      Tensor value: floating [B, S, heads, D]
      Tensor spatial_shapes: int64 [L, 2] anywhere
      Tensor sampling_locations: sums(value) [B, Q, heads, L, P, 2]
      Tensor attention_weights: sums(value) [B, Q, heads, L, P]
      Tensor grad_output: as(value) [B, Q, heads*D]
    ) ->
      Tensor grad_value: as(value) [B, S, heads, D]
      Tensor grad_sampling_locations: sums(value) [B, Q, heads, L, P, 2]
      Tensor grad_attention_weights: sums(value) [B, Q, heads, L, P]
  )";
  Tensor value;
  Tensor spatial_shapes;  // (H, W)
  Tensor sampling_locations;
  Tensor attention_weights;
  Tensor grad_output;
  void require() const { require_few_tokens(value); }
};
std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward_cpu(
    const DeformableAttentionBackward& in);

// In CUDA C++. Levels on the device are not waited for: where they do not cover the value, the
// output is NaN.
Tensor deformable_attention_cuda(const DeformableAttention& in);
std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward_cuda(
    const DeformableAttentionBackward& in);

struct DeformableShape {
  int64_t batch;    // B
  int64_t tokens;   // S, the pixels of all levels
  int64_t heads;    //
  int64_t dim;      // D, of one head
  int64_t queries;  // Q
  int64_t levels;   // L
  int64_t points;   // P
};

template <typename Arguments>
DeformableShape deformable_shape(const Arguments& in) {
  const Tensor &value = in.value, &at = in.sampling_locations;
  return {value.size(0), value.size(1), value.size(2), value.size(3),
          at.size(1),    at.size(3),    at.size(4)};
}

// One map of the pyramid.
struct Level {
  int64_t width;
  int64_t height;
  int64_t first;  // token of its first pixel
};

// Up to here float32 counts every pixel of a side.
inline constexpr int64_t kLongestSide = 1 << 24;

// Reads spatial_shapes, which must be on the CPU and contiguous.
inline std::vector<Level> read_levels(const Tensor& spatial_shapes, int64_t tokens) {
  const int64_t* shapes = spatial_shapes.const_data_ptr<int64_t>();
  std::vector<Level> levels(spatial_shapes.size(0));
  int64_t covered = 0;
  bool valid = true;
  for (size_t l = 0; valid && l < levels.size(); ++l) {
    levels[l] = {shapes[2 * l + 1], shapes[2 * l], covered};
    const auto [shorter, longer] = std::minmax(levels[l].width, levels[l].height);
    valid = shorter >= 1 && longer <= kLongestSide;
    covered += valid ? shorter * longer : 0;
    valid = valid && covered <= tokens;
  }
  if (!valid || covered != tokens) {
    std::string listed;
    for (size_t l = 0; l < levels.size(); ++l) {
      listed += (l == 0 ? "[" : ", [") + std::to_string(shapes[2 * l]) + ", " +
                std::to_string(shapes[2 * l + 1]) + "]";
    }
    fail("deformable_attention: expected spatial_shapes of sides from 1 to ", kLongestSide,
         " whose areas add up to the ", tokens, " tokens of value, got [", listed, "]");
  }
  return levels;
}

#include "deformable_attention/between_pixels.isa.h"

}  // namespace avskernels
