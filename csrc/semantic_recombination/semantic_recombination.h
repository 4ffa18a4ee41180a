// SPDX-License-Identifier: Apache-2.0
// Recombination of a map by tokens: a small matrix per sample, and its product with every pixel.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace avskernels {

using torch::stable::Tensor;

// Composed in Python of the small matrices and the pass over the map.
struct SemanticRecombination {
  static constexpr const char* kSpecification = R"(
    semantic_recombination(
      Tensor features: floating [B, (T), C, H, W]
      Tensor filters: floating [B, N, C]
      Tensor weight: floating [C_out, N*C, k, k]
      Tensor? bias: floating [C_out]
      bool residual
    ) ->
      Tensor mixed: as(features) [B, (T), C_out, H, W]
  )";
};

// The gradients of the pass over the map; matrices are those that the tokens fold into.
struct SemanticRecombinationBackward {
  static constexpr const char* kSpecification = R"(
    _semantic_recombination_backward(
      Tensor grad_mixed: as(features) [B, (T), C_out, H, W]
      Tensor features: floating [B, (T), C, H, W]
      Tensor matrices: sums(features) [B, C_out, C, k, k]
      bool residual
    ) ->
      Tensor grad_features: as(features) [B, (T), C, H, W]
      Tensor grad_matrices: sums(features) [B, C_out, C, k, k]
      Tensor grad_shift: sums(features) [C_out]
  )";
};

// matrices . features + bias (+ features): one matrix per sample, applied to every pixel.
struct SemanticRecombinationProduct {
  static constexpr const char* kSpecification = R"(
    _semantic_recombination_product(
      Tensor matrices: sums(features) [B, C_out, C]
      Tensor features: floating [B, T, C, P]
      Tensor? bias: sums(features) [C_out]
      bool residual
    ) ->
      Tensor product: as(features) [B, T, C_out, P]
  )";
  Tensor matrices;
  Tensor features;
  std::optional<Tensor> bias;
  bool residual;

  void require() const;
};
Tensor semantic_recombination_product_cpu(const SemanticRecombinationProduct& in);

}  // namespace avskernels
