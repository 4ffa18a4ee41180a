// SPDX-License-Identifier: Apache-2.0
// Semantic inference: the class of the highest sum of class and mask probabilities at every pixel.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/check.h"
#include "common/dispatch.h"

namespace avskernels {

using torch::stable::Tensor;

inline constexpr const char* kSemanticArgmaxSchema =
    "semantic_argmax(Tensor class_probs, Tensor mask_logits, SymInt height, SymInt width, "
    "float class_threshold, float mask_threshold, bool sigmoid, bool return_scores) "
    "-> (Tensor labels, Tensor scores)";
std::tuple<Tensor, Tensor> semantic_argmax_cpu(const Tensor& class_probs,  // [B, N, K]
                                               const Tensor& mask_logits,  // [B, N, H, W]
                                               int64_t height, int64_t width,
                                               double class_threshold, double mask_threshold,
                                               bool sigmoid, bool return_scores);

inline void check_semantic_argmax(const Tensor& class_probs, const Tensor& mask_logits,
                                  int64_t height, int64_t width) {
  constexpr const char* op = "semantic_argmax";
  expect(op, "mask_logits", mask_logits, {"B", "N", "H", "W"}, kFloatingPoint);
  expect(op, "class_probs", class_probs, {mask_logits.size(0), mask_logits.size(1), "K"},
         {mask_logits.scalar_type()});
  check(class_probs.size(2) > 0, op, ": expected at least one class, got ", shape(class_probs));
  check(height >= 0 && width >= 0, op, ": expected a size of at least 0, got [", height, ", ",
        width, "]");
  check(height * width == 0 || mask_logits.size(2) * mask_logits.size(3) > 0, op,
        ": expected masks that are not empty, got ", shape(mask_logits));
}

}  // namespace avskernels
