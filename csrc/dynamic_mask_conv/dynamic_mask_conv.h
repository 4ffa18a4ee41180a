// SPDX-License-Identifier: Apache-2.0
// Per-query masks: a chain of 1x1 convolutions over an image's features, with ReLU between, whose
// weights each query brings along.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"

namespace avskernels {

using torch::stable::Tensor;

inline constexpr const char* kDynamicMaskConvSchema =
    "dynamic_mask_conv(Tensor features, Tensor params, Tensor? reference_points, "
    "Tensor? coord_scale, Tensor? image_index, int[] hidden, float stride, bool coords_first) "
    "-> Tensor";
Tensor dynamic_mask_conv_cpu(const Tensor& features,                         // [B, C, H, W]
                             const Tensor& params,                           // [B, Q, P] or [Q, P]
                             const std::optional<Tensor>& reference_points,  // [(B,) Q, 2]
                             const std::optional<Tensor>& coord_scale,       // [(B,) Q]
                             const std::optional<Tensor>& image_index,       // [Q] int64
                             std::vector<int64_t> hidden, double stride, bool coords_first);

inline constexpr const char* kDynamicMaskConvBackwardSchema =
    "_dynamic_mask_conv_backward(Tensor grad_masks, Tensor features, Tensor params, "
    "Tensor? reference_points, Tensor? coord_scale, Tensor? image_index, int[] hidden, "
    "float stride, bool coords_first) -> (Tensor grad_features, Tensor grad_params)";
std::tuple<Tensor, Tensor> dynamic_mask_conv_backward_cpu(
    const Tensor& grad_masks,                       // [(B,) Q, H, W]
    const Tensor& features,                         // [B, C, H, W]
    const Tensor& params,                           // [(B,) Q, P]
    const std::optional<Tensor>& reference_points,  // [(B,) Q, 2]
    const std::optional<Tensor>& coord_scale,       // [(B,) Q]
    const std::optional<Tensor>& image_index,       // [Q] int64
    std::vector<int64_t> hidden, double stride, bool coords_first);

// In CUDA C++, for hidden widths (8, 8) and at most 32 bits; not what CUDA devices run until it has
// run on one.
inline constexpr const char* kDynamicMaskConvCudaSchema =
    "_dynamic_mask_conv_cuda(Tensor features, Tensor params, Tensor? reference_points, "
    "Tensor? coord_scale, Tensor? image_index, int[] hidden, float stride, bool coords_first) "
    "-> Tensor";
Tensor dynamic_mask_conv_cuda(const Tensor& features, const Tensor& params,
                              const std::optional<Tensor>& reference_points,
                              const std::optional<Tensor>& coord_scale,
                              const std::optional<Tensor>& image_index, std::vector<int64_t> hidden,
                              double stride, bool coords_first);

inline constexpr const char* kDynamicMaskConvBackwardCudaSchema =
    "_dynamic_mask_conv_backward_cuda(Tensor grad_masks, Tensor features, Tensor params, "
    "Tensor? reference_points, Tensor? coord_scale, Tensor? image_index, int[] hidden, "
    "float stride, bool coords_first) -> (Tensor grad_features, Tensor grad_params)";
std::tuple<Tensor, Tensor> dynamic_mask_conv_backward_cuda(
    const Tensor& grad_masks, const Tensor& features, const Tensor& params,
    const std::optional<Tensor>& reference_points, const std::optional<Tensor>& coord_scale,
    const std::optional<Tensor>& image_index, std::vector<int64_t> hidden, double stride,
    bool coords_first);

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

inline std::vector<MaskLayer> check_mask_conv(const Tensor& features, const Tensor& params,
                                              const std::optional<Tensor>& reference_points,
                                              const std::optional<Tensor>& coord_scale,
                                              const std::optional<Tensor>& image_index,
                                              const std::vector<int64_t>& hidden) {
  constexpr const char* op = "dynamic_mask_conv";
  expect(op, "features", features, {"B", "C", "H", "W"}, kFloatingPoint);
  const ScalarType type = features.scalar_type();
  std::vector<Dim> queries = {features.size(0), "Q"};
  if (image_index) queries.erase(queries.begin());
  const auto queries_by = [&](int64_t size) {
    std::vector<Dim> dims = queries;
    dims.push_back(size);
    return dims;
  };
  bool positive = true;
  std::string widths;
  for (const int64_t width : hidden) {
    positive = positive && width >= 1;
    widths += (widths.empty() ? "" : ", ") + std::to_string(width);
  }
  check(positive, op, ": expected hidden widths of at least 1, got [", widths, "]");
  check(features.size(1) > 0, op, ": expected at least one channel, got ", shape(features));
  const auto layers = mask_layers(features.size(1) + (reference_points ? 2 : 0), hidden);
  expect(op, "params", params, queries_by(layers.back().bias + 1), {type});
  queries.back() = params.size(params.dim() - 2);
  if (image_index) expect(op, "image_index", *image_index, queries, {ScalarType::Long});
  const ScalarType wide = accumulate_type(type);
  if (reference_points) {
    expect(op, "reference_points", *reference_points, queries_by(2), {wide});
  }
  if (coord_scale) expect(op, "coord_scale", *coord_scale, queries, {wide});
  return layers;
}

}  // namespace avskernels
