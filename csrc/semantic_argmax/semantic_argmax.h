// SPDX-License-Identifier: Apache-2.0
// Semantic inference: the class of the highest sum of class and mask probabilities at every pixel.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

namespace avskernels {

using torch::stable::Tensor;

// The masks are resized to height x width. What is not above its threshold counts as 0; that of the
// masks is compared after the sigmoid, where there is one.
struct SemanticArgmax {
  static constexpr const char* kSpecification = R"(
    semantic_argmax(
      Tensor class_probs: as(mask_logits) [B, N, K]
      Tensor mask_logits: floating [B, N, H, W]
      SymInt height
      SymInt width
      float class_threshold
      float mask_threshold
      bool sigmoid
      bool return_scores
    ) ->
      Tensor labels: int64 [B, height, width]
      Tensor scores: sums(mask_logits) [B, height, width] if return_scores
  )";
  Tensor class_probs;
  Tensor mask_logits;
  int64_t height;
  int64_t width;
  double class_threshold;
  double mask_threshold;
  bool sigmoid;
  bool return_scores;

  void require() const;
};
std::tuple<Tensor, Tensor> semantic_argmax_cpu(const SemanticArgmax& in);

}  // namespace avskernels
