// SPDX-License-Identifier: Apache-2.0
// Attention pooling of a map by a few queries.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace avskernels {

using torch::stable::Tensor;

// queries and pooled are in the precision of sums. normalizer is the logarithm of the sum of
// exponentials with softmax, the sum of the weights without.
inline constexpr const char* kAttentionPoolSchema =
    "attention_pool(Tensor features, Tensor queries, Tensor? mask, float scale, bool softmax) -> "
    "(Tensor pooled, Tensor normalizer)";
std::tuple<Tensor, Tensor> attention_pool_cpu(const Tensor& features,             // [B, C, ...]
                                              const Tensor& queries,              // [B, h, C]
                                              const std::optional<Tensor>& mask,  // [B, ...]
                                              double scale, bool softmax);

inline constexpr const char* kAttentionPoolBackwardSchema =
    "_attention_pool_backward(Tensor grad_pooled, Tensor features, Tensor queries, Tensor? mask, "
    "Tensor pooled, Tensor normalizer, float scale, bool softmax) -> (Tensor grad_features, "
    "Tensor grad_queries)";
std::tuple<Tensor, Tensor> attention_pool_backward_cpu(const Tensor& grad_pooled,  // [B, h, C]
                                                       const Tensor& features,     // [B, C, ...]
                                                       const Tensor& queries,      // [B, h, C]
                                                       const std::optional<Tensor>& mask,
                                                       const Tensor& pooled,      // [B, h, C]
                                                       const Tensor& normalizer,  // [B, h]
                                                       double scale, bool softmax);

}  // namespace avskernels
