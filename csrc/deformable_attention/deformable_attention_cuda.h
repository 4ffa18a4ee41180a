// SPDX-License-Identifier: Apache-2.0
// What the forward and the backward CUDA kernels share: how samples find their pixels, and how rows
// map to threads.
#pragma once

#include "common/stream.h"
#include "common/tensors.h"
#include "deformable_attention/deformable_attention.h"

namespace avskernels {

constexpr int kThreads = 256;
constexpr int kCorners = 512;  // samples whose pixels a block holds at a time
constexpr int kVectorBytes = 16;

template <typename T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T data[kVec];
};

template <typename T, int kVec>
__device__ Pack<T, kVec> load_pack(const T* data) {
  return *reinterpret_cast<const Pack<T, kVec>*>(data);
}

// The four pixels around a sample, (low, low), (low, high), (high, low), (high, high) in (y, x).
template <typename A>
struct alignas(16) Corner {
  int32_t token[4];  // -1 in the first for a sample that is off the map
  A weight[4];       // bilinear times attention
};

struct DeviceLevel {
  int32_t width;
  int32_t height;
  int32_t first;
};

// Fills the block's table of levels and tells whether it covers the value; called by all threads.
inline __device__ bool read_device_levels(const int64_t* shapes, const DeformableShape& shape,
                                          DeviceLevel* levels) {
  __shared__ bool fits;
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    int64_t covered = 0;
    fits = true;
    for (int64_t l = 0; fits && l < shape.levels; ++l) {
      const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
      fits = height >= 1 && width >= 1 && height <= kLongestSide && width <= kLongestSide &&
             height * width <= shape.tokens - covered;
      levels[l] = {static_cast<int32_t>(width), static_cast<int32_t>(height),
                   static_cast<int32_t>(covered)};
      covered += height * width;
    }
    fits = fits && covered == shape.tokens;
  }
  __syncthreads();
  return fits;
}

template <typename A>
struct Located {
  DeviceLevel level;
  Between<A> x, y;
};

template <typename A>
__device__ Located<A> locate(const DeviceLevel* levels, int64_t points, int64_t i,
                             const A* location) {
  const DeviceLevel level = levels[i / points];
  return {level, between_pixels(location[0], static_cast<A>(level.width)),
          between_pixels(location[1], static_cast<A>(level.height))};
}

template <typename A>
__device__ Corner<A> corner_of(const Located<A>& at, A attention) {
  const int32_t low = at.level.first + static_cast<int32_t>(at.y.low) * at.level.width;
  const int32_t high = at.level.first + static_cast<int32_t>(at.y.high) * at.level.width;
  const int32_t x_low = static_cast<int32_t>(at.x.low), x_high = static_cast<int32_t>(at.x.high);
  const bool outside = (at.x.low_off && at.x.high_off) || (at.y.low_off && at.y.high_off);
  return {
      {outside ? -1 : low + x_low, low + x_high, high + x_low, high + x_high},
      {attention * at.y.low_share * at.x.low_share, attention * at.y.low_share * at.x.high_share,
       attention * at.y.high_share * at.x.low_share,
       attention * at.y.high_share * at.x.high_share}};
}

struct Inputs {
  DeformableShape shape;
  Tensor value, shapes, locations, weights;  // contiguous, on value's device
};

template <typename Arguments>
Inputs device_inputs(const Arguments& in) {
  const DeformableShape shape = deformable_shape(in);
  const Tensor shapes = dense(in.spatial_shapes);
  if (shapes.is_cpu()) {
    read_levels(shapes, shape.tokens);
  }
  return {shape, dense(in.value), torch::stable::to(shapes, in.value.device()),
          dense(in.sampling_locations), dense(in.attention_weights)};
}

// Threads that share a row: as many as it has vectors, to a power of two, at most a warp.
template <int kVec>
dim3 block_for(const DeformableShape& shape) {
  unsigned lanes = 1;
  while (lanes < 32 && lanes * kVec < shape.dim) lanes *= 2;
  return {lanes, kThreads / lanes};
}

// Calls body.operator()<kVec>() with the widest vector that divides the rows.
template <typename T, typename Body>
void dispatch_vector(const DeformableShape& shape, const Body& body) {
  constexpr int kVec = kVectorBytes / sizeof(T);
  if (shape.dim % kVec == 0) {
    body.template operator()<kVec>();
  } else {
    body.template operator()<1>();
  }
}

}  // namespace avskernels
