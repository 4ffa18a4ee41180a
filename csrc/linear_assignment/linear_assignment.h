// SPDX-License-Identifier: Apache-2.0
// Exact linear assignment for a batch of rectangular problems of their own sizes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace avskernels {

using torch::stable::Tensor;

struct LinearAssignment {
  static constexpr const char* kSpecification = R"(
    linear_assignment(
      Tensor cost: floating [B, N, J]
      Tensor? num_rows: int64 [B]
      Tensor? num_cols: int64 [B]
    ) ->
      Tensor columns: int64 [B, N]
  )";
  Tensor cost;
  std::optional<Tensor> num_rows;
  std::optional<Tensor> num_cols;
};
Tensor linear_assignment_cpu(const LinearAssignment& in);

// Without waiting for the device: sizes beyond N or J are cut to them.
Tensor linear_assignment_cuda(const LinearAssignment& in);

}  // namespace avskernels
