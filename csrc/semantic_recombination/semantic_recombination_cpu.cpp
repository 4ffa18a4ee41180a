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
  void (*fold_rows)(View<const A> weight, View<const A> filters, A* matrix);
  void (*pack_group)(const A* group, int64_t rows, int64_t channels, A* packed);
  void (*multiply_pixels)(const ProductJob<T>& job, A* scratch);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL_BF16
#define AVSKERNELS_KERNEL "semantic_recombination/semantic_recombination.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {

namespace {

// The residual needs as many channels out as in.
void require_square(const char* op, int64_t channels, int64_t rows) {
  if (rows == channels) return;
  fail(op, ": expected ", channels, " output channels to add the residual to, got ", rows);
}

struct ProductShape {
  int64_t batch, frames, channels, pixels, rows;
};

// matrix . features + bias (+ features) for every image. matrix_rows(sample, first, count, scratch)
// returns rows of the sample's matrix, which it may make in scratch.
template <typename T, typename A, typename MatrixRows>
void multiply_images(const ProductShape& shape, const T* map, const A* bias, bool residual,
                     const MatrixRows& matrix_rows, T* out) {
  const auto [batch, frames, channels, pixels, rows] = shape;
  const ProductKernels<T>& kernels = AVSKERNELS_ACTIVE(kProductKernels<T>);
  const int64_t group_rows = kernels.group_rows, group_size = kernels.group_size(channels);
  const int64_t groups = (rows + group_rows - 1) / group_rows;
  const int64_t size = groups * group_size;
  const Scratch<A> packed(batch * size);
  parallel_for(
      batch * groups, 8, [&, channels = channels, rows = rows](int64_t begin, int64_t end) {
        const Scratch<A> scratch(group_rows * channels);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i % groups * group_rows, count = std::min(group_rows, rows - row);
          kernels.pack_group(matrix_rows(i / groups, row, count, scratch.data()), count, channels,
                             packed.data() + i * group_size);
        }
      });
  // A multiple of every instruction set's tile; results do not depend on how pixels are cut.
  constexpr int64_t kPiece = 192;
  const int64_t pieces = (pixels + kPiece - 1) / kPiece;
  parallel_for(batch * frames * pieces, 1, [&, shape](int64_t begin, int64_t end) {
    const Scratch<A> scratch(kernels.scratch_size(shape.channels));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / pieces, first = i % pieces * kPiece;
      const int64_t count = std::min(kPiece, shape.pixels - first);
      kernels.multiply_pixels({.packed = packed.data() + image / shape.frames * size,
                               .bias = bias,
                               .residual = residual,
                               .features = {map + image * shape.channels * shape.pixels + first,
                                            shape.pixels, shape.channels, count},
                               .out = {out + image * shape.rows * shape.pixels + first,
                                       shape.pixels, shape.rows, count}},
                              scratch.data());
    }
  });
}

}  // namespace

void SemanticRecombination::require() const {
  const int64_t size = weight.size(2);
  if (size % 2 == 0) {
    fail("semantic_recombination: expected weight [C_out, ", weight.size(1),
         ", k, k] with odd k, got ", shape(weight));
  }
  if (size != 1) {
    fail("semantic_recombination: expected a weight of 1 x 1 (avskernels.semantic_recombination ",
         "takes others), got ", size, " x ", size);
  }
  if (residual) {
    require_square("semantic_recombination", features.size(features.dim() - 3), weight.size(0));
  }
}

void SemanticRecombinationProduct::require() const {
  if (residual) {
    require_square("_semantic_recombination_product", features.size(2), matrices.size(1));
  }
}

Tensor semantic_recombination_cpu(const SemanticRecombination& in) {
  const Tensor map = dense(in.features);
  const Tensor filters = dense(in.filters);
  const Tensor weight = dense(in.weight);
  const std::optional<Tensor> bias = dense(in.bias);
  const int64_t dim = map.dim(), tokens = filters.size(1);
  const ProductShape shape{map.size(0), dim == 5 ? map.size(1) : 1, map.size(dim - 3),
                           map.size(dim - 2) * map.size(dim - 1), weight.size(0)};
  std::vector<int64_t> sizes(map.sizes().begin(), map.sizes().end());
  sizes[dim - 3] = shape.rows;
  Tensor out = in_huge_pages(torch::stable::new_empty(map, sizes));
  dispatch_floating(map.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto fold = AVSKERNELS_ACTIVE(kProductKernels<T>).fold_rows;
    const int64_t all = tokens * shape.channels;
    multiply_images<T, A>(
        shape, map.const_data_ptr<T>(), data_or_null<A>(bias), in.residual,
        [&](int64_t sample, int64_t first, int64_t count, A* rows) {
          fold({weight.const_data_ptr<A>() + first * all, all, count, all},
               {filters.const_data_ptr<A>() + sample * all, shape.channels, tokens, shape.channels},
               rows);
          return rows;
        },
        out.mutable_data_ptr<T>());
  });
  return out;
}

Tensor semantic_recombination_product_cpu(const SemanticRecombinationProduct& in) {
  const Tensor map = dense(in.features);
  const Tensor matrices = dense(in.matrices);
  const ProductShape shape{map.size(0), map.size(1), map.size(2), map.size(3), matrices.size(1)};
  Tensor out = in_huge_pages(
      torch::stable::new_empty(map, {shape.batch, shape.frames, shape.rows, shape.pixels}));
  dispatch_floating(map.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    multiply_images<T, A>(
        shape, map.const_data_ptr<T>(), nullptr, in.residual,
        [&](int64_t sample, int64_t first, int64_t, A*) {
          return matrices.const_data_ptr<A>() + (sample * shape.rows + first) * shape.channels;
        },
        out.mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::SemanticRecombination>(m);
  avskernels::define<avskernels::SemanticRecombinationProduct>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::semantic_recombination_cpu>(m);
  avskernels::implement<&avskernels::semantic_recombination_product_cpu>(m);
}
