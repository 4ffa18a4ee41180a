// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "common/operator.h"
#include "dynamic_mask_conv/dynamic_mask_conv_cuda.h"

namespace avskernels {
namespace {

constexpr int kThreads = 128;
constexpr int kFewerPixels = 32;       // of a tile, where more would not fit shared memory
constexpr int64_t kChunks = 256;       // of all images together: what sums of params are made of
constexpr int64_t kEasily = 48 << 10;  // bytes of shared memory

// A tile of PIXELS pixels in shared memory: a thread works on one pixel, together with
// kThreads / PIXELS - 1 others, each of which has its own share of a layer's outputs.
template <int PIXELS>
struct MaskTile {
  static constexpr int kPitch = PIXELS + 4;  // rows of a sum start in different banks
  static constexpr int kParts = kThreads / PIXELS;
  static constexpr int kUnits = kWidth / kParts;

  float* inputs;        // [inputs, kPitch]
  float* first;         // [kWidth, kPitch] activations
  float* second;        // [kWidth, kPitch]
  float* first_delta;   // [kWidth, kPitch] their gradients before the ReLU
  float* second_delta;  // [kWidth, kPitch]
  float* grad_mask;     // [kPitch]
  float* grad_inputs;   // [channels, kPitch]
  float* params;        // [P]

  __device__ MaskTile(float* shared, const MaskConvShape& shape)
      : inputs(shared),
        first(inputs + shape.inputs * kPitch),
        second(first + kWidth * kPitch),
        first_delta(second + kWidth * kPitch),
        second_delta(first_delta + kWidth * kPitch),
        grad_mask(second_delta + kWidth * kPitch),
        grad_inputs(grad_mask + kPitch),
        params(grad_inputs + shape.channels * kPitch) {}

  static int64_t bytes(const MaskConvShape& shape) {
    const int64_t rows = shape.inputs + shape.channels + 4 * kWidth + 1;
    return (rows * kPitch + shape.params_per_query()) * sizeof(float);
  }

  // Sum over the pixels of the products of two rows; without `right`, of one.
  static __device__ float sum(const float* left, const float* right) {
    float total = 0;
    for (int at = 0; at < PIXELS; at += 4) {
      const float4 a = *reinterpret_cast<const float4*>(left + at);
      float4 b = {1, 1, 1, 1};
      if (right != nullptr) b = *reinterpret_cast<const float4*>(right + at);
      total += a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w);
    }
    return total;
  }

  // The tile's share of the gradient of parameter p.
  __device__ float grad_param(const MaskConvShape& shape, int64_t p) const {
    if (p < shape.second_weight()) {
      return sum(first_delta + p / shape.inputs * kPitch, inputs + p % shape.inputs * kPitch);
    }
    if (p < shape.third_weight()) {
      p -= shape.second_weight();
      return sum(second_delta + p / kWidth * kPitch, first + p % kWidth * kPitch);
    }
    if (p < shape.first_bias()) {
      return sum(grad_mask, second + (p - shape.third_weight()) * kPitch);
    }
    p -= shape.first_bias();
    const float* row = p < kWidth       ? first_delta + p * kPitch
                       : p < 2 * kWidth ? second_delta + (p - kWidth) * kPitch
                                        : grad_mask;
    return sum(row, nullptr);
  }
};

// computes: grad_features of a chunk of one image's tiles, and the chunk's share of grad_params
// grid: images x chunks; tiles, then queries in order inside
// traffic and FLOPs: features, their gradient and the masks' gradient once, params once a tile,
//   partial sums once a tile; three times the forward FLOPs
// numerics: float32; sums over a tile, then over tiles, then over chunks, always in this order
// limits: hidden widths (8, 8); NaN for a query of an image that is not there
template <typename T, int PIXELS>
__global__ void __launch_bounds__(kThreads)
    mask_conv_backward(const T* grad_masks,         // [queries, H * W]
                       const T* features,           // [B, C, H, W], any strides
                       const T* params,             // [queries, P]
                       const float* points,         // [queries, 2] or null
                       const float* scales,         // [queries] or null
                       const int64_t* image_index,  // [queries], null for shape.queries an image
                       T* grad_features,            // [B, C, H * W]
                       float* partial,              // [chunks, queries, P], zeros
                       MaskConvShape shape, int64_t chunks, int64_t all_queries) {
  using Tile = MaskTile<PIXELS>;
  constexpr int kPitch = Tile::kPitch;
  extern __shared__ __align__(16) float shared[];
  const Tile tile(shared, shape);
  const int64_t image = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t tiles = (shape.pixels + PIXELS - 1) / PIXELS;
  const int at = threadIdx.x % PIXELS, part = threadIdx.x / PIXELS;
  const int64_t count = shape.params_per_query();
  partial += chunk * all_queries * count;
  for (int64_t t = chunk * tiles / chunks; t < (chunk + 1) * tiles / chunks; ++t) {
    const int64_t pixel = t * PIXELS + at;
    const bool exists = pixel < shape.pixels;
    const int64_t y = pixel / shape.width, x = pixel % shape.width;
    const T* from = features + image * shape.feature_steps[0] + y * shape.feature_steps[2] +
                    x * shape.feature_steps[3];
    for (int64_t c = part; c < shape.channels; c += Tile::kParts) {
      tile.inputs[(shape.first_feature + c) * kPitch + at] =
          exists ? static_cast<float>(from[c * shape.feature_steps[1]]) : 0.0f;
      tile.grad_inputs[c * kPitch + at] = 0;
    }
    for (int64_t i = 0; i < shape.queries; ++i) {
      const int64_t query = image_index == nullptr ? image * shape.queries + i : i;
      if (image_index != nullptr && image_index[query] != image) {
        const bool nowhere = image_index[query] < 0 || image_index[query] >= shape.images;
        for (int64_t p = threadIdx.x; nowhere && image == 0 && p < count; p += kThreads) {
          partial[query * count + p] = NAN;
        }
        continue;
      }
      __syncthreads();  // the sums over the tile are done with what changes now
      for (int64_t p = threadIdx.x; p < count; p += kThreads) {
        tile.params[p] = static_cast<float>(params[query * count + p]);
      }
      if (part == 0) {
        tile.grad_mask[at] =
            exists ? static_cast<float>(grad_masks[query * shape.pixels + pixel]) : 0.0f;
        if (points != nullptr) {
          const float scale = scales == nullptr ? 1.0f : scales[query];
          const float across = static_cast<float>(x) * shape.stride + shape.stride / 2;
          const float down = static_cast<float>(y) * shape.stride + shape.stride / 2;
          float* coord = tile.inputs + shape.first_coord * kPitch + at;
          coord[0] = exists ? (points[2 * query] - across) * scale : 0.0f;
          coord[kPitch] = exists ? (points[2 * query + 1] - down) * scale : 0.0f;
        }
      }
      __syncthreads();
      const float* biases = tile.params + shape.first_bias();
      const float* second_weight = tile.params + shape.second_weight();
      const int first_unit = part * Tile::kUnits;
      float sum[Tile::kUnits];
#pragma unroll
      for (int u = 0; u < Tile::kUnits; ++u) sum[u] = biases[first_unit + u];
      for (int64_t c = 0; c < shape.inputs; ++c) {
        const float value = tile.inputs[c * kPitch + at];
#pragma unroll
        for (int u = 0; u < Tile::kUnits; ++u) {
          sum[u] += tile.params[(first_unit + u) * shape.inputs + c] * value;
        }
      }
#pragma unroll
      for (int u = 0; u < Tile::kUnits; ++u) {
        tile.first[(first_unit + u) * kPitch + at] = relu(sum[u]);
      }
      __syncthreads();
#pragma unroll
      for (int u = 0; u < Tile::kUnits; ++u) {
        const int unit = first_unit + u;
        float state = biases[kWidth + unit];
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          state += second_weight[unit * kWidth + k] * tile.first[k * kPitch + at];
        }
        tile.second[unit * kPitch + at] = relu(state);
        tile.second_delta[unit * kPitch + at] =
            state <= 0 ? 0.0f : tile.params[shape.third_weight() + unit] * tile.grad_mask[at];
      }
      __syncthreads();
#pragma unroll
      for (int u = 0; u < Tile::kUnits; ++u) {
        const int unit = first_unit + u;
        float delta = 0;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          delta += second_weight[k * kWidth + unit] * tile.second_delta[k * kPitch + at];
        }
        tile.first_delta[unit * kPitch + at] = tile.first[unit * kPitch + at] <= 0 ? 0.0f : delta;
      }
      __syncthreads();
      for (int64_t c = part; c < shape.channels; c += Tile::kParts) {
        float grad = tile.grad_inputs[c * kPitch + at];
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          grad += tile.params[k * shape.inputs + shape.first_feature + c] *
                  tile.first_delta[k * kPitch + at];
        }
        tile.grad_inputs[c * kPitch + at] = grad;
      }
      for (int64_t p = threadIdx.x; p < count; p += kThreads) {
        partial[query * count + p] += tile.grad_param(shape, p);
      }
    }
    for (int64_t c = part; exists && c < shape.channels; c += Tile::kParts) {
      grad_features[(image * shape.channels + c) * shape.pixels + pixel] =
          static_cast<T>(tile.grad_inputs[c * kPitch + at]);
    }
    __syncthreads();
  }
}

// grad_params[i] = the sum over chunks of partial[chunk, i], in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_chunks(const float* partial, int64_t chunks, int64_t count, T* grad_params) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * count + i];
  grad_params[i] = static_cast<T>(sum);
}

template <typename T, int PIXELS>
void launch_backward(const Tensor& grad_masks, const Tensor& features, const MaskConvInputs& inputs,
                     Tensor& grad_features, Tensor& grad_params) {
  const CudaScope scope(features);
  const MaskConvShape& shape = inputs.shape;
  const int64_t count = grad_params.numel();
  const int64_t all_queries = count / shape.params_per_query();
  const int64_t tiles = (shape.pixels + PIXELS - 1) / PIXELS;
  const int64_t chunks = std::min(tiles, (kChunks + shape.images - 1) / shape.images);
  Tensor partial = torch::stable::new_zeros(features, {chunks, count}, ScalarType::Float);
  const int64_t bytes = MaskTile<PIXELS>::bytes(shape);
  allow_shared_memory(mask_conv_backward<T, PIXELS>, bytes, features);
  mask_conv_backward<T, PIXELS>
      <<<mask_conv_grid(shape.images * chunks), kThreads, bytes, scope.stream()>>>(
          grad_masks.const_data_ptr<T>(), features.const_data_ptr<T>(),
          inputs.params.const_data_ptr<T>(), inputs.points_data(), inputs.scales_data(),
          inputs.image_index(), grad_features.mutable_data_ptr<T>(),
          partial.mutable_data_ptr<float>(), shape, chunks, all_queries);
  sum_chunks<T><<<mask_conv_grid((count + kThreads - 1) / kThreads), kThreads, 0, scope.stream()>>>(
      partial.const_data_ptr<float>(), chunks, count, grad_params.mutable_data_ptr<T>());
  check_launch("_dynamic_mask_conv_backward_cuda");
}

}  // namespace

std::tuple<Tensor, Tensor> dynamic_mask_conv_backward_cuda(const DynamicMaskConvBackward& in) {
  const Tensor& features = in.features;
  const MaskConvInputs inputs = device_inputs(in);
  Tensor grad_features = torch::stable::new_zeros(features, features.sizes());
  Tensor grad_params = torch::stable::new_zeros(in.params, in.params.sizes());
  if (inputs.shape.pixels == 0 || in.params.numel() == 0) return {grad_features, grad_params};
  const Tensor grad = dense(in.grad_masks);
  dispatch_single(features.scalar_type(), [&]<typename T>() {
    if (MaskTile<kThreads>::bytes(inputs.shape) <= kEasily) {
      launch_backward<T, kThreads>(grad, features, inputs, grad_features, grad_params);
    } else {
      launch_backward<T, kFewerPixels>(grad, features, inputs, grad_features, grad_params);
    }
  });
  return {grad_features, grad_params};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define_as<avskernels::DynamicMaskConvBackward>(m, "_dynamic_mask_conv_backward_cuda");
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CUDA, m) {
  avskernels::implement<&avskernels::dynamic_mask_conv_backward_cuda>(
      m, "_dynamic_mask_conv_backward_cuda");
}
