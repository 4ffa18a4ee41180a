// SPDX-License-Identifier: Apache-2.0
#include "common/operator.h"

#include <algorithm>
#include <string_view>

#include "common/check.h"
#include "common/dispatch.h"

namespace avskernels {
namespace {

using torch::stable::detail::to;

// The sizes that the names of a specification stand for in one call.
class Sizes {
 public:
  explicit Sizes(size_t names) { bound_.reserve(names); }

  // Of a number or a bound name; -1 where a name is not bound yet.
  int64_t of(std::string_view factor) const {
    if (factor[0] >= '0' && factor[0] <= '9') return std::stoll(std::string(factor));
    const auto found = find(factor);
    return found == bound_.end() ? -1 : found->size;
  }
  int64_t of(const Dimension& dimension) const {
    int64_t product = 1;
    for (const std::string& factor : dimension.factors) {
      const int64_t size = of(factor);
      if (size < 0) return -1;
      product *= size;
    }
    return product;
  }
  void bind(std::string_view name, int64_t size) { bound_.push_back({name, size, {}}); }

  // Of an open dimension: null where it is not bound yet.
  const std::vector<int64_t>* open(std::string_view name) const {
    const auto found = find(name);
    return found == bound_.end() ? nullptr : &found->open;
  }
  void bind_open(std::string_view name, std::vector<int64_t> sizes) {
    bound_.push_back({name, 0, std::move(sizes)});
  }

  // Unbinds what was bound since there were so many.
  size_t count() const { return bound_.size(); }
  void forget(size_t count) { bound_.resize(count); }

  // Whether the optional dimensions are there, once the first tensor that may have one has told.
  std::optional<bool> with_optional;

 private:
  struct Bound {
    std::string_view name;
    int64_t size = -1;
    std::vector<int64_t> open;
  };

  std::vector<Bound>::const_iterator find(std::string_view name) const {
    return std::find_if(bound_.begin(), bound_.end(),
                        [&](const Bound& bound) { return bound.name == name; });
  }

  std::vector<Bound> bound_;
};

// The dimensions as a sentence lists them: sizes where they are known, else names.
std::string listed(const std::vector<Dimension>& shape, const Sizes& sizes, bool with_optional) {
  std::string text;
  const auto append = [&](const std::string& item) { text += (text.empty() ? "" : ", ") + item; };
  for (const Dimension& dimension : shape) {
    if (dimension.optional && !with_optional) continue;
    if (dimension.open) {
      const auto* bound = sizes.open(dimension.text);
      if (bound == nullptr) append("...");
      for (size_t i = 0; bound != nullptr && i < bound->size(); ++i) {
        append(std::to_string((*bound)[i]));
      }
    } else {
      const int64_t size = sizes.of(dimension);
      append(size < 0 ? dimension.text : std::to_string(size));
    }
  }
  return "[" + text + "]";
}

// Compares a tensor's shape with the declared one and binds the names that occur first in it.
bool fits(const std::vector<Dimension>& declared, const Tensor& tensor, Sizes& sizes) {
  const int64_t dim = tensor.dim();
  int64_t closed = 0;
  bool optional = false, open = false, open_last = false;
  for (const Dimension& dimension : declared) {
    optional |= dimension.optional;
    open |= dimension.open;
    open_last = dimension.open && declared.size() > 1;
    closed += !dimension.open;
  }
  if (optional && !sizes.with_optional) sizes.with_optional = dim == closed;
  if (optional && !*sizes.with_optional) --closed;
  if (open ? dim < closed + open_last : dim != closed) return false;
  int64_t at = 0;
  for (const Dimension& dimension : declared) {
    if (dimension.optional && !*sizes.with_optional) continue;
    if (dimension.open) {
      const auto* bound = sizes.open(dimension.text);
      std::vector<int64_t> own(dim - closed);
      for (int64_t& size : own) size = tensor.size(at++);
      if (bound == nullptr) {
        sizes.bind_open(dimension.text, std::move(own));
      } else if (*bound != own) {
        return false;
      }
      continue;
    }
    const int64_t wanted = sizes.of(dimension), size = tensor.size(at++);
    if (wanted < 0) {
      sizes.bind(dimension.text, size);
    } else if (wanted != size) {
      return false;
    }
  }
  return true;
}

bool is_floating(ScalarType type) {
  return std::find(kFloatingPoint.begin(), kFloatingPoint.end(), type) != kFloatingPoint.end();
}

// The one dtype that the argument must have; none where several are allowed.
std::optional<ScalarType> only_dtype(const Argument& argument, const std::vector<Value>& values) {
  switch (argument.dtype) {
    case Dtype::boolean:
      return ScalarType::Bool;
    case Dtype::int64:
      return ScalarType::Long;
    case Dtype::as:
    case Dtype::sums:
      if (const Tensor* other = values[argument.position].tensor()) {
        const ScalarType type = other->scalar_type();
        return argument.dtype == Dtype::as ? type : accumulate_type(type);
      }
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

void check_dtype(const std::string& op, const Argument& argument, ScalarType type,
                 const std::vector<Value>& values) {
  const std::optional<ScalarType> only = only_dtype(argument, values);
  const bool masks = argument.dtype == Dtype::masks;
  const bool mask = masks && (type == ScalarType::Bool || type == ScalarType::Byte);
  if (only ? type == *only : mask || is_floating(type)) return;
  fail(op, ": expected ", argument.name, " of ",
       only    ? dtype_name(*only)
       : masks ? "torch.bool or torch.uint8 or floating point"
               : "floating point",
       ", got ", dtype_name(type));
}

std::string device_name(const Tensor& tensor) {
  return tensor.is_cpu()    ? "cpu"
         : tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index())
                            : "another device";
}

bool same_device(const Tensor& one, const Tensor& other) {
  return one.is_cpu() == other.is_cpu() && one.is_cuda() == other.is_cuda() &&
         one.get_device_index() == other.get_device_index();
}

}  // namespace

Value::Value(const std::string& type, StableIValue boxed) {
  if (type == "Tensor?") {
    auto tensor = to<std::optional<Tensor>>(boxed);
    if (tensor) held_ = std::move(*tensor);
  } else if (type.starts_with("Tensor")) {
    held_ = to<Tensor>(boxed);
  } else if (type == "float") {
    held_ = to<double>(boxed);
  } else if (type == "int" || type == "SymInt") {
    held_ = to<int64_t>(boxed);
  } else if (type == "bool") {
    held_ = to<bool>(boxed);
  } else if (type == "str") {
    held_ = to<std::string>(boxed);
  } else if (type == "int[]") {
    held_ = to<std::vector<int64_t>>(boxed);
  } else {
    fail("specification: expected a type of the list in common/operator.cpp, got ", type);
  }
}

Value::Value(const std::string& type) {
  if (type == "Tensor?") return;
  if (type.starts_with("Tensor")) held_ = Tensor();
  if (type == "float") held_ = 0.0;
  if (type == "int" || type == "SymInt") held_ = int64_t(0);
  if (type == "bool") held_ = false;
  if (type == "str") held_ = std::string();
  if (type == "int[]") held_ = std::vector<int64_t>();
}

void check_arguments(const Specification& specification, const std::vector<Value>& values) {
  const std::string& op = specification.name;
  Sizes sizes(4 * values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (const int64_t* size = values[i].integer())
      sizes.bind(specification.arguments[i].name, *size);
  }
  const Tensor* first = nullptr;
  for (size_t i = 0; i < values.size(); ++i) {
    const Argument& argument = specification.arguments[i];
    const Tensor* tensor = values[i].tensor();
    if (tensor == nullptr) continue;
    const bool undecided = !sizes.with_optional;
    const size_t known = sizes.count();
    if (!fits(argument.shape, *tensor, sizes)) {
      sizes.forget(known);
      const bool optional = std::any_of(argument.shape.begin(), argument.shape.end(),
                                        [](const Dimension& each) { return each.optional; });
      std::string wanted =
          listed(argument.shape, sizes, optional && sizes.with_optional.value_or(false));
      if (optional && undecided) {
        wanted =
            listed(argument.shape, sizes, false) + " or " + listed(argument.shape, sizes, true);
      }
      fail(op, ": expected ", argument.name, " ", wanted, ", got ", shape(*tensor));
    }
    check_dtype(op, argument, tensor->scalar_type(), values);
    if (argument.anywhere) continue;
    if (first == nullptr) {
      first = tensor;
    } else if (!same_device(*first, *tensor)) {
      fail(op, ": expected ", argument.name, " on ", device_name(*first), ", got ",
           device_name(*tensor));
    }
  }
}

}  // namespace avskernels
