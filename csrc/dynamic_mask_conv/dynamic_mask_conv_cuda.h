// SPDX-License-Identifier: Apache-2.0
// What the forward and the backward CUDA kernels share: the layout of a problem and its limits.
#pragma once

#include "common/stream.h"
#include "common/tensors.h"
#include "dynamic_mask_conv/dynamic_mask_conv.h"

namespace avskernels {

constexpr int kWidth = 8;  // of both hidden layers

struct MaskConvShape {
  int64_t images, channels, width, pixels;
  int64_t queries;           // of an image, or of the list
  int64_t feature_steps[4];  // [B, C, H, W]
  int64_t inputs;            // of the first layer
  int64_t first_feature;     // rows of its inputs
  int64_t first_coord;
  float stride;

  __host__ __device__ int64_t second_weight() const { return kWidth * inputs; }
  __host__ __device__ int64_t third_weight() const { return second_weight() + kWidth * kWidth; }
  __host__ __device__ int64_t first_bias() const { return third_weight() + kWidth; }
  __host__ __device__ int64_t params_per_query() const { return first_bias() + 2 * kWidth + 1; }
};

// x, or 0 below it; NaN stays.
__device__ inline float relu(float x) { return x < 0 ? 0.0f : x; }

// A problem on one device; null pointers where a tensor is not given.
struct MaskConvInputs {
  MaskConvShape shape;
  Tensor params;  // contiguous, as all that follow
  std::optional<Tensor> points, scales, indices;

  const float* points_data() const { return data_or_null<float>(points); }
  const float* scales_data() const { return data_or_null<float>(scales); }
  const int64_t* image_index() const { return data_or_null<int64_t>(indices); }
};

template <typename Arguments>
MaskConvInputs device_inputs(const Arguments& in) {
  check(in.hidden == std::vector<int64_t>{kWidth, kWidth},
        "_dynamic_mask_conv_cuda: expected hidden widths [8, 8], got others");
  const Tensor& features = in.features;
  MaskConvShape shape{};
  shape.images = features.size(0);
  shape.channels = features.size(1);
  shape.width = features.size(3);
  shape.pixels = features.size(2) * features.size(3);
  shape.queries = in.params.size(-2);
  for (int i = 0; i < 4; ++i) shape.feature_steps[i] = features.stride(i);
  shape.inputs = shape.channels + (in.reference_points ? 2 : 0);
  shape.first_feature = in.reference_points && in.coords_first ? 2 : 0;
  shape.first_coord = in.coords_first ? 0 : shape.channels;
  shape.stride = static_cast<float>(in.stride);
  return {shape, dense(in.params), dense(in.reference_points), dense(in.coord_scale),
          dense(in.image_index)};
}

// Calls body.operator()<T>() for the dtypes that are summed in float32.
template <typename Body>
void dispatch_single(ScalarType type, const Body& body) {
  check(type != ScalarType::Double, "_dynamic_mask_conv_cuda: expected at most 32 bits, got ",
        dtype_name(type));
  dispatch_floating(type, [&]<typename T>() {
    if constexpr (!std::is_same_v<T, double>) body.template operator()<T>();
  });
}

// Lets a kernel have that much shared memory, or fails.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, int64_t bytes, const Tensor& features) {
  int limit = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                         features.get_device_index());
  check(bytes <= limit, "_dynamic_mask_conv_cuda: expected channels that fit ", limit,
        " bytes of shared memory, got ", features.size(1), " channels in ", bytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
}

inline unsigned mask_conv_grid(int64_t blocks) {
  check(blocks < (int64_t{1} << 31),
        "_dynamic_mask_conv_cuda: expected fewer than 2^31 blocks, got ", blocks);
  return static_cast<unsigned>(blocks);
}

}  // namespace avskernels
