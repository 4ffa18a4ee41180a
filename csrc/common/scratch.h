// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace avskernels {

// Working memory of one thread, uninitialised and aligned to a cache line.
template <typename T>
class Scratch {
 public:
  explicit Scratch(size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), kAlignment))) {}

  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Delete> data_;
};

}  // namespace avskernels
