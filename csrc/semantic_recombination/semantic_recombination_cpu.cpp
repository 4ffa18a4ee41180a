// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "semantic_recombination/semantic_recombination.h"

#define AVSKERNELS_KERNEL "semantic_recombination/semantic_recombination_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {

Tensor semantic_recombination_product_cpu(const Tensor& matrices, const Tensor& features,
                                          const std::optional<Tensor>& bias) {
  const char* op = "semantic_recombination";
  expect(op, "features", features, {"B", "T", "C", "P"}, {ScalarType::Float});
  const int64_t batch = features.size(0), frames = features.size(1);
  const int64_t channels = features.size(2), pixels = features.size(3);
  expect(op, "matrices", matrices, {batch, "C_out", channels}, {ScalarType::Float});
  const int64_t rows = matrices.size(1);
  const Tensor map = torch::stable::contiguous(features);
  const Tensor factors = torch::stable::contiguous(matrices);
  Tensor start = factors;
  if (bias) {
    expect(op, "bias", *bias, {rows}, {ScalarType::Float});
    start = torch::stable::contiguous(*bias);
  }
  Tensor out = torch::stable::new_empty(map, {batch, frames, rows, pixels});
  const auto pack = select_isa(&portable::pack_matrix, &avx2::pack_matrix, &avx512::pack_matrix);
  const auto packed_size = select_isa(&portable::packed_matrix_size, &avx2::packed_matrix_size,
                                      &avx512::packed_matrix_size);
  const auto scratch_size = select_isa(&portable::product_scratch_size, &avx2::product_scratch_size,
                                       &avx512::product_scratch_size);
  const auto multiply =
      select_isa(&portable::multiply_pixels, &avx2::multiply_pixels, &avx512::multiply_pixels);
  const int64_t size = packed_size(rows, channels);
  const Scratch<float> packed(batch * size);
  parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      pack(factors.const_data_ptr<float>() + b * rows * channels, rows, channels,
           packed.data() + b * size);
    }
  });
  // A multiple of every instruction set's tile; results do not depend on how pixels are cut.
  constexpr int64_t kPiece = 192;
  const int64_t pieces = (pixels + kPiece - 1) / kPiece;
  parallel_for(batch * frames * pieces, 1, [&](int64_t begin, int64_t end) {
    const Scratch<float> scratch(scratch_size(channels));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / pieces, first = i % pieces * kPiece;
      multiply(packed.data() + image / frames * size,
               bias ? start.const_data_ptr<float>() : nullptr,
               map.const_data_ptr<float>() + image * channels * pixels, pixels, rows, channels,
               first, std::min(first + kPiece, pixels), scratch.data(),
               out.mutable_data_ptr<float>() + image * rows * pixels);
    }
  });
  return out;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("_semantic_recombination_product",
         TORCH_BOX(&avskernels::semantic_recombination_product_cpu));
}
