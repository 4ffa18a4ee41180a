// SPDX-License-Identifier: Apache-2.0
// From a run-time dtype to a template parameter.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "common/check.h"

namespace avskernels {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// The type that sums are kept in: double for double, float for everything else.
template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body.operator()<T>() with the C++ type of a floating-point dtype.
template <typename Body>
auto dispatch_floating(ScalarType type, Body&& body) {
  switch (type) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::Half:
      return body.template operator()<Half>();
    case ScalarType::BFloat16:
      return body.template operator()<BFloat16>();
    default:
      fail("dispatch_floating: expected a floating-point dtype, got ", dtype_name(type));
  }
}

}  // namespace avskernels
