// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "common/operator.h"
#include "deformable_attention/deformable_attention_cuda.h"

namespace avskernels {
namespace {

// The bits of a magnitude order as the magnitudes do, and NaN above all.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    largest_magnitude(const T* data, int64_t count, unsigned long long* largest) {
  unsigned long long bits = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const double magnitude = fabs(static_cast<double>(data[i]));
    bits = max(bits, static_cast<unsigned long long>(__double_as_longlong(magnitude)));
  }
  for (int lane = 16; lane > 0; lane /= 2) {
    bits = max(bits, __shfl_xor_sync(0xffffffff, bits, lane));
  }
  if (threadIdx.x % 32 == 0) {
    atomicMax(largest, bits);
  }
}

// The power of two that brings every possible sum of the gradient of one pixel to at most 2^62: at
// most Q * P samples of its level, each at most `largest` weight times `largest` gradient. NaN if
// one of these is not finite.
__device__ double fixed_point_scale(const unsigned long long* largest,
                                    const DeformableShape& shape) {
  const double most = __longlong_as_double(largest[0]) * __longlong_as_double(largest[1]) *
                      (static_cast<double>(shape.queries) * static_cast<double>(shape.points));
  if (!isfinite(most)) {
    return NAN;
  }
  return ldexp(1.0, most > 0 ? min(61 - ilogb(most), 1000) : 0);
}

// computes: the gradients of locations and weights, and adds up that of value in fixed point
// grid: rows; blockDim.y of them (image, query, head) a block, blockDim.x threads each
// traffic and FLOPs: grad_output, locations, weights and their gradients once; value from L2; four
//   additions of 8 bytes to L2 a sample and channel; 16 B Q heads L P D
// numerics: in accumulate_t<T>; integers add up the same in any order, so results are deterministic
// limits: NaN gradients of value where the shapes do not cover it
template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads)
    deformable_backward(const T* grad_output,               // [B, Q, heads, D]
                        const T* value,                     // [B, S, heads, D]
                        const int64_t* shapes,              // [L, 2]
                        const accumulate_t<T>* locations,   // [B, Q, heads, L, P, 2]
                        const accumulate_t<T>* attention,   // [B, Q, heads, L, P]
                        const unsigned long long* largest,  // gradient, weight
                        unsigned long long* fixed_value,    // as value
                        accumulate_t<T>* grad_locations,    // as locations
                        accumulate_t<T>* grad_attention,    // as attention
                        DeformableShape shape) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  Corner<A>* corners = reinterpret_cast<Corner<A>*>(shared);
  A(*dots)[4] = reinterpret_cast<A(*)[4]>(corners + kCorners);
  DeviceLevel* levels = reinterpret_cast<DeviceLevel*>(dots + kCorners);
  const bool fits = read_device_levels(shapes, shape, levels);
  const double scale = fixed_point_scale(largest, shape);
  const int64_t rows = shape.batch * shape.queries * shape.heads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * blockDim.y;
  const int64_t row = first_row + threadIdx.y;
  const int64_t image = row / (shape.queries * shape.heads), head = row % shape.heads;
  const int64_t stride = shape.heads * shape.dim;
  const int64_t head_offset = (image * shape.tokens * shape.heads + head) * shape.dim;
  const int count = static_cast<int>(shape.levels * shape.points);
  const int chunk = kCorners / blockDim.y;
  const int step = blockDim.x * kVec;
  for (int begin = 0; begin < count; begin += chunk) {
    const int length = min(chunk, count - begin);
    const int items = blockDim.y * length;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    for (int t = thread; t < items; t += kThreads) {
      const int r = t / length, i = begin + t % length;
      Corner<A> corner = {{-1}, {}};
      if (fits && first_row + r < rows) {
        const int64_t sample = (first_row + r) * count + i;
        const A* location = locations + 2 * sample;
        // Here the weights serve the gradient of value alone, and a NaN location has no pixel.
        const bool located = !isnan(location[0]) && !isnan(location[1]);
        corner = corner_of(locate(levels, shape.points, i, location), attention[sample]);
        for (int c = 0; c < 4 && !located; ++c) corner.weight[c] = 0;
      }
      corners[r * chunk + t % length] = corner;
    }
    __syncthreads();
    for (int i = 0; i < length; ++i) {
      const Corner<A> corner = corners[threadIdx.y * chunk + i];
      A dot[4] = {};
      for (int channel = threadIdx.x * kVec; corner.token[0] >= 0 && channel < shape.dim;
           channel += step) {
        const auto grad = load_pack<T, kVec>(grad_output + row * shape.dim + channel);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int64_t at = head_offset + corner.token[c] * stride + channel;
          const auto pixel = load_pack<T, kVec>(value + at);
#pragma unroll
          for (int v = 0; v < kVec; ++v) {
            const A of_output = static_cast<A>(grad.data[v]);
            dot[c] += static_cast<A>(pixel.data[v]) * of_output;
            if (corner.weight[c] != 0) {
              const double part = static_cast<double>(of_output * corner.weight[c]) * scale;
              atomicAdd(fixed_value + at + v,
                        static_cast<unsigned long long>(__double2ll_rn(part)));
            }
          }
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        for (int lane = blockDim.x / 2; lane > 0; lane /= 2) {
          dot[c] += __shfl_xor_sync(0xffffffff, dot[c], lane);
        }
        if (threadIdx.x == 0) dots[threadIdx.y * chunk + i][c] = dot[c];
      }
    }
    __syncthreads();
    for (int t = thread; t < items; t += kThreads) {
      const int r = t / length, i = begin + t % length;
      if (!fits || first_row + r >= rows) continue;
      const int64_t sample = (first_row + r) * count + i;
      const Located<A> at = locate(levels, shape.points, i, locations + 2 * sample);
      const A* dot = dots[r * chunk + t % length];
      // Products with pixels that are off the map count as zero.
      const A low_low = at.y.low_off || at.x.low_off ? A(0) : dot[0];
      const A low_high = at.y.low_off || at.x.high_off ? A(0) : dot[1];
      const A high_low = at.y.high_off || at.x.low_off ? A(0) : dot[2];
      const A high_high = at.y.high_off || at.x.high_off ? A(0) : dot[3];
      const A low = low_low * at.x.low_share + low_high * at.x.high_share;
      const A high = high_low * at.x.low_share + high_high * at.x.high_share;
      grad_attention[sample] = low * at.y.low_share + high * at.y.high_share;
      grad_locations[2 * sample] =
          attention[sample] * at.level.width *
          ((low_high - low_low) * at.y.low_share + (high_high - high_low) * at.y.high_share);
      grad_locations[2 * sample + 1] = attention[sample] * at.level.height * (high - low);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    from_fixed_point(const long long* fixed, int64_t count, const unsigned long long* largest,
                     DeformableShape shape, T* numbers) {
  const double unit = 1 / fixed_point_scale(largest, shape);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    numbers[i] = static_cast<T>(static_cast<accumulate_t<T>>(static_cast<double>(fixed[i]) * unit));
  }
}

unsigned grid_for(int64_t count) {
  return static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 4096));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward_cuda(
    const DeformableAttentionBackward& in) {
  const auto [shape, values, shapes, locations, weights] = device_inputs(in);
  Tensor grad_value = torch::stable::new_zeros(in.value, in.value.sizes());
  Tensor grad_locations =
      torch::stable::new_zeros(in.sampling_locations, in.sampling_locations.sizes());
  Tensor grad_weights =
      torch::stable::new_zeros(in.attention_weights, in.attention_weights.sizes());
  if (in.grad_output.numel() == 0 || grad_weights.numel() == 0) {
    return {grad_value, grad_locations, grad_weights};
  }
  const CudaScope scope(in.value);
  const Tensor grads = dense(in.grad_output);
  Tensor fixed = torch::stable::new_zeros(in.value, in.value.sizes(), ScalarType::Long);
  Tensor largest = torch::stable::new_zeros(in.value, {2}, ScalarType::Long);
  auto* fixed_data = fixed.mutable_data_ptr<int64_t>();
  auto* largest_data = reinterpret_cast<unsigned long long*>(largest.mutable_data_ptr<int64_t>());
  dispatch_floating(in.value.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const cudaStream_t stream = scope.stream();
    largest_magnitude<T><<<grid_for(grads.numel()), kThreads, 0, stream>>>(
        grads.const_data_ptr<T>(), grads.numel(), largest_data);
    largest_magnitude<A><<<grid_for(weights.numel()), kThreads, 0, stream>>>(
        weights.const_data_ptr<A>(), weights.numel(), largest_data + 1);
    dispatch_vector<T>(shape, [&]<int kVec>() {
      const dim3 block = block_for<kVec>(shape);
      const int64_t rows = shape.batch * shape.queries * shape.heads;
      const unsigned grid = static_cast<unsigned>((rows + block.y - 1) / block.y);
      const size_t shared =
          kCorners * (sizeof(Corner<A>) + 4 * sizeof(A)) + shape.levels * sizeof(DeviceLevel);
      deformable_backward<T, kVec><<<grid, block, shared, stream>>>(
          grads.const_data_ptr<T>(), values.const_data_ptr<T>(), shapes.const_data_ptr<int64_t>(),
          locations.const_data_ptr<A>(), weights.const_data_ptr<A>(), largest_data,
          reinterpret_cast<unsigned long long*>(fixed_data), grad_locations.mutable_data_ptr<A>(),
          grad_weights.mutable_data_ptr<A>(), shape);
    });
    from_fixed_point<T><<<grid_for(grad_value.numel()), kThreads, 0, stream>>>(
        reinterpret_cast<const long long*>(fixed_data), grad_value.numel(), largest_data, shape,
        grad_value.mutable_data_ptr<T>());
  });
  check_launch("deformable_attention");
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define_as<avskernels::DeformableAttentionBackward>(
      m, "_deformable_attention_backward_cuda");
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CUDA, m) {
  avskernels::implement<&avskernels::deformable_attention_backward_cuda>(
      m, "_deformable_attention_backward_cuda");
}
