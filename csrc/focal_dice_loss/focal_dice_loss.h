// SPDX-License-Identifier: Apache-2.0
// The mask loss (focal or binary cross entropy) and the dice loss of matched predictions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "common/check.h"
#include "common/mask_loss.h"

namespace avskernels {

using torch::stable::Tensor;

inline constexpr const char* kFocalDiceLossSchema =
    "focal_dice_loss(Tensor mask_logits, Tensor target_masks, Tensor columns, Tensor? labelled, "
    "str mask_loss, float alpha, float gamma) -> (Tensor mask_loss, Tensor dice_loss, Tensor sums)";
std::tuple<Tensor, Tensor, Tensor> focal_dice_loss_cpu(
    const Tensor& mask_logits,              // [B, N, T, ...]
    const Tensor& target_masks,             // [B', J, T, ...]
    const Tensor& columns,                  // [B, N] int64
    const std::optional<Tensor>& labelled,  // [B', T] bool
    const std::string& mask_loss, double alpha, double gamma);

inline constexpr const char* kFocalDiceLossBackwardSchema =
    "_focal_dice_loss_backward(Tensor grad_mask_loss, Tensor grad_dice_loss, Tensor mask_logits, "
    "Tensor target_masks, Tensor columns, Tensor? labelled, Tensor sums, str mask_loss, "
    "float alpha, float gamma) -> Tensor grad_mask_logits";
Tensor focal_dice_loss_backward_cpu(const Tensor& grad_mask_loss,           // [B, N]
                                    const Tensor& grad_dice_loss,           // [B, N]
                                    const Tensor& mask_logits,              // [B, N, T, ...]
                                    const Tensor& target_masks,             // [B', J, T, ...]
                                    const Tensor& columns,                  // [B, N] int64
                                    const std::optional<Tensor>& labelled,  // [B', T] bool
                                    const Tensor& sums,                     // [B, N, 3]
                                    const std::string& mask_loss, double alpha, double gamma);

inline void check_pairs(const Tensor& mask_logits, const Tensor& target_masks,
                        const Tensor& columns, const std::optional<Tensor>& labelled) {
  constexpr const char* op = "focal_dice_loss";
  expect(op, "mask_logits", mask_logits, {"B", "N", "T", "..."}, kFloatingPoint);
  std::vector<Dim> target_dims = {"B", "J"};
  for (int64_t i = 2; i < mask_logits.dim(); ++i) {
    target_dims.emplace_back(mask_logits.size(i));
  }
  expect(op, "target_masks", target_masks, target_dims, kMaskTypes);
  expect(op, "columns", columns, {mask_logits.size(0), mask_logits.size(1)}, {ScalarType::Long});
  check_divides(op, target_masks.size(0), mask_logits.size(0));
  if (labelled) {
    expect(op, "labelled", *labelled, {target_masks.size(0), mask_logits.size(2)},
           {ScalarType::Bool});
  }
}

}  // namespace avskernels
