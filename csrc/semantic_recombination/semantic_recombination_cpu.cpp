// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/large_output.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "semantic_recombination/semantic_recombination.h"

#define AVSKERNELS_KERNEL_BF16
#define AVSKERNELS_KERNEL "semantic_recombination/semantic_recombination_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {

Tensor semantic_recombination_product_cpu(const Tensor& matrices, const Tensor& features,
                                          const std::optional<Tensor>& bias, bool residual) {
  const char* op = "semantic_recombination";
  expect(op, "features", features, {"B", "T", "C", "P"}, kFloatingPoint);
  const ScalarType dtype = accumulate_type(features.scalar_type());
  const int64_t batch = features.size(0), frames = features.size(1);
  const int64_t channels = features.size(2), pixels = features.size(3);
  expect(op, "matrices", matrices, {batch, residual ? Dim(channels) : Dim("C_out"), channels},
         {dtype});
  const int64_t rows = matrices.size(1);
  const Tensor map = torch::stable::contiguous(features);
  const Tensor factors = torch::stable::contiguous(matrices);
  Tensor start = factors;
  if (bias) {
    expect(op, "bias", *bias, {rows}, {dtype});
    start = torch::stable::contiguous(*bias);
  }
  Tensor out = in_huge_pages(torch::stable::new_empty(map, {batch, frames, rows, pixels}));
  dispatch_floating(features.scalar_type(), op, [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto pack =
        select_isa(&portable::pack_group<T>, &avx2::pack_group<T>, &avx512::pack_group<T>,
                   &avx512::pack_group<T>, &avx512_bf16::pack_group<T>);
    const auto group_size = select_isa(&portable::packed_group_size<T>, &avx2::packed_group_size<T>,
                                       &avx512::packed_group_size<T>, &avx512::packed_group_size<T>,
                                       &avx512_bf16::packed_group_size<T>);
    const auto scratch_size =
        select_isa(&portable::product_scratch_size<T>, &avx2::product_scratch_size<T>,
                   &avx512::product_scratch_size<T>, &avx512::product_scratch_size<T>,
                   &avx512_bf16::product_scratch_size<T>);
    const auto multiply = select_isa(&portable::multiply_pixels<T>, &avx2::multiply_pixels<T>,
                                     &avx512::multiply_pixels<T>, &avx512::multiply_pixels<T>,
                                     &avx512_bf16::multiply_pixels<T>);
    const int64_t group_rows =
        select_isa(&portable::product_rows, &avx2::product_rows, &avx512::product_rows)();
    const int64_t groups = (rows + group_rows - 1) / group_rows;
    const int64_t size = groups * group_size(channels);
    const Scratch<A> packed(batch * size);
    parallel_for(batch * groups, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % groups * group_rows;
        pack(factors.const_data_ptr<A>() + (i / groups * rows + row) * channels, rows - row,
             channels, packed.data() + i * group_size(channels));
      }
    });
    // A multiple of every instruction set's tile; results do not depend on how pixels are cut.
    constexpr int64_t kPiece = 192;
    const int64_t pieces = (pixels + kPiece - 1) / kPiece;
    parallel_for(batch * frames * pieces, 1, [&](int64_t begin, int64_t end) {
      const Scratch<A> scratch(scratch_size(channels));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / pieces, first = i % pieces * kPiece;
        multiply(packed.data() + image / frames * size, bias ? start.const_data_ptr<A>() : nullptr,
                 residual, map.const_data_ptr<T>() + image * channels * pixels, pixels, rows,
                 channels, first, std::min(first + kPiece, pixels), scratch.data(),
                 out.mutable_data_ptr<T>() + image * rows * pixels);
      }
    });
  });
  return out;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("_semantic_recombination_product",
         TORCH_BOX(&avskernels::semantic_recombination_product_cpu));
}
