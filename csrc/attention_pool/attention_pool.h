// SPDX-License-Identifier: Apache-2.0
// Attention pooling of a map by a few queries.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace avskernels {

using torch::stable::Tensor;

// normalizer is the logarithm of the sum of exponentials with softmax, the sum of the weights
// without.
struct AttentionPool {
  static constexpr const char* kSpecification = R"(
    attention_pool(
      Tensor features: floating [B, C, ...space]
      Tensor queries: sums(features) [B, h, C]
      Tensor? mask: bool [B, ...space]
      float scale
      bool softmax
    ) ->
      Tensor pooled: sums(features) [B, h, C]
      Tensor normalizer: sums(features) [B, h]
  )";
  Tensor features;
  Tensor queries;
  std::optional<Tensor> mask;
  double scale;
  bool softmax;
};
std::tuple<Tensor, Tensor> attention_pool_cpu(const AttentionPool& in);

struct AttentionPoolBackward {
  static constexpr const char* kSpecification = R"(
    _attention_pool_backward(
      Tensor grad_pooled: sums(features) [B, h, C]
      Tensor features: floating [B, C, ...space]
      Tensor queries: sums(features) [B, h, C]
      Tensor? mask: bool [B, ...space]
      Tensor pooled: sums(features) [B, h, C]
      Tensor normalizer: sums(features) [B, h]
      float scale
      bool softmax
    ) ->
      Tensor grad_features: as(features) [B, C, ...space]
      Tensor grad_queries: as(queries) [B, h, C]
  )";
  Tensor grad_pooled;
  Tensor features;
  Tensor queries;
  std::optional<Tensor> mask;
  Tensor pooled;
  Tensor normalizer;
  double scale;
  bool softmax;
};
std::tuple<Tensor, Tensor> attention_pool_backward_cpu(const AttentionPoolBackward& in);

}  // namespace avskernels
