// SPDX-License-Identifier: Apache-2.0
#include "common/operator.h"
#include "deformable_attention/deformable_attention_cuda.h"

namespace avskernels {
namespace {

// computes: output rows; blockDim.y of them (image, query, head) a block, blockDim.x vectors each
// grid: rows x vectors of a row
// traffic and FLOPs: locations, weights, output once; value from L2; 8 B Q heads L P D
// numerics: summed in accumulate_t<T>, level by level, point by point
// limits: NaN where the shapes do not cover the value
template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads)
    deformable_forward(const T* value,                    // [B, S, heads, D]
                       const int64_t* shapes,             // [L, 2]
                       const accumulate_t<T>* locations,  // [B, Q, heads, L, P, 2]
                       const accumulate_t<T>* attention,  // [B, Q, heads, L, P]
                       T* output,                         // [B, Q, heads, D]
                       DeformableShape shape) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  Corner<A>* corners = reinterpret_cast<Corner<A>*>(shared);
  DeviceLevel* levels = reinterpret_cast<DeviceLevel*>(corners + kCorners);
  const bool fits = read_device_levels(shapes, shape, levels);
  const int64_t rows = shape.batch * shape.queries * shape.heads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * blockDim.y;
  const int64_t row = first_row + threadIdx.y;
  const int64_t image = row / (shape.queries * shape.heads), head = row % shape.heads;
  const int64_t channel = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kVec;
  const int64_t stride = shape.heads * shape.dim;
  const T* pixels = value + (image * shape.tokens * shape.heads + head) * shape.dim + channel;
  const bool active = fits && row < rows && channel < shape.dim;
  const int count = static_cast<int>(shape.levels * shape.points);
  const int chunk = kCorners / blockDim.y;
  A sum[kVec] = {};
  for (int begin = 0; begin < count; begin += chunk) {
    const int length = min(chunk, count - begin);
    __syncthreads();
    for (int t = threadIdx.y * blockDim.x + threadIdx.x; t < static_cast<int>(blockDim.y) * length;
         t += kThreads) {
      const int r = t / length, i = begin + t % length;
      if (fits && first_row + r < rows) {
        const int64_t sample = (first_row + r) * count + i;
        corners[r * chunk + t % length] =
            corner_of(locate(levels, shape.points, i, locations + 2 * sample), attention[sample]);
      }
    }
    __syncthreads();
    for (int i = 0; active && i < length; ++i) {
      const Corner<A> corner = corners[threadIdx.y * chunk + i];
      if (corner.token[0] < 0) continue;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const Pack<T, kVec> pixel = load_pack<T, kVec>(pixels + corner.token[c] * stride);
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          sum[v] += static_cast<A>(pixel.data[v]) * corner.weight[c];
        }
      }
    }
  }
  if (row < rows && channel < shape.dim) {
    Pack<T, kVec> result;
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      result.data[v] = static_cast<T>(fits ? sum[v] : static_cast<A>(NAN));
    }
    *reinterpret_cast<Pack<T, kVec>*>(output + row * shape.dim + channel) = result;
  }
}

}  // namespace

Tensor deformable_attention_cuda(const DeformableAttention& in) {
  const auto [shape, values, shapes, locations, weights] = device_inputs(in);
  Tensor output =
      torch::stable::new_empty(in.value, {shape.batch, shape.queries, shape.heads * shape.dim});
  if (output.numel() == 0) {
    return output;
  }
  const CudaScope scope(in.value);
  dispatch_floating(in.value.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    dispatch_vector<T>(shape, [&]<int kVec>() {
      const dim3 block = block_for<kVec>(shape);
      const int64_t rows = shape.batch * shape.queries * shape.heads;
      const dim3 grid(static_cast<unsigned>((rows + block.y - 1) / block.y),
                      static_cast<unsigned>((shape.dim + block.x * kVec - 1) / (block.x * kVec)));
      const size_t shared = kCorners * sizeof(Corner<A>) + shape.levels * sizeof(DeviceLevel);
      deformable_forward<T, kVec><<<grid, block, shared, scope.stream()>>>(
          values.const_data_ptr<T>(), shapes.const_data_ptr<int64_t>(),
          locations.const_data_ptr<A>(), weights.const_data_ptr<A>(), output.mutable_data_ptr<T>(),
          shape);
    });
  });
  check_launch("deformable_attention");
  return output;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define_as<avskernels::DeformableAttention>(m, "_deformable_attention_cuda");
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CUDA, m) {
  avskernels::implement<&avskernels::deformable_attention_cuda>(m, "_deformable_attention_cuda");
}
