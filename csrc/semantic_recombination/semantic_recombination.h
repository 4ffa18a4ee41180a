// SPDX-License-Identifier: Apache-2.0
// The product that recombination comes down to: one matrix a sample, applied to every pixel.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace avskernels {

using torch::stable::Tensor;

// matrices . features + bias (+ features).
inline constexpr const char* kSemanticRecombinationProductSchema =
    "_semantic_recombination_product(Tensor matrices, Tensor features, Tensor? bias, "
    "bool residual) -> Tensor";
Tensor semantic_recombination_product_cpu(const Tensor& matrices,  // [B, C_out, C], as sums
                                          const Tensor& features,  // [B, T, C, P]
                                          const std::optional<Tensor>& bias,  // [C_out], as sums
                                          bool residual);

}  // namespace avskernels
