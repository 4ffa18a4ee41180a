// SPDX-License-Identifier: Apache-2.0
// Errors: one sentence, "<op>: expected <what>, got <value>". What a specification says is checked
// before a host function runs (common/operator.cpp); this is for the rest.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace avskernels {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Usage: check(x.dim() == 2, "op: expected x [M, D], got ", shape(x)) -- prefer `if (!ok)
// fail(...)` where building the parts costs something.
template <typename... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]] {
    fail(parts...);
  }
}

// The shape as Python prints it: [2, 3].
inline std::string shape(const torch::stable::Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(tensor.size(i));
  }
  return text + "]";
}

// The dtype as Python prints it: torch.float32.
inline std::string dtype_name(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Bool:
      return "torch.bool";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::ComplexFloat:
      return "torch.complex64";
    case ScalarType::ComplexDouble:
      return "torch.complex128";
    default:
      return "another dtype";
  }
}

using torch::headeronly::ScalarType;

inline constexpr std::initializer_list<ScalarType> kFloatingPoint = {
    ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};

}  // namespace avskernels
