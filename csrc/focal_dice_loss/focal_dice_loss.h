// SPDX-License-Identifier: Apache-2.0
// The mask loss (focal or binary cross entropy) and the dice loss of matched predictions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "common/mask_loss.h"

namespace avskernels {

using torch::stable::Tensor;

// sums are those of p t, p and t that the dice loss is made of.
struct FocalDiceLoss {
  static constexpr const char* kSpecification = R"(
    focal_dice_loss(
      Tensor mask_logits: floating [B, N, T, ...space]
      Tensor target_masks: masks [target_images, J, T, ...space]
      Tensor columns: int64 [B, N]
      Tensor? labelled: bool [target_images, T]
      str mask_loss
      float alpha
      float gamma
    ) ->
      Tensor mask_loss: sums(mask_logits) [B, N]
      Tensor dice_loss: sums(mask_logits) [B, N]
      Tensor sums: sums(mask_logits) [B, N, 3]
  )";
  Tensor mask_logits;
  Tensor target_masks;
  Tensor columns;
  std::optional<Tensor> labelled;
  std::string mask_loss;
  double alpha;
  double gamma;

  void require() const {
    check_divides("focal_dice_loss", target_masks.size(0), mask_logits.size(0));
  }
};
std::tuple<Tensor, Tensor, Tensor> focal_dice_loss_cpu(const FocalDiceLoss& in);

struct FocalDiceLossBackward {
  static constexpr const char* kSpecification = R"(
    _focal_dice_loss_backward(
      Tensor grad_mask_loss: sums(mask_logits) [B, N]
      Tensor grad_dice_loss: sums(mask_logits) [B, N]
      Tensor mask_logits: floating [B, N, T, ...space]
      Tensor target_masks: masks [target_images, J, T, ...space]
      Tensor columns: int64 [B, N]
      Tensor? labelled: bool [target_images, T]
      Tensor sums: sums(mask_logits) [B, N, 3]
      str mask_loss
      float alpha
      float gamma
    ) ->
      Tensor grad_mask_logits: as(mask_logits) [B, N, T, ...space]
  )";
  Tensor grad_mask_loss;
  Tensor grad_dice_loss;
  Tensor mask_logits;
  Tensor target_masks;
  Tensor columns;
  std::optional<Tensor> labelled;
  Tensor sums;
  std::string mask_loss;
  double alpha;
  double gamma;

  void require() const {
    check_divides("_focal_dice_loss_backward", target_masks.size(0), mask_logits.size(0));
  }
};
Tensor focal_dice_loss_backward_cpu(const FocalDiceLossBackward& in);

}  // namespace avskernels
