// SPDX-License-Identifier: Apache-2.0
// Per-query masks: a chain of 1x1 convolutions over an image's features, with ReLU between, whose
// weights each query brings along.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"

namespace avskernels {

using torch::stable::Tensor;

// One layer of every query's network, and where its parameters stand in a row of params.
struct MaskLayer {
  int64_t inputs;
  int64_t outputs;
  int64_t weight;  // [outputs, inputs]
  int64_t bias;    // [outputs]
};

// All weights layer by layer, then all biases.
inline std::vector<MaskLayer> mask_layers(int64_t inputs, const std::vector<int64_t>& hidden) {
  std::vector<MaskLayer> layers;
  int64_t position = 0;
  for (size_t i = 0; i <= hidden.size(); ++i) {
    const int64_t outputs = i < hidden.size() ? hidden[i] : 1;
    layers.push_back({inputs, outputs, position, 0});
    position += inputs * outputs;
    inputs = outputs;
  }
  for (MaskLayer& layer : layers) {
    layer.bias = position;
    position += layer.outputs;
  }
  return layers;
}

template <typename Arguments>
std::vector<MaskLayer> mask_layers(const Arguments& in) {
  return mask_layers(in.features.size(1) + (in.reference_points ? 2 : 0), in.hidden);
}

// The conditions that are no shapes: there are layers, params has room for them, and image_index is
// there where params has no dimension of images.
template <typename Arguments>
void require_mask_layers(const Arguments& in) {
  constexpr const char* op = "dynamic_mask_conv";
  if (std::any_of(in.hidden.begin(), in.hidden.end(), [](int64_t width) { return width < 1; })) {
    std::string widths;
    for (const int64_t width : in.hidden) {
      widths += (widths.empty() ? "" : ", ") + std::to_string(width);
    }
    fail(op, ": expected hidden widths of at least 1, got [", widths, "]");
  }
  if (in.features.size(1) == 0) {
    fail(op, ": expected at least one channel, got ", shape(in.features));
  }
  const int64_t count = mask_layers(in).back().bias + 1;
  const bool listed = in.image_index.has_value();
  if (in.params.size(-1) != count || in.params.dim() != (listed ? 2 : 3)) {
    const std::string images = listed ? "" : std::to_string(in.features.size(0)) + ", ";
    fail(op, ": expected params [", images, "Q, ", count, "], got ", shape(in.params));
  }
}

// A row of params holds all weights [out, in] layer by layer, then all biases.
struct DynamicMaskConv {
  static constexpr const char* kSpecification = R"(
    dynamic_mask_conv(
      Tensor features: floating [B, C, H, W]
      Tensor params: as(features) [(B), Q, P]
      Tensor? reference_points: sums(features) [(B), Q, 2]
      Tensor? coord_scale: sums(features) [(B), Q]
      Tensor? image_index: int64 [Q]
      int[] hidden
      float stride
      bool coords_first
    ) ->
      Tensor masks: as(features) [(B), Q, H, W]
  )";
  Tensor features;
  Tensor params;
  std::optional<Tensor> reference_points;
  std::optional<Tensor> coord_scale;
  std::optional<Tensor> image_index;
  std::vector<int64_t> hidden;
  double stride;
  bool coords_first;
  void require() const { require_mask_layers(*this); }
};
Tensor dynamic_mask_conv_cpu(const DynamicMaskConv& in);

struct DynamicMaskConvBackward {
  static constexpr const char* kSpecification = R"(
    _dynamic_mask_conv_backward(
      Tensor grad_masks: as(features) [(B), Q, H, W]
      Tensor features: floating [B, C, H, W]
      Tensor params: as(features) [(B), Q, P]
      Tensor? reference_points: sums(features) [(B), Q, 2]
      Tensor? coord_scale: sums(features) [(B), Q]
      Tensor? image_index: int64 [Q]
      int[] hidden
      float stride
      bool coords_first
    ) ->
      Tensor grad_features: as(features) [B, C, H, W]
      Tensor grad_params: as(features) [(B), Q, P]
  )";
  Tensor grad_masks;
  Tensor features;
  Tensor params;
  std::optional<Tensor> reference_points;
  std::optional<Tensor> coord_scale;
  std::optional<Tensor> image_index;
  std::vector<int64_t> hidden;
  double stride;
  bool coords_first;
  void require() const { require_mask_layers(*this); }
};
std::tuple<Tensor, Tensor> dynamic_mask_conv_backward_cpu(const DynamicMaskConvBackward& in);

// In CUDA C++, for hidden widths (8, 8) and at most 32 bits. An image that is not there gives NaN.
Tensor dynamic_mask_conv_cuda(const DynamicMaskConv& in);
std::tuple<Tensor, Tensor> dynamic_mask_conv_backward_cuda(const DynamicMaskConvBackward& in);

}  // namespace avskernels
