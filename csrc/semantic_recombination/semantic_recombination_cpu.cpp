// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"
#include "common/large_output.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tensors.h"
#include "common/view.h"
#include "semantic_recombination/semantic_recombination.h"

namespace avskernels {
namespace {

// The product of one image's matrix and a piece of its pixels.
template <typename T, typename A = accumulate_t<T>>
struct ProductJob {
  const A* packed;         // the matrix [C_out, C] in groups of rows, as pack_group leaves them
  const A* bias;           // [C_out] or null
  bool residual;           // adds the features
  View<const T> features;  // [C, pixels]
  View<T> out;             // [C_out, pixels]
};

template <typename T, typename A = accumulate_t<T>>
struct ProductKernels {
  int64_t group_rows;
  int64_t (*group_size)(int64_t channels);
  int64_t (*scratch_size)(int64_t channels);
  void (*pack_group)(const A* group, int64_t rows, int64_t channels, A* packed);
  void (*multiply_pixels)(const ProductJob<T>& job, A* scratch);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL_BF16
#define AVSKERNELS_KERNEL "semantic_recombination/semantic_recombination.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {

void SemanticRecombinationProduct::require() const {
  if (residual && matrices.size(1) != features.size(2)) {
    fail("_semantic_recombination_product: expected ", features.size(2),
         " output channels to add the residual to, got ", matrices.size(1));
  }
}

Tensor semantic_recombination_product_cpu(const SemanticRecombinationProduct& in) {
  const int64_t batch = in.features.size(0), frames = in.features.size(1);
  const int64_t channels = in.features.size(2), pixels = in.features.size(3);
  const int64_t rows = in.matrices.size(1);
  const Tensor map = dense(in.features);
  const Tensor factors = dense(in.matrices);
  const Tensor start = in.bias ? dense(*in.bias) : factors;
  Tensor out = in_huge_pages(torch::stable::new_empty(map, {batch, frames, rows, pixels}));
  dispatch_floating(in.features.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const ProductKernels<T>& kernels = AVSKERNELS_ACTIVE(kProductKernels<T>);
    const int64_t group_rows = kernels.group_rows, group_size = kernels.group_size(channels);
    const int64_t groups = (rows + group_rows - 1) / group_rows;
    const int64_t size = groups * group_size;
    const Scratch<A> packed(batch * size);
    parallel_for(batch * groups, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % groups * group_rows;
        kernels.pack_group(factors.const_data_ptr<A>() + (i / groups * rows + row) * channels,
                           rows - row, channels, packed.data() + i * group_size);
      }
    });
    // A multiple of every instruction set's tile; results do not depend on how pixels are cut.
    constexpr int64_t kPiece = 192;
    const int64_t pieces = (pixels + kPiece - 1) / kPiece;
    parallel_for(batch * frames * pieces, 1, [&](int64_t begin, int64_t end) {
      const Scratch<A> scratch(kernels.scratch_size(channels));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / pieces, first = i % pieces * kPiece;
        const int64_t count = std::min(kPiece, pixels - first);
        kernels.multiply_pixels(
            {.packed = packed.data() + image / frames * size,
             .bias = in.bias ? start.const_data_ptr<A>() : nullptr,
             .residual = in.residual,
             .features = {map.const_data_ptr<T>() + image * channels * pixels + first, pixels,
                          channels, count},
             .out = {out.mutable_data_ptr<T>() + image * rows * pixels + first, pixels, rows,
                     count}},
            scratch.data());
      }
    });
  });
  return out;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::SemanticRecombination>(m);
  avskernels::define<avskernels::SemanticRecombinationBackward>(m);
  avskernels::define<avskernels::SemanticRecombinationProduct>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::semantic_recombination_product_cpu>(m);
}
