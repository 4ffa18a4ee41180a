// SPDX-License-Identifier: Apache-2.0
// One coordinate of a bilinear sample. Included once for numbers by deformable_attention.h, and
// once per instruction set, for its vectors, by deformable_attention.isa.h: hence no include
// guard.

HOST_DEVICE inline float round_down(float a) { return std::floor(a); }
HOST_DEVICE inline double round_down(double a) { return std::floor(a); }

template <typename T>
struct Between {
  using Mask = decltype(T{} < T{});
  T low, high;              // the two pixels, whole numbers, moved onto the map
  T low_share, high_share;  // their bilinear weights, 0 for one off the map, NaN for a NaN location
  Mask low_off, high_off;   // whether they are off the map
};

// The pixels on both sides of `location`, which runs from 0 to 1 over `size` pixels, whose centres
// lie at (i + 1/2) / size. T is a number or a vector of numbers.
template <typename T>
HOST_DEVICE inline Between<T> between_pixels(T location, T size) {
  const T zero = T{}, last = size - 1.0f;
  const T position = location * size - 0.5f;
  const T low = round_down(position), high = low + 1.0f;
  using Mask = typename Between<T>::Mask;
  const Mask low_off = (low < zero) | (low > last), high_off = (high < zero) | (high > last);
  // Written so that NaN, too, becomes a pixel of the map.
  const T low_or_first = low > zero ? low : zero, high_or_first = high > zero ? high : zero;
  return {low_or_first < last ? low_or_first : last,
          high_or_first < last ? high_or_first : last,
          low_off ? zero : high - position,
          high_off ? zero : position - low,
          low_off,
          high_off};
}

template <typename T>
HOST_DEVICE inline T zero_where(typename Between<T>::Mask mask, T value) {
  return mask ? T{} : value;
}
