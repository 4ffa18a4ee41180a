// SPDX-License-Identifier: Apache-2.0
// A warp's matrix product on the tensor cores, mma.m16n8k8 in TF32, so that products chain: what
// one product puts out is the next one's left operand, with no exchange between lanes.
//
// With row = lane / 4 and pair = 2 * (lane % 4), a lane holds of a
//   left operand or result [16, 8]: (row, pair), (row, pair + 1), (row + 8, pair),
//   (row + 8, pair + 1);
//   right operand [8, 8] as [outputs, inputs]: (row, pair), (row, pair + 1).
// The instruction itself wants inputs lane % 4 and lane % 4 + 4 of its operands; a sum has no order
// of inputs, so both operands may name theirs pair and pair + 1 instead.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace avskernels {

// TF32 keeps 11 bits; what it leaves out of a float makes a second TF32 number.
template <int kCount>
struct Tf32Parts {
  uint32_t high[kCount];
  uint32_t low[kCount];
};

__device__ inline uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// kExact: the values came from half precision and fit as they are.
template <bool kExact, int kCount>
__device__ Tf32Parts<kCount> tf32_parts(const float (&values)[kCount]) {
  Tf32Parts<kCount> parts;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kExact) {
      parts.high[i] = __float_as_uint(values[i]);
      parts.low[i] = 0;
    } else {
      parts.high[i] = to_tf32(values[i]);
      parts.low[i] = to_tf32(values[i] - __uint_as_float(parts.high[i]));
    }
  }
  return parts;
}

__device__ inline void mma_m16n8k8(float (&sum)[4], const uint32_t (&left)[4],
                                   const uint32_t (&right)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[2]), "r"(left[1]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// sum += left * right^T; of operands that are not exact, the product of the low parts is left out
// (2^-22 of the result).
template <bool kLeftExact, bool kRightExact>
__device__ void multiply_add(float (&sum)[4], const Tf32Parts<4>& left, const Tf32Parts<2>& right) {
  if constexpr (!kRightExact) mma_m16n8k8(sum, left.high, right.low);
  if constexpr (!kLeftExact) mma_m16n8k8(sum, left.low, right.high);
  mma_m16n8k8(sum, left.high, right.high);
}

}  // namespace avskernels
