// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "vector_quantize/vector_quantize.h"

#define AVSKERNELS_KERNEL "vector_quantize/vector_quantize_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

std::vector<int64_t> row_sizes(const Tensor& x) {
  const auto sizes = x.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end() - 1);
}

}  // namespace

std::tuple<Tensor, Tensor> nearest_codeword_cpu(const Tensor& x, const Tensor& codebook) {
  const QuantizeShape size = check_quantize("nearest_codeword", x, codebook);
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor codewords = torch::stable::contiguous(codebook);
  Tensor indices = torch::stable::new_empty(x, row_sizes(x), ScalarType::Long);
  Tensor squared_distance =
      torch::stable::new_empty(x, row_sizes(x), accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), "nearest_codeword", [&]<typename T>() {
    const auto kernel =
        select_isa(&portable::nearest_codeword_rows<T>, &avx2::nearest_codeword_rows<T>,
                   &avx512::nearest_codeword_rows<T>);
    parallel_for(size.rows * size.groups, 16, [&](int64_t begin, int64_t end) {
      kernel(rows.const_data_ptr<T>(), codewords.const_data_ptr<T>(), size.groups, size.codewords,
             size.dim, begin, end, indices.mutable_data_ptr<int64_t>(),
             squared_distance.mutable_data_ptr<accumulate_t<T>>());
    });
  });
  return {indices, squared_distance};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("nearest_codeword", TORCH_BOX(&avskernels::nearest_codeword_cpu));
}
