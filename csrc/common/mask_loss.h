// SPDX-License-Identifier: Apache-2.0
// What matching_cost and focal_dice_loss share: the pixel loss and the frames that count.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"

namespace avskernels {

enum class PixelLossKind { none, bce, focal_square, focal };

// The loss of a logit for truth 1 and 0, focal with its weights or binary cross entropy.
struct PixelLoss {
  PixelLossKind kind;
  double inside;   // weight for truth 1
  double outside;  // and for truth 0
  double gamma;
};

inline PixelLoss pixel_loss(const std::string& name, double alpha, double gamma) {
  if (name == "bce") {
    return {PixelLossKind::bce, 1, 1, 0};
  }
  const PixelLossKind kind = gamma == 2 ? PixelLossKind::focal_square : PixelLossKind::focal;
  return {kind, alpha < 0 ? 1 : alpha, alpha < 0 ? 1 : 1 - alpha, gamma};
}

// Target masks in memory, whatever their dtype.
struct MaskData {
  const void* data;
  ScalarType dtype;

  explicit MaskData(const torch::stable::Tensor& masks)
      : data(masks.const_data_ptr()), dtype(masks.scalar_type()) {}
};

// Stacked layers share their targets: their batch is a multiple of the targets'.
inline void check_divides(const char* op, int64_t target_images, int64_t images) {
  if (target_images != images && (target_images == 0 || images % target_images != 0)) {
    fail(op, ": expected a number of target images that divides ", images, ", got ", target_images);
  }
}

// The pixels of an image that count, as ranges [begin, end): neighbouring labelled frames are one.
using PixelRanges = std::vector<std::pair<int64_t, int64_t>>;

inline PixelRanges labelled_pixels(const bool* labelled, int64_t frames, int64_t frame_pixels) {
  PixelRanges ranges;
  for (int64_t t = 0; t < frames; ++t) {
    if (labelled != nullptr && !labelled[t]) {
      continue;
    }
    if (!ranges.empty() && ranges.back().second == t * frame_pixels) {
      ranges.back().second += frame_pixels;
    } else {
      ranges.emplace_back(t * frame_pixels, (t + 1) * frame_pixels);
    }
  }
  return ranges;
}

inline int64_t pixel_count(const PixelRanges& ranges) {
  int64_t count = 0;
  for (const auto& [begin, end] : ranges) {
    count += end - begin;
  }
  return count;
}

}  // namespace avskernels
