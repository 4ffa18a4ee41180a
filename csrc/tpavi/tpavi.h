// SPDX-License-Identifier: Apache-2.0
// Temporal pixel-wise audio-visual interaction: two passes over the map of a clip. R rows (the
// frames' audio) meet the THW positions of a clip.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "common/check.h"

namespace avskernels {

using torch::stable::Tensor;

// Composed in Python of the passes below; bn_mean and bn_variance are the statistics of BatchNorm,
// mean and rstd those of LayerNorm.
struct Tpavi {
  static constexpr const char* kSpecification = R"(
    tpavi(
      Tensor visual: floating [B, C, T, H, W]
      Tensor? audio: sums(visual) [B, T, C]
      Tensor? theta_weight: sums(visual) [C', C]
      Tensor? theta_bias: sums(visual) [C']
      Tensor? phi_weight: sums(visual) [C', C]
      Tensor? phi_bias: sums(visual) [C']
      Tensor g_weight: sums(visual) [C', C]
      Tensor g_bias: sums(visual) [C']
      Tensor out_weight: sums(visual) [C, C']
      Tensor out_bias: sums(visual) [C]
      Tensor? concat_weight: sums(visual) [1, 2*C']
      Tensor? concat_bias: sums(visual) [1]
      Tensor? bn_weight: sums(visual) [C]
      Tensor? bn_bias: sums(visual) [C]
      Tensor? running_mean: sums(visual) [C]
      Tensor? running_var: sums(visual) [C]
      Tensor? norm_weight: sums(visual) [C]
      Tensor? norm_bias: sums(visual) [C]
      bool batch_statistics
      float bn_eps
      float norm_eps
      str mode
    ) ->
      Tensor fused: as(visual) [B, C, T, H, W]
      Tensor bn_mean: sums(visual) [C] if bn_weight
      Tensor bn_variance: sums(visual) [C] if bn_weight
      Tensor mean: sums(visual) [B, T*H*W] if norm_weight
      Tensor rstd: sums(visual) [B, T*H*W] if norm_weight
      Tensor scores: sums(visual) [B, T, T*H*W]
      Tensor sums: sums(visual) [B, T, C]
  )";
};

// The scores key . x + offset of every position, and the sums of each frame's pixels.
struct TpaviScores {
  static constexpr const char* kSpecification = R"(
    _tpavi_scores(
      Tensor visual: floating [B, C, T, H, W]
      Tensor keys: sums(visual) [B, R, C]
      Tensor? offsets: sums(visual) [B, R]
    ) ->
      Tensor scores: sums(visual) [B, R, T*H*W]
      Tensor sums: sums(visual) [B, T, C]
  )";
  Tensor visual;
  Tensor keys;
  std::optional<Tensor> offsets;
};
std::tuple<Tensor, Tensor> tpavi_scores_cpu(const TpaviScores& in);

// Adds to the map's gradient what goes through scores and sums; returns that of the keys.
struct TpaviScoresBackward {
  static constexpr const char* kSpecification = R"(
    _tpavi_scores_backward(
      Tensor(a!) grad_visual: as(visual) [B, C, T, H, W]
      Tensor visual: floating [B, C, T, H, W]
      Tensor keys: sums(visual) [B, R, C]
      Tensor grad_scores: sums(visual) [B, R, T*H*W]
      Tensor grad_sums: sums(visual) [B, T, C]
    ) ->
      Tensor grad_keys: sums(visual) [B, R, C]
  )";
  Tensor grad_visual;
  Tensor visual;
  Tensor keys;
  Tensor grad_scores;
  Tensor grad_sums;

  void require() const {
    if (!grad_visual.is_contiguous()) {
      fail("_tpavi_scores_backward: expected grad_visual to be contiguous, got strides");
    }
  }
};
Tensor tpavi_scores_backward_cpu(const TpaviScoresBackward& in);

// x + values^T weights + shift, normalised over the channels of each position where there is a
// norm_weight; with the mean and 1 / deviation of every position.
struct TpaviFuse {
  static constexpr const char* kSpecification = R"(
    _tpavi_fuse(
      Tensor visual: floating [B, C, T, H, W]
      Tensor weights: sums(visual) [B, R, T*H*W]
      Tensor values: sums(visual) [B, R, C]
      Tensor shift: sums(visual) [C]
      Tensor? norm_weight: sums(visual) [C]
      Tensor? norm_bias: sums(visual) [C]
      float norm_eps
    ) ->
      Tensor fused: as(visual) [B, C, T, H, W]
      Tensor mean: sums(visual) [B, T*H*W] if norm_weight
      Tensor rstd: sums(visual) [B, T*H*W] if norm_weight
  )";
  Tensor visual;
  Tensor weights;
  Tensor values;
  Tensor shift;
  std::optional<Tensor> norm_weight;
  std::optional<Tensor> norm_bias;
  double norm_eps;

  void require() const {
    if (norm_weight && !norm_bias) fail("_tpavi_fuse: expected norm_bias, got None");
  }
};
std::tuple<Tensor, Tensor, Tensor> tpavi_fuse_cpu(const TpaviFuse& in);

// grad_visual is only what passes the addition.
struct TpaviFuseBackward {
  static constexpr const char* kSpecification = R"(
    _tpavi_fuse_backward(
      Tensor grad_fused: as(visual) [B, C, T, H, W]
      Tensor visual: floating [B, C, T, H, W]
      Tensor weights: sums(visual) [B, R, T*H*W]
      Tensor values: sums(visual) [B, R, C]
      Tensor shift: sums(visual) [C]
      Tensor? norm_weight: sums(visual) [C]
      Tensor? mean: sums(visual) [B, T*H*W]
      Tensor? rstd: sums(visual) [B, T*H*W]
    ) ->
      Tensor grad_visual: as(visual) [B, C, T, H, W]
      Tensor grad_weights: sums(visual) [B, R, T*H*W]
      Tensor grad_values: sums(visual) [B, R, C]
      Tensor grad_shift: sums(visual) [C]
      Tensor grad_norm_weight: sums(visual) [C]
      Tensor grad_norm_bias: sums(visual) [C]
  )";
  Tensor grad_fused;
  Tensor visual;
  Tensor weights;
  Tensor values;
  Tensor shift;
  std::optional<Tensor> norm_weight;
  std::optional<Tensor> mean;
  std::optional<Tensor> rstd;

  void require() const {
    if (norm_weight && !(mean && rstd)) {
      fail("_tpavi_fuse_backward: expected mean and rstd, got None");
    }
  }
};
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> tpavi_fuse_backward_cpu(
    const TpaviFuseBackward& in);

}  // namespace avskernels
