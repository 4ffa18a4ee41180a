// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "attention_pool/attention_pool.h"
#include "attention_pool/pooling.h"
#include "common/large_output.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tensors.h"

#define AVSKERNELS_KERNEL "attention_pool/attention_pool.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {

template <typename T>
const PoolKernels<T>& pool_kernels() {
  return AVSKERNELS_ACTIVE(kPoolKernels<T>);
}
template const PoolKernels<float>& pool_kernels<float>();
template const PoolKernels<double>& pool_kernels<double>();
template const PoolKernels<Half>& pool_kernels<Half>();
template const PoolKernels<BFloat16>& pool_kernels<BFloat16>();

namespace {

PoolShape shape_of(const Tensor& features, const Tensor& queries) {
  int64_t pixels = 1;
  for (int64_t i = 2; i < features.dim(); ++i) pixels *= features.size(i);
  return {features.size(0), queries.size(1), features.size(1), pixels};
}

// Contiguous tensors of the arguments, and pointers to them.
struct PoolArguments {
  Tensor features;
  Tensor queries;
  std::optional<Tensor> mask;

  PoolArguments(const Tensor& features_, const Tensor& queries_, const std::optional<Tensor>& mask_)
      : features(dense(features_)), queries(dense(queries_)), mask(dense(mask_)) {}

  template <typename T>
  PoolInputs<T> inputs(const PoolShape& shape, double scale, bool softmax) const {
    using A = accumulate_t<T>;
    return {.shape = shape,
            .softmax = softmax,
            .features = features.const_data_ptr<T>(),
            .queries = queries.const_data_ptr<A>(),
            .scale = static_cast<A>(scale),
            .offsets = nullptr,
            .mask = data_or_null<bool>(mask)};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> attention_pool_cpu(const AttentionPool& in) {
  const PoolShape shape = shape_of(in.features, in.queries);
  const PoolArguments arguments(in.features, in.queries, in.mask);
  Tensor pooled = torch::stable::new_empty(in.queries, {shape.batch, shape.rows, shape.channels});
  Tensor normalizer = torch::stable::new_empty(in.queries, {shape.batch, shape.rows});
  dispatch_floating(in.features.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    Pooling<T> pooling(arguments.inputs<T>(shape, in.scale, in.softmax));
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

std::tuple<Tensor, Tensor> attention_pool_backward_cpu(const AttentionPoolBackward& in) {
  const PoolShape shape = shape_of(in.features, in.queries);
  const PoolArguments arguments(in.features, in.queries, in.mask);
  const Tensor grads = dense(in.grad_pooled);
  const Tensor pooled = dense(in.pooled);
  const Tensor normalizer = dense(in.normalizer);
  Tensor grad_features = in_huge_pages(torch::stable::empty_like(arguments.features));
  const bool stream = past_caches(grad_features, shape.pixels);
  Tensor grad_queries = torch::stable::empty_like(arguments.queries);
  dispatch_floating(in.features.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    PoolingBackward<T> backward(arguments.inputs<T>(shape, in.scale, in.softmax),
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
      for (int64_t i = 0; i < shape.rows_size(); ++i) out[i] *= static_cast<A>(in.scale);
    }
  });
  return {grad_features, grad_queries};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::AttentionPool>(m);
  avskernels::define<avskernels::AttentionPoolBackward>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::attention_pool_cpu>(m);
  avskernels::implement<&avskernels::attention_pool_backward_cpu>(m);
}
