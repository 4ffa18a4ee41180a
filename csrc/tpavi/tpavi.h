// SPDX-License-Identifier: Apache-2.0
// The passes over the map of temporal pixel-wise audio-visual interaction. All tensors but the maps
// are in the precision of sums. R rows (the frames' audio) meet the THW positions of a clip.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace avskernels {

using torch::stable::Tensor;

// The scores key . x + offset of every position, and the sums of each frame's pixels.
inline constexpr const char* kTpaviScoresSchema =
    "_tpavi_scores(Tensor visual, Tensor keys, Tensor? offsets) -> (Tensor scores, Tensor sums)";
std::tuple<Tensor, Tensor> tpavi_scores_cpu(const Tensor& visual,  // [B, C, T, H, W]
                                            const Tensor& keys,    // [B, R, C]
                                            const std::optional<Tensor>& offsets);  // [B, R]

// Adds to the map's gradient what goes through scores and sums; returns that of the keys.
inline constexpr const char* kTpaviScoresBackwardSchema =
    "_tpavi_scores_backward(Tensor(a!) grad_visual, Tensor visual, Tensor keys, "
    "Tensor grad_scores, Tensor grad_sums) -> Tensor grad_keys";
Tensor tpavi_scores_backward_cpu(const Tensor& grad_visual,  // [B, C, T, H, W], contiguous
                                 const Tensor& visual,       // [B, C, T, H, W]
                                 const Tensor& keys,         // [B, R, C]
                                 const Tensor& grad_scores,  // [B, R, THW]
                                 const Tensor& grad_sums);   // [B, T, C]

// x + values^T weights + shift, normalised over the channels of each position where there is a
// norm_weight; with the mean and 1 / deviation of every position, else empty.
inline constexpr const char* kTpaviFuseSchema =
    "_tpavi_fuse(Tensor visual, Tensor weights, Tensor values, Tensor shift, "
    "Tensor? norm_weight, Tensor? norm_bias, float norm_eps) -> (Tensor fused, Tensor mean, "
    "Tensor rstd)";
std::tuple<Tensor, Tensor, Tensor> tpavi_fuse_cpu(const Tensor& visual,   // [B, C, T, H, W]
                                                  const Tensor& weights,  // [B, R, THW]
                                                  const Tensor& values,   // [B, R, C]
                                                  const Tensor& shift,    // [C]
                                                  const std::optional<Tensor>& norm_weight,  // [C]
                                                  const std::optional<Tensor>& norm_bias,    // [C]
                                                  double norm_eps);

inline constexpr const char* kTpaviFuseBackwardSchema =
    "_tpavi_fuse_backward(Tensor grad, Tensor visual, Tensor weights, Tensor values, "
    "Tensor shift, Tensor? norm_weight, Tensor mean, Tensor rstd) -> (Tensor grad_visual, "
    "Tensor grad_weights, Tensor grad_values, Tensor grad_shift, Tensor grad_norm_weight, "
    "Tensor grad_norm_bias)";
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> tpavi_fuse_backward_cpu(
    const Tensor& grad,                        // [B, C, T, H, W]
    const Tensor& visual,                      // [B, C, T, H, W]
    const Tensor& weights,                     // [B, R, THW]
    const Tensor& values,                      // [B, R, C]
    const Tensor& shift,                       // [C]
    const std::optional<Tensor>& norm_weight,  // [C]
    const Tensor& mean,                        // [B, THW]
    const Tensor& rstd);                       // [B, THW]

}  // namespace avskernels
