// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "attention_pool/attention_pool.h"
#include "attention_pool/pooling.h"
#include "common/check.h"
#include "common/large_output.h"
#include "common/parallel.h"
#include "common/scratch.h"

#define AVSKERNELS_KERNEL "attention_pool/attention_pool_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {

template <typename T>
PoolKernels<T> pool_kernels() {
  using A = accumulate_t<T>;
  return {select_isa(&portable::pack_rows<A>, &avx2::pack_rows<A>, &avx512::pack_rows<A>),
          select_isa(&portable::pool_block<T>, &avx2::pool_block<T>, &avx512::pool_block<T>),
          select_isa(&portable::merge_blocks<A>, &avx2::merge_blocks<A>, &avx512::merge_blocks<A>),
          select_isa(&portable::pool_block_backward<T>, &avx2::pool_block_backward<T>,
                     &avx512::pool_block_backward<T>)};
}
template PoolKernels<float> pool_kernels<float>();
template PoolKernels<double> pool_kernels<double>();
template PoolKernels<Half> pool_kernels<Half>();
template PoolKernels<BFloat16> pool_kernels<BFloat16>();

namespace {

PoolShape check_attention_pool(const Tensor& features, const Tensor& queries,
                               const std::optional<Tensor>& mask) {
  const char* op = "attention_pool";
  expect(op, "features", features, {"B", "C", "..."}, kFloatingPoint);
  const int64_t batch = features.size(0), channels = features.size(1);
  expect(op, "queries", queries, {batch, "h", channels}, {accumulate_type(features.scalar_type())});
  std::vector<Dim> mask_dims = {batch};
  int64_t pixels = 1;
  for (int64_t i = 2; i < features.dim(); ++i) {
    mask_dims.emplace_back(features.size(i));
    pixels *= features.size(i);
  }
  if (mask) expect(op, "mask", *mask, mask_dims, {ScalarType::Bool});
  return {batch, queries.size(1), channels, pixels};
}

// Contiguous tensors of the arguments, and pointers to them.
struct PoolArguments {
  Tensor map;
  Tensor queries;
  std::optional<Tensor> mask;

  PoolArguments(const Tensor& features, const Tensor& rows, const std::optional<Tensor>& allowed)
      : map(torch::stable::contiguous(features)), queries(torch::stable::contiguous(rows)) {
    if (allowed) mask = torch::stable::contiguous(*allowed);
  }

  template <typename T>
  PoolInputs<T> inputs(const PoolShape& shape, double scale, bool softmax) const {
    using A = accumulate_t<T>;
    return {shape,
            softmax,
            map.const_data_ptr<T>(),
            queries.const_data_ptr<A>(),
            static_cast<A>(scale),
            nullptr,
            mask ? mask->const_data_ptr<bool>() : nullptr};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> attention_pool_cpu(const Tensor& features, const Tensor& queries,
                                              const std::optional<Tensor>& mask, double scale,
                                              bool softmax) {
  const PoolShape shape = check_attention_pool(features, queries, mask);
  const PoolArguments arguments(features, queries, mask);
  Tensor pooled = torch::stable::new_empty(queries, {shape.batch, shape.rows, shape.channels});
  Tensor normalizer = torch::stable::new_empty(queries, {shape.batch, shape.rows});
  dispatch_floating(features.scalar_type(), "attention_pool", [&]<typename T>() {
    using A = accumulate_t<T>;
    Pooling<T> pooling(arguments.inputs<T>(shape, scale, softmax));
    parallel_for(shape.batch * pooling.blocks.count, 1, [&](int64_t begin, int64_t end) {
      const Scratch<A> scratch(pooling.scratch_size());
      for (int64_t i = begin; i < end; ++i) {
        pooling.run_block(i / pooling.blocks.count, i % pooling.blocks.count, scratch.data());
      }
    });
    for (int64_t b = 0; b < shape.batch; ++b) {
      pooling.merge(b, pooled.mutable_data_ptr<A>() + b * shape.rows_size(),
                    normalizer.mutable_data_ptr<A>() + b * shape.rows);
    }
  });
  return {pooled, normalizer};
}

std::tuple<Tensor, Tensor> attention_pool_backward_cpu(
    const Tensor& grad_pooled, const Tensor& features, const Tensor& queries,
    const std::optional<Tensor>& mask, const Tensor& pooled, const Tensor& normalizer, double scale,
    bool softmax) {
  const PoolShape shape = check_attention_pool(features, queries, mask);
  const PoolArguments arguments(features, queries, mask);
  const Tensor grads = torch::stable::contiguous(grad_pooled);
  Tensor grad_features = in_huge_pages(torch::stable::empty_like(arguments.map));
  const bool stream = past_caches(grad_features, shape.pixels);
  Tensor grad_queries = torch::stable::empty_like(arguments.queries);
  dispatch_floating(features.scalar_type(), "attention_pool", [&]<typename T>() {
    using A = accumulate_t<T>;
    PoolingBackward<T> backward(arguments.inputs<T>(shape, scale, softmax),
                                normalizer.const_data_ptr<A>());
    using Image = typename PoolingBackward<T>::Image;
    std::vector<Image> images;
    for (int64_t b = 0; b < shape.batch; ++b) {
      images.push_back(backward.image(b, grads.const_data_ptr<A>() + b * shape.rows_size(),
                                      pooled.const_data_ptr<A>() + b * shape.rows_size(), nullptr));
    }
    parallel_for(shape.batch * backward.blocks.count, 1, [&](int64_t begin, int64_t end) {
      const Scratch<A> scratch(backward.scratch_size());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / backward.blocks.count;
        backward.run_block(b, i % backward.blocks.count, images[b], nullptr, nullptr,
                           scratch.data(), stream,
                           grad_features.mutable_data_ptr<T>() + b * shape.map_size());
      }
    });
    std::vector<A> grad_offsets(shape.rows);
    for (int64_t b = 0; b < shape.batch; ++b) {
      A* out = grad_queries.mutable_data_ptr<A>() + b * shape.rows_size();
      backward.merge(b, out, grad_offsets.data());
      for (int64_t i = 0; i < shape.rows_size(); ++i) out[i] *= static_cast<A>(scale);
    }
  });
  return {grad_features, grad_queries};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("attention_pool", TORCH_BOX(&avskernels::attention_pool_cpu));
  m.impl("_attention_pool_backward", TORCH_BOX(&avskernels::attention_pool_backward_cpu));
}
