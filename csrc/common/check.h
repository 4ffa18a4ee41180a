// SPDX-License-Identifier: Apache-2.0
// Argument checks: one sentence, "<op>: expected <what>, got <value>", the same as the Python
// side's.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

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

// What one dimension is expected to be: a size, or any size under a name; "..." at the end stands
// for one or more dimensions.
struct Dim {
  int64_t size = -1;
  const char* name = nullptr;

  Dim(int64_t size) : size(size) {}      // NOLINT(google-explicit-constructor)
  Dim(const char* name) : name(name) {}  // NOLINT(google-explicit-constructor)
  bool any() const { return name != nullptr; }
  bool open_end() const { return any() && name[0] == '.'; }
};

// One argument against its expected shape and dtypes; the same sentences as avskernels/_check.py.
inline void expect(const char* op, const char* name, const torch::stable::Tensor& tensor,
                   const std::vector<Dim>& dims, std::initializer_list<ScalarType> dtypes) {
  const bool open_end = !dims.empty() && dims.back().open_end();
  const int64_t closed = static_cast<int64_t>(dims.size()) - open_end;
  bool fits = open_end ? tensor.dim() > closed : tensor.dim() == closed;
  for (int64_t i = 0; fits && i < closed; ++i) {
    fits = dims[i].any() || dims[i].size == tensor.size(i);
  }
  if (!fits) {
    std::string wanted;
    for (const Dim& dim : dims) {
      wanted += (wanted.empty() ? "" : ", ") + (dim.any() ? dim.name : std::to_string(dim.size));
    }
    fail(op, ": expected ", name, " [", wanted, "], got ", shape(tensor));
  }
  const ScalarType dtype = tensor.scalar_type();
  if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end()) {
    std::string kinds;
    for (const ScalarType each : dtypes) {
      kinds += (kinds.empty() ? "" : " or ") + dtype_name(each);
    }
    const bool floats =
        std::equal(dtypes.begin(), dtypes.end(), kFloatingPoint.begin(), kFloatingPoint.end());
    fail(op, ": expected ", name, " of ", floats ? "floating point" : kinds, ", got ",
         dtype_name(dtype));
  }
}

}  // namespace avskernels
