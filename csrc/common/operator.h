// SPDX-License-Identifier: Apache-2.0
// From a specification to a registered operator. A folder's header declares, once per operator,
//
//   struct MatMul {
//     static constexpr const char* kSpecification = R"(matmul(...) -> ...)";
//     Tensor x;                    // [...rows, C]
//     Tensor weight;               // [D, C]
//     std::optional<Tensor> bias;  // [D]
//     double scale;
//     void require() const;        // where there are conditions that are no shapes
//   };
//   Tensor matmul_cpu(const MatMul& in);
//
// and its .cpp defines and implements it:
//
//   STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) { define<MatMul>(m); }
//   STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) { implement<&matmul_cpu>(m); }
//
// The host function receives its arguments checked. Members stand in the order of the arguments; a
// member of another type than its argument fails when the library is loaded.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "common/specification.h"

namespace avskernels {

using torch::stable::Tensor;

// One argument of a call, of whatever type.
class Value {
 public:
  using Held = std::variant<std::monostate, Tensor, double, int64_t, bool, std::string,
                            std::vector<int64_t>>;

  // Takes an argument off torch's stack.
  Value(const std::string& type, StableIValue boxed);
  // A default one, to compare an argument's type with a member's.
  explicit Value(const std::string& type);

  const Tensor* tensor() const { return std::get_if<Tensor>(&held_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&held_); }

  // Not templates, so that they win over the converting constructors of the members.
  operator Tensor() && { return std::get<Tensor>(std::move(held_)); }
  operator std::optional<Tensor>() && {
    if (held_.index() == 0) return std::nullopt;
    return std::get<Tensor>(std::move(held_));
  }
  operator double() && { return std::get<double>(held_); }
  operator int64_t() && { return std::get<int64_t>(held_); }
  operator bool() && { return std::get<bool>(held_); }
  operator std::string() && { return std::get<std::string>(std::move(held_)); }
  operator std::vector<int64_t>() && { return std::get<std::vector<int64_t>>(std::move(held_)); }

 private:
  Held held_;
};

// Fails with one sentence unless the arguments have the dtypes, shapes and devices declared.
void check_arguments(const Specification& specification, const std::vector<Value>& values);

namespace detail {

template <typename Arguments, size_t... I>
constexpr bool takes(std::index_sequence<I...>) {
  return requires { Arguments{(static_cast<void>(I), std::declval<Value>())...}; };
}

// The number of members of an aggregate of `Value`s' types.
template <typename Arguments, size_t kCount = 32>
constexpr size_t member_count() {
  if constexpr (takes<Arguments>(std::make_index_sequence<kCount>())) {
    return kCount;
  } else {
    static_assert(kCount > 0);
    return member_count<Arguments, kCount - 1>();
  }
}

template <typename Arguments>
Arguments from_values(std::vector<Value>&& values) {
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return Arguments{std::move(values[I])...};
  }(std::make_index_sequence<member_count<Arguments>()>());
}

template <typename Function>
struct Traits;
template <typename R, typename A>
struct Traits<R (*)(const A&)> {
  using Result = R;
  using Arguments = A;
};

template <typename... Results>
void return_results(StableIValue* stack, const std::tuple<Results...>& results) {
  size_t i = 0;
  std::apply([&](const auto&... each) { ((stack[i++] = torch::stable::detail::from(each)), ...); },
             results);
}
inline void return_results(StableIValue* stack, const Tensor& result) {
  stack[0] = torch::stable::detail::from(result);
}

}  // namespace detail

template <typename Arguments>
const Specification& specification_of() {
  static const Specification specification = parse_specification(Arguments::kSpecification);
  return specification;
}

// What torch calls: checks the arguments and hands them to the function by name.
template <auto kFunction>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  using Arguments = typename detail::Traits<decltype(kFunction)>::Arguments;
  const Specification& specification = specification_of<Arguments>();
  std::vector<Value> values;
  values.reserve(specification.arguments.size());
  for (size_t i = 0; i < specification.arguments.size(); ++i) {
    values.emplace_back(specification.arguments[i].type, stack[i]);
  }
  check_arguments(specification, values);
  const Arguments arguments = detail::from_values<Arguments>(std::move(values));
  if constexpr (requires { arguments.require(); }) arguments.require();
  detail::return_results(stack, kFunction(arguments));
}

// Defines the operator, also for Python (avskernels/core/specification.py).
template <typename Arguments>
void define(torch::stable::detail::StableLibrary& library) {
  specifications().push_back(specification_of<Arguments>());
  library.def(specification_of<Arguments>().schema().c_str());
}

// Defines a second operator with the arguments of the first, for a kernel that is called by name.
template <typename Arguments>
void define_as(torch::stable::detail::StableLibrary& library, const std::string& name) {
  Specification specification = specification_of<Arguments>();
  specification.name = name;
  library.def(specification.schema().c_str());
}

// Registers a kernel under the library's dispatch key; `name` where it is not the operator's own.
template <auto kFunction>
void implement(torch::stable::detail::StableLibrary& library, const char* name = nullptr) {
  using Arguments = typename detail::Traits<decltype(kFunction)>::Arguments;
  const Specification& specification = specification_of<Arguments>();
  std::vector<Value> values;
  for (const Argument& argument : specification.arguments) values.emplace_back(argument.type);
  try {
    if (values.size() != detail::member_count<Arguments>()) throw std::bad_variant_access();
    detail::from_values<Arguments>(std::move(values));
  } catch (const std::bad_variant_access&) {
    throw std::runtime_error(specification.name +
                             ": expected the struct's members to have the types of the arguments, "
                             "in their order, got others");
  }
  library.impl(name ? name : specification.name.c_str(), &boxed<kFunction>);
}

}  // namespace avskernels
