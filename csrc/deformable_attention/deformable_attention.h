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

inline constexpr const char* kDeformableAttentionSchema =
    "deformable_attention(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor";
Tensor deformable_attention_cpu(const Tensor& value,               // [B, S, heads, D]
                                const Tensor& spatial_shapes,      // [L, 2] int64, (H, W)
                                const Tensor& sampling_locations,  // [B, Q, heads, L, P, 2]
                                const Tensor& attention_weights);  // [B, Q, heads, L, P]

inline constexpr const char* kDeformableAttentionBackwardSchema =
    "_deformable_attention_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, "
    "Tensor sampling_locations, Tensor attention_weights) -> (Tensor grad_value, "
    "Tensor grad_locations, Tensor grad_weights)";
std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward_cpu(
    const Tensor& grad_output,         // [B, Q, heads * D]
    const Tensor& value,               // [B, S, heads, D]
    const Tensor& spatial_shapes,      // [L, 2] int64, (H, W)
    const Tensor& sampling_locations,  // [B, Q, heads, L, P, 2]
    const Tensor& attention_weights);  // [B, Q, heads, L, P]

// The same in CUDA C++, under names of their own until they have run on a GPU: CUDA tensors take
// the Triton kernels.
inline constexpr const char* kDeformableAttentionCudaSchema =
    "_deformable_attention_cuda(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor";
inline constexpr const char* kDeformableAttentionBackwardCudaSchema =
    "_deformable_attention_backward_cuda(Tensor grad_output, Tensor value, Tensor spatial_shapes, "
    "Tensor sampling_locations, Tensor attention_weights) -> (Tensor grad_value, "
    "Tensor grad_locations, Tensor grad_weights)";

struct DeformableShape {
  int64_t batch;    // B
  int64_t tokens;   // S, the pixels of all levels
  int64_t heads;    //
  int64_t dim;      // D, of one head
  int64_t queries;  // Q
  int64_t levels;   // L
  int64_t points;   // P
};

inline DeformableShape check_deformable(const Tensor& value, const Tensor& spatial_shapes,
                                        const Tensor& sampling_locations,
                                        const Tensor& attention_weights) {
  const char* op = "deformable_attention";
  if (value.dim() != 4) {
    fail(op, ": expected value [B, S, heads, D], got ", shape(value));
  }
  if (value.size(1) > std::numeric_limits<int32_t>::max()) {
    fail(op, ": expected value of at most ", std::numeric_limits<int32_t>::max(), " tokens, got ",
         shape(value));
  }
  dispatch_floating(value.scalar_type(), op, [&]<typename T>() {});
  if (spatial_shapes.dim() != 2 || spatial_shapes.size(1) != 2) {
    fail(op, ": expected spatial_shapes [L, 2], got ", shape(spatial_shapes));
  }
  if (spatial_shapes.scalar_type() != ScalarType::Long) {
    fail(op, ": expected spatial_shapes of torch.int64, got ",
         dtype_name(spatial_shapes.scalar_type()));
  }
  const Tensor& at = sampling_locations;
  if (at.dim() != 6 || at.size(0) != value.size(0) || at.size(2) != value.size(2) ||
      at.size(3) != spatial_shapes.size(0) || at.size(5) != 2) {
    fail(op, ": expected sampling_locations [", value.size(0), ", Q, ", value.size(2), ", ",
         spatial_shapes.size(0), ", P, 2] to match value and spatial_shapes, got ", shape(at));
  }
  bool same = attention_weights.dim() == 5;
  for (int64_t i = 0; same && i < 5; ++i) {
    same = attention_weights.size(i) == at.size(i);
  }
  if (!same) {
    fail(op, ": expected attention_weights [", at.size(0), ", ", at.size(1), ", ", at.size(2), ", ",
         at.size(3), ", ", at.size(4), "] to match sampling_locations, got ",
         shape(attention_weights));
  }
  const ScalarType type = accumulate_type(value.scalar_type());
  if (at.scalar_type() != type || attention_weights.scalar_type() != type) {
    fail(op, ": expected sampling_locations and attention_weights of ", dtype_name(type),
         " with value of ", dtype_name(value.scalar_type()), ", got ", dtype_name(at.scalar_type()),
         " and ", dtype_name(attention_weights.scalar_type()));
  }
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

#include "deformable_attention/between_pixels.h"

}  // namespace avskernels
