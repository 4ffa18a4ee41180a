// SPDX-License-Identifier: Apache-2.0
// Channels of a map, scaled by what a query a head attends to in it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace avskernels {

using torch::stable::Tensor;

// All tensors but the map are in the precision of sums. pooled and normalizer are those of
// attention_pool; gate is what the channels are scaled by.
inline constexpr const char* kChannelAttentionMixerSchema =
    "channel_attention_mixer(Tensor features, Tensor query, Tensor k_weight, Tensor v_weight, "
    "Tensor out_weight, Tensor? out_bias, Tensor? k_bias, Tensor? v_bias, Tensor? mask, "
    "int num_heads, bool softmax, str gate) -> (Tensor mixed, Tensor pooled, Tensor normalizer, "
    "Tensor gate)";
std::tuple<Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_cpu(
    const Tensor& features,                 // [B, C, H, W]
    const Tensor& query,                    // [B, C]
    const Tensor& k_weight,                 // [C, C]
    const Tensor& v_weight,                 // [C, C]
    const Tensor& out_weight,               // [C, C]
    const std::optional<Tensor>& out_bias,  // [C]
    const std::optional<Tensor>& k_bias,    // [C]
    const std::optional<Tensor>& v_bias,    // [C]
    const std::optional<Tensor>& mask,      // [B, H, W]
    int64_t num_heads, bool softmax, const std::string& gate);

// The part of the backward that reads the map: gradients of the map, of the folded queries, of the
// logits' offsets, of the gate before the sigmoid, and of the values.
inline constexpr const char* kChannelAttentionMixerBackwardSchema =
    "_channel_attention_mixer_backward(Tensor grad, Tensor features, Tensor query, "
    "Tensor k_weight, Tensor v_weight, Tensor out_weight, Tensor? k_bias, Tensor? v_bias, "
    "Tensor? mask, Tensor pooled, Tensor normalizer, Tensor gate_value, int num_heads, "
    "bool softmax, str gate) -> (Tensor grad_features, Tensor grad_queries, Tensor grad_offsets, "
    "Tensor grad_gate, Tensor grad_values)";
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_backward_cpu(
    const Tensor& grad,                   // [B, C, H, W]
    const Tensor& features,               // [B, C, H, W]
    const Tensor& query,                  // [B, C]
    const Tensor& k_weight,               // [C, C]
    const Tensor& v_weight,               // [C, C]
    const Tensor& out_weight,             // [C, C]
    const std::optional<Tensor>& k_bias,  // [C]
    const std::optional<Tensor>& v_bias,  // [C]
    const std::optional<Tensor>& mask,    // [B, H, W]
    const Tensor& pooled,                 // [B, heads, C]
    const Tensor& normalizer,             // [B, heads]
    const Tensor& gate_value,             // [B, C]
    int64_t num_heads, bool softmax, const std::string& gate);

}  // namespace avskernels
