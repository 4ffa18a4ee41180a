// SPDX-License-Identifier: Apache-2.0
// Recombination of a map by tokens: a small matrix per sample, and its product with every pixel.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace avskernels {

using torch::stable::Tensor;

// In C++ a 1 x 1 projection; avskernels.semantic_recombination convolves in plain torch.
struct SemanticRecombination {
  static constexpr const char* kSpecification = R"(
    semantic_recombination(
      Tensor features: floating [B, (T), C, H, W]
      Tensor filters: sums(features) [B, N, C]
      Tensor weight: sums(features) [C_out, N*C, k, k]
      Tensor? bias: sums(features) [C_out]
      bool residual
    ) ->
      Tensor mixed: as(features) [B, (T), C_out, H, W]
  )";
  Tensor features;
  Tensor filters;
  Tensor weight;
  std::optional<Tensor> bias;
  bool residual;

  void require() const;
};
Tensor semantic_recombination_cpu(const SemanticRecombination& in);

// matrices . features (+ features): one matrix per sample, applied to every pixel. The gradient of
// the map, for transposed matrices.
struct SemanticRecombinationProduct {
  static constexpr const char* kSpecification = R"(
    _semantic_recombination_product(
      Tensor matrices: sums(features) [B, C_out, C]
      Tensor features: floating [B, T, C, P]
      bool residual
    ) ->
      Tensor product: as(features) [B, T, C_out, P]
  )";
  Tensor matrices;
  Tensor features;
  bool residual;

  void require() const;
};
Tensor semantic_recombination_product_cpu(const SemanticRecombinationProduct& in);

}  // namespace avskernels
