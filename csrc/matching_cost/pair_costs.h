// SPDX-License-Identifier: Apache-2.0
// Class and box terms of one prediction and one target: plain scalar code, small beside the masks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/mask_loss.h"

namespace avskernels {

// Focal cost of calling a logit's class present: its loss for truth 1 less that for truth 0.
// A logit of +Inf is an error, not a preference: NaN.
template <typename A>
A focal_class_cost(A x, const PixelLoss& loss) {
  const A log_sum = std::log1p(std::exp(-std::fabs(x)));
  const A to_one = std::max(-x, A(0)) + log_sum, to_zero = std::max(x, A(0)) + log_sum;
  const A one = loss.inside * std::exp(-loss.gamma * to_zero) * to_one;
  const A zero = loss.outside * std::exp(-loss.gamma * to_one) * to_zero;
  const A cost = one - zero;
  return cost == -std::numeric_limits<A>::infinity() ? std::numeric_limits<A>::quiet_NaN() : cost;
}

template <typename A>
struct Box {
  A low_x, low_y, high_x, high_y;

  explicit Box(const A* centre) {  // (cx, cy, w, h); a negative size counts as none
    const A half_width = std::max(centre[2], A(0)) / 2, half_height = std::max(centre[3], A(0)) / 2;
    low_x = centre[0] - half_width;
    low_y = centre[1] - half_height;
    high_x = centre[0] + half_width;
    high_y = centre[1] + half_height;
  }

  A area() const { return (high_x - low_x) * (high_y - low_y); }
};

// Without area, a box overlaps nothing, and a hull takes nothing away.
template <typename A>
A generalized_iou(const Box<A>& a, const Box<A>& b) {
  const A width = std::min(a.high_x, b.high_x) - std::max(a.low_x, b.low_x);
  const A height = std::min(a.high_y, b.high_y) - std::max(a.low_y, b.low_y);
  const A inside = std::max(width, A(0)) * std::max(height, A(0));
  const A both = a.area() + b.area() - inside;
  const A hull = (std::max(a.high_x, b.high_x) - std::min(a.low_x, b.low_x)) *
                 (std::max(a.high_y, b.high_y) - std::min(a.low_y, b.low_y));
  return (both == 0 ? 0 : inside / both) - (hull == 0 ? 0 : (hull - both) / hull);
}

template <typename A>
A box_cost(const A* box, const A* target, double l1, double giou) {
  A cost = 0;
  if (l1 != 0) {
    for (int64_t i = 0; i < 4; ++i) cost += std::fabs(box[i] - target[i]);
    cost *= l1;
  }
  // A NaN corner would be lost in a maximum.
  const A sum = box[0] + box[1] + box[2] + box[3] + (target[0] + target[1] + target[2] + target[3]);
  if (!std::isfinite(sum)) {
    return std::numeric_limits<A>::quiet_NaN();
  }
  return giou == 0 ? cost
                   : cost - static_cast<A>(giou) * generalized_iou(Box<A>(box), Box<A>(target));
}

}  // namespace avskernels
