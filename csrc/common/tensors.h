// SPDX-License-Identifier: Apache-2.0
// What host functions do with tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/large_output.h"

namespace avskernels {

// The tensor itself or a contiguous copy. Asking first is much cheaper than torch's own call. A
// large copy lies in huge pages: its page faults took as long as the backward pass that it was made
// for.
inline torch::stable::Tensor dense(const torch::stable::Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  constexpr int64_t kLarge = 4 << 20;
  if (!tensor.is_cpu() || tensor.numel() * tensor.element_size() < kLarge) {
    return torch::stable::contiguous(tensor);
  }
  torch::stable::Tensor copy = in_huge_pages(torch::stable::new_empty(tensor, tensor.sizes()));
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline std::optional<torch::stable::Tensor> dense(
    const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? std::optional(dense(*tensor)) : std::nullopt;
}

template <typename T>
const T* data_or_null(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

}  // namespace avskernels
