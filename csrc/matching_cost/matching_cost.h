// SPDX-License-Identifier: Apache-2.0
// The cost of matching every prediction with every target of its image.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

namespace avskernels {

using torch::stable::Tensor;

// The cost is float64 where a prediction is, else float32.
struct MatchingCost {
  static constexpr const char* kSpecification = R"(
    matching_cost(
      Tensor? class_logits: floating [B, N, T, K]
      Tensor? boxes: floating [B, N, T, 4]
      Tensor? mask_logits: floating [B, N, T, ...space]
      Tensor? target_labels: int64 [target_images, J]
      Tensor? target_boxes: floating [target_images, J, T, 4]
      Tensor? target_masks: masks [target_images, J, T, ...space]
      Tensor? num_targets: int64 [target_images]
      Tensor? valid: bool [target_images, J, T]
      Tensor? labelled: bool [target_images, T]
      float cls
      float l1
      float giou
      float mask
      float dice
      str class_cost
      str mask_cost
      float alpha
      float gamma
    ) ->
      Tensor cost: floating [B, N, J]
  )";
  std::optional<Tensor> class_logits;
  std::optional<Tensor> boxes;
  std::optional<Tensor> mask_logits;
  std::optional<Tensor> target_labels;
  std::optional<Tensor> target_boxes;
  std::optional<Tensor> target_masks;
  std::optional<Tensor> num_targets;
  std::optional<Tensor> valid;
  std::optional<Tensor> labelled;
  double cls;
  double l1;
  double giou;
  double mask;
  double dice;
  std::string class_cost;
  std::string mask_cost;
  double alpha;
  double gamma;

  // Whichever prediction and target there is.
  const Tensor& prediction() const {
    return class_logits ? *class_logits : boxes ? *boxes : *mask_logits;
  }
  const Tensor& target() const {
    return target_labels ? *target_labels : target_boxes ? *target_boxes : *target_masks;
  }
  // A prediction at least, each with its target, whose batch divides the predictions'.
  void require() const;
};
Tensor matching_cost_cpu(const MatchingCost& in);

}  // namespace avskernels
