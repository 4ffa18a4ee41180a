// SPDX-License-Identifier: Apache-2.0
// Exact linear assignment for a batch of rectangular problems of their own sizes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace avskernels {

using torch::stable::Tensor;

inline constexpr const char* kLinearAssignmentSchema =
    "linear_assignment(Tensor cost, Tensor? num_rows, Tensor? num_cols) -> Tensor columns";
Tensor linear_assignment_cpu(const Tensor& cost,                      // [B, N, J]
                             const std::optional<Tensor>& num_rows,   // [B] int64
                             const std::optional<Tensor>& num_cols);  // [B] int64

// The same on a CUDA device, without waiting for it: sizes beyond N or J are cut to them.
inline constexpr const char* kLinearAssignmentCudaSchema =
    "_linear_assignment_cuda(Tensor cost, Tensor? num_rows, Tensor? num_cols) -> Tensor columns";
Tensor linear_assignment_cuda(const Tensor& cost, const std::optional<Tensor>& num_rows,
                              const std::optional<Tensor>& num_cols);

}  // namespace avskernels
