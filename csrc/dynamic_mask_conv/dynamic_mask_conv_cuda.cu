// SPDX-License-Identifier: Apache-2.0
#include "common/operator.h"
#include "common/tensor_core.h"
#include "dynamic_mask_conv/dynamic_mask_conv_cuda.h"

namespace avskernels {
namespace {

constexpr int kGroups = 4;  // of 16 pixels each, that a warp works on
constexpr int kWarpPixels = 16 * kGroups;
constexpr int kWarps = 4;
constexpr int kTilePitch = kWarpPixels + 4;  // lanes of a fragment read from different banks
constexpr int64_t kQueriesPerBlock = 32;

// What a lane holds of a query's network beside the weights of the features, see tensor_core.h.
template <typename T>
struct MaskNetwork {
  static constexpr bool kExact = !std::is_same_v<T, float>;

  const T* params;
  float first_bias[2], across[2], down[2];  // outputs pair and pair + 1; weights of coordinates
  Tf32Parts<2> second;
  float second_bias[2], third[2], third_bias;

  __device__ MaskNetwork(const T* params_, const MaskConvShape& shape, bool coordinates, int row,
                         int pair)
      : params(params_) {
    const int64_t biases = shape.first_bias();
    float weight[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const T* coord = params + (pair + j) * shape.inputs + shape.first_coord;
      first_bias[j] = static_cast<float>(params[biases + pair + j]);
      across[j] = coordinates ? static_cast<float>(coord[0]) : 0.0f;
      down[j] = coordinates ? static_cast<float>(coord[1]) : 0.0f;
      weight[j] = static_cast<float>(params[shape.second_weight() + row * kWidth + pair + j]);
      second_bias[j] = static_cast<float>(params[biases + kWidth + pair + j]);
      third[j] = static_cast<float>(params[shape.third_weight() + pair + j]);
    }
    second = tf32_parts<kExact>(weight);
    third_bias = static_cast<float>(params[biases + 2 * kWidth]);
  }

  // The first layer's weights of channels [channel, channel + 8).
  __device__ Tf32Parts<2> first(const MaskConvShape& shape, int64_t channel, int row,
                                int pair) const {
    const T* from = params + row * shape.inputs + shape.first_feature;
    float weight[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t at = channel + pair + j;
      weight[j] = at < shape.channels ? static_cast<float>(from[at]) : 0.0f;
    }
    return tf32_parts<kExact>(weight);
  }
};

// Sums over the four lanes of a row; lane % 4 = g gets those of group g.
__device__ void sum_of_lanes(const float (&part)[kGroups][2], int lane, float (&sum)[2]) {
  static_assert(kGroups == 4);
  const bool upper = lane & 2, odd = lane & 1;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float kept[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float given = upper ? part[k][half] : part[2 + k][half];
      kept[k] = (upper ? part[2 + k][half] : part[k][half]) + __shfl_xor_sync(~0u, given, 2);
    }
    const float given = odd ? kept[0] : kept[1];
    sum[half] = (odd ? kept[1] : kept[0]) + __shfl_xor_sync(~0u, given, 1);
  }
}

// computes: masks of up to kQueriesPerBlock queries for a tile of pixels of one image
// grid: images x tiles x blocks of queries. With up to 8 channels (FEW) features stay in registers
//   and each warp has its own pixels; otherwise they stay in shared memory, and each warp has its
//   own queries
// traffic and FLOPs: masks once, features once a block of queries; 2 (P - biases) a pixel and query
// numerics: float32; products of float32 in three TF32 products, of half precision in one exact
//   one, of its activations in two; coordinates added in float32
// limits: hidden widths (8, 8); an infinite activation makes NaN; a query of an image that is not
//   there gets NaN
template <typename T, bool FEW>
__global__ void __launch_bounds__(32 * kWarps)
    mask_conv_forward(const T* features,           // [B, C, H, W], any strides
                      const T* params,             // [queries, P]
                      const float* points,         // [queries, 2] or null
                      const float* scales,         // [queries] or null
                      const int64_t* image_index,  // [queries], null for shape.queries an image
                      T* masks,                    // [queries, H * W]
                      MaskConvShape shape, int64_t blocks_per_image, int64_t query_blocks) {
  constexpr int kPixelWarps = FEW ? kWarps : 1;
  constexpr bool kExact = MaskNetwork<T>::kExact;
  extern __shared__ float tile[];  // [channels, kTilePitch]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = lane / 4, pair = 2 * (lane % 4);
  int64_t index = blockIdx.x;
  const int64_t first_query = index % query_blocks * kQueriesPerBlock;
  index /= query_blocks;
  const int64_t image = index / blocks_per_image;
  const int64_t first_pixel =
      index % blocks_per_image * (kPixelWarps * kWarpPixels) + warp % kPixelWarps * kWarpPixels;
  const T* plane = features + image * shape.feature_steps[0];
  const auto feature = [&](int64_t channel, int64_t pixel) {
    if (channel >= shape.channels || pixel >= shape.pixels) return 0.0f;
    return static_cast<float>(
        plane[channel * shape.feature_steps[1] + pixel / shape.width * shape.feature_steps[2] +
              pixel % shape.width * shape.feature_steps[3]]);
  };
  const int64_t padded = (shape.channels + 7) / 8 * 8;

  Tf32Parts<4> resident[FEW ? kGroups : 1];
  float x[kGroups][2], y[kGroups][2];  // pixel centres
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    float values[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t pixel = first_pixel + 16 * g + 8 * half + row;
      x[g][half] = static_cast<float>(pixel % shape.width) * shape.stride + shape.stride / 2;
      y[g][half] = static_cast<float>(pixel / shape.width) * shape.stride + shape.stride / 2;
      if constexpr (FEW) {
        values[2 * half] = feature(pair, pixel);
        values[2 * half + 1] = feature(pair + 1, pixel);
      }
    }
    if constexpr (FEW) resident[g] = tf32_parts<kExact>(values);
  }
  if constexpr (!FEW) {
    for (int64_t i = threadIdx.x; i < padded * kWarpPixels; i += 32 * kWarps) {
      const int64_t channel = i / kWarpPixels, at = i % kWarpPixels;
      tile[channel * kTilePitch + at] = feature(channel, first_pixel + at);
    }
    __syncthreads();
  }

  const int64_t last = min(first_query + kQueriesPerBlock, shape.queries);
  for (int64_t i = first_query + warp / kPixelWarps; i < last; i += kWarps / kPixelWarps) {
    const int64_t query = image_index == nullptr ? image * shape.queries + i : i;
    T* mask = masks + query * shape.pixels;
    if (image_index != nullptr && image_index[query] != image) {
      const bool nowhere = image_index[query] < 0 || image_index[query] >= shape.images;
      for (int at = lane; nowhere && image == 0 && at < kWarpPixels; at += 32) {
        if (first_pixel + at < shape.pixels) mask[first_pixel + at] = static_cast<T>(NAN);
      }
      continue;
    }
    const bool coordinates = points != nullptr;
    const MaskNetwork<T> network(params + query * shape.params_per_query(), shape, coordinates, row,
                                 pair);
    const float scale = scales == nullptr ? 1.0f : scales[query];
    const float point_x = coordinates ? points[2 * query] : 0.0f;
    const float point_y = coordinates ? points[2 * query + 1] : 0.0f;
    float state[kGroups][4];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float right = (point_x - x[g][e / 2]) * scale,
                    below = (point_y - y[g][e / 2]) * scale;
        state[g][e] = network.first_bias[e % 2];
        if (coordinates) {
          state[g][e] += network.across[e % 2] * right;
          state[g][e] += network.down[e % 2] * below;
        }
      }
    }
    if constexpr (FEW) {
      const Tf32Parts<2> weight = network.first(shape, 0, row, pair);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        multiply_add<kExact, kExact>(state[g], resident[g], weight);
      }
    } else {
      for (int64_t channel = 0; channel < padded; channel += 8) {
        const Tf32Parts<2> weight = network.first(shape, channel, row, pair);
        const float* from = tile + (channel + pair) * kTilePitch + row;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const float values[4] = {from[16 * g], from[16 * g + kTilePitch], from[16 * g + 8],
                                   from[16 * g + 8 + kTilePitch]};
          multiply_add<kExact, kExact>(state[g], tf32_parts<kExact>(values), weight);
        }
      }
    }
    float part[kGroups][2];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float next[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state[g][e] = relu(state[g][e]);
        next[e] = network.second_bias[e % 2];
      }
      multiply_add<false, kExact>(next, tf32_parts<false>(state[g]), network.second);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        part[g][half] =
            relu(next[2 * half]) * network.third[0] + relu(next[2 * half + 1]) * network.third[1];
      }
    }
    float sum[2];
    sum_of_lanes(part, lane, sum);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t pixel = first_pixel + 16 * (lane % 4) + 8 * half + row;
      if (pixel < shape.pixels) mask[pixel] = static_cast<T>(sum[half] + network.third_bias);
    }
  }
}

template <typename T>
void launch_forward(const Tensor& features, const MaskConvInputs& inputs, Tensor& masks) {
  const CudaScope scope(features);
  const MaskConvShape& shape = inputs.shape;
  const auto launch = [&](auto kernel, int64_t pixels, int64_t shared) {
    const int64_t blocks_per_image = (shape.pixels + pixels - 1) / pixels;
    const int64_t query_blocks = (shape.queries + kQueriesPerBlock - 1) / kQueriesPerBlock;
    allow_shared_memory(kernel, shared, features);
    kernel<<<mask_conv_grid(shape.images * blocks_per_image * query_blocks), 32 * kWarps, shared,
             scope.stream()>>>(features.const_data_ptr<T>(), inputs.params.const_data_ptr<T>(),
                               inputs.points_data(), inputs.scales_data(), inputs.image_index(),
                               masks.mutable_data_ptr<T>(), shape, blocks_per_image, query_blocks);
  };
  if (shape.channels <= 8) {
    launch(mask_conv_forward<T, true>, kWarps * kWarpPixels, 0);
  } else {
    launch(mask_conv_forward<T, false>, kWarpPixels,
           (shape.channels + 7) / 8 * 8 * kTilePitch * sizeof(float));
  }
  check_launch("_dynamic_mask_conv_cuda");
}

}  // namespace

Tensor dynamic_mask_conv_cuda(const DynamicMaskConv& in) {
  const Tensor& features = in.features;
  const MaskConvInputs inputs = device_inputs(in);
  std::vector<int64_t> sizes(in.params.sizes().begin(), in.params.sizes().end() - 1);
  sizes.insert(sizes.end(), {features.size(2), features.size(3)});
  Tensor masks = torch::stable::new_empty(features, sizes);
  if (masks.numel() > 0) {
    dispatch_single(features.scalar_type(),
                    [&]<typename T>() { launch_forward<T>(features, inputs, masks); });
  }
  return masks;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define_as<avskernels::DynamicMaskConv>(m, "_dynamic_mask_conv_cuda");
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CUDA, m) {
  avskernels::implement<&avskernels::dynamic_mask_conv_cuda>(m, "_dynamic_mask_conv_cuda");
}
