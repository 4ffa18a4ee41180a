// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

namespace avskernels {

// Rows of equal length in somebody else's memory: the channels of a map, or a few values per pixel.
// The elements of a row are neighbours. A view without data stands for an argument left out.
template <typename T>
struct View {
  T* data = nullptr;
  int64_t stride = 0;  // from a row to the next
  int64_t rows = 0;
  int64_t columns = 0;

  T* row(int64_t r) const { return data + r * stride; }

  View row_range(int64_t begin, int64_t end) const {
    return {data + begin * stride, stride, end - begin, columns};
  }
  View column_range(int64_t begin, int64_t end) const {
    return {data + begin, stride, rows, end - begin};
  }

  operator View<const T>() const  // NOLINT(google-explicit-constructor)
    requires(!std::is_const_v<T>)
  {
    return {data, stride, rows, columns};
  }
};

}  // namespace avskernels
