// SPDX-License-Identifier: Apache-2.0
// The pixel losses in vectors; included by kernel files, inside the namespace of their level.

// loss(x, t) = offset + slope t, and p the sigmoid of x.
template <typename V>
struct PixelTerms {
  V slope;
  V offset;
  V p;
};

template <typename V>
inline PixelTerms<V> pixel_terms(V x, const PixelLoss& loss) {
  using A = std::conditional_t<std::is_same_v<V, double>, double, float>;
  const A inside = loss.inside, outside = loss.outside, gamma = loss.gamma;
  const Logistic<V> parts = logistic(x);
  V one = V{}, zero = V{};
  switch (loss.kind) {
    case PixelLossKind::none:
      break;
    case PixelLossKind::bce:
      return {-x, parts.to_zero, parts.p};
    case PixelLossKind::focal_square:
      one = parts.q * parts.q * parts.to_one;
      zero = parts.p * parts.p * parts.to_zero;
      break;
    case PixelLossKind::focal:
      one = exp(-gamma * parts.to_zero) * parts.to_one;
      zero = exp(-gamma * parts.to_one) * parts.to_zero;
      break;
  }
  zero = outside * zero;
  return {inside * one - zero, zero, parts.p};
}

// d loss / dx = offset + slope t, and p q the derivative of p.
template <typename V>
inline PixelTerms<V> pixel_gradients(V x, const PixelLoss& loss) {
  using A = std::conditional_t<std::is_same_v<V, double>, double, float>;
  const A inside = loss.inside, outside = loss.outside, gamma = loss.gamma;
  const Logistic<V> parts = logistic(x);
  V one = V{}, zero = V{};
  switch (loss.kind) {
    case PixelLossKind::none:
      break;
    case PixelLossKind::bce:
      return {V{} - 1.0f, parts.p, parts.p * parts.q};
    case PixelLossKind::focal_square:
      one = parts.q * parts.q;
      zero = parts.p * parts.p;
      break;
    case PixelLossKind::focal:
      one = exp(-gamma * parts.to_zero);
      zero = exp(-gamma * parts.to_one);
      break;
  }
  one = -inside * one * (parts.q + gamma * parts.p * parts.to_one);
  zero = outside * zero * (parts.p + gamma * parts.q * parts.to_zero);
  return {one - zero, zero, parts.p * parts.q};
}

// The first `count` lanes, zeros after them.
template <typename V>
inline V first_lanes(V lanes, int64_t count) {
  if constexpr (std::is_arithmetic_v<V>) {
    return lanes;
  } else {
    return lane_numbers<int32_t>() < static_cast<int32_t>(count) ? lanes : V{};
  }
}

template <typename A, typename T>
void mask_as(const T* mask, int64_t count, A* out) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_integral_v<T>) {
      out[i] = mask[i] != 0 ? A(1) : A(0);
    } else {
      out[i] = static_cast<A>(mask[i]);
    }
  }
}

// Pixels [begin, begin + count) of a target mask as numbers, with zeros after them up to a whole
// vector.
template <typename A>
void read_mask(const MaskData& masks, int64_t begin, int64_t count, A* out) {
  switch (masks.dtype) {
    case ScalarType::Float:
      mask_as(static_cast<const float*>(masks.data) + begin, count, out);
      break;
    case ScalarType::Double:
      mask_as(static_cast<const double*>(masks.data) + begin, count, out);
      break;
    case ScalarType::BFloat16:
      mask_as(static_cast<const BFloat16*>(masks.data) + begin, count, out);
      break;
    case ScalarType::Half:
      mask_as(static_cast<const Half*>(masks.data) + begin, count, out);
      break;
    default:  // bool and uint8
      mask_as(static_cast<const uint8_t*>(masks.data) + begin, count, out);
  }
  const int64_t whole = (count + kMathLanes<A> - 1) / kMathLanes<A> * kMathLanes<A>;
  std::fill(out + count, out + whole, A(0));
}
