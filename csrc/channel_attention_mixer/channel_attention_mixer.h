// SPDX-License-Identifier: Apache-2.0
// Channels of a map, scaled by what one query per head attends to in it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace avskernels {

using torch::stable::Tensor;

// pooled and normalizer are those of attention_pool; gate_value is the gate after its sigmoid.
struct ChannelAttentionMixer {
  static constexpr const char* kSpecification = R"(
    channel_attention_mixer(
      Tensor features: floating [B, C, H, W]
      Tensor query: sums(features) [B, C]
      Tensor k_weight: sums(features) [C, C]
      Tensor v_weight: sums(features) [C, C]
      Tensor out_weight: sums(features) [C, C]
      Tensor? out_bias: sums(features) [C]
      Tensor? k_bias: sums(features) [C]
      Tensor? v_bias: sums(features) [C]
      Tensor? mask: bool [B, H, W]
      int num_heads
      bool softmax
      str gate
    ) ->
      Tensor mixed: as(features) [B, C, H, W]
      Tensor pooled: sums(features) [B, num_heads, C]
      Tensor normalizer: sums(features) [B, num_heads]
      Tensor gate_value: sums(features) [B, C]
  )";
  Tensor features;
  Tensor query;
  Tensor k_weight;
  Tensor v_weight;
  Tensor out_weight;
  std::optional<Tensor> out_bias;
  std::optional<Tensor> k_bias;
  std::optional<Tensor> v_bias;
  std::optional<Tensor> mask;
  int64_t num_heads;
  bool softmax;
  std::string gate;

  void require() const;
};
std::tuple<Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_cpu(
    const ChannelAttentionMixer& in);

// The part of the backward that reads the map: the gradients of the map, of the folded queries, of
// the logits' offsets, and of the factor that each channel is multiplied by.
struct ChannelAttentionMixerBackward {
  static constexpr const char* kSpecification = R"(
    _channel_attention_mixer_backward(
      Tensor grad_mixed: as(features) [B, C, H, W]
      Tensor features: floating [B, C, H, W]
      Tensor query: sums(features) [B, C]
      Tensor k_weight: sums(features) [C, C]
      Tensor v_weight: sums(features) [C, C]
      Tensor out_weight: sums(features) [C, C]
      Tensor? out_bias: sums(features) [C]
      Tensor? k_bias: sums(features) [C]
      Tensor? v_bias: sums(features) [C]
      Tensor? mask: bool [B, H, W]
      Tensor pooled: sums(features) [B, num_heads, C]
      Tensor normalizer: sums(features) [B, num_heads]
      Tensor gate_value: sums(features) [B, C]
      int num_heads
      bool softmax
      str gate
    ) ->
      Tensor grad_features: as(features) [B, C, H, W]
      Tensor grad_queries: sums(features) [B, num_heads, C]
      Tensor grad_offsets: sums(features) [B, num_heads]
      Tensor grad_factor: sums(features) [B, C]
  )";
  Tensor grad_mixed;
  Tensor features;
  Tensor query;
  Tensor k_weight;
  Tensor v_weight;
  Tensor out_weight;
  std::optional<Tensor> out_bias;
  std::optional<Tensor> k_bias;
  std::optional<Tensor> v_bias;
  std::optional<Tensor> mask;
  Tensor pooled;
  Tensor normalizer;
  Tensor gate_value;
  int64_t num_heads;
  bool softmax;
  std::string gate;

  void require() const;
};
std::tuple<Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_backward_cpu(
    const ChannelAttentionMixerBackward& in);

}  // namespace avskernels
