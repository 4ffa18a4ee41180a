// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "semantic_argmax/semantic_argmax.h"
#include "semantic_argmax/semantic_argmax_classes.h"

namespace avskernels {
namespace {

constexpr int64_t kSegment = 960;    // pixels that go through together where nothing is resized
constexpr int64_t kMostLanes = 16;   // of any instruction set
constexpr int64_t kFewQueries = 16;  // below, the screen in integers does not pay

// Bilinear resizing along one axis, align_corners=False.
struct ArgmaxAxis {
  std::vector<int32_t> low, high;
  std::vector<double> share;  // of `high`

  ArgmaxAxis(int64_t source, int64_t count) : low(count), high(count), share(count) {
    const double scale = static_cast<double>(source) / count;
    for (int64_t i = 0; i < count; ++i) {
      const double at = std::max(0.0, scale * (i + 0.5) - 0.5);
      low[i] = std::min<int64_t>(static_cast<int64_t>(at), source - 1);
      high[i] = std::min<int64_t>(low[i] + 1, source - 1);
      share[i] = at - low[i];
      if (share[i] == 0) {  // a pixel without a share does not count, but 0 * infinity is NaN
        high[i] = low[i];
        share[i] = 0.5;
      }
    }
  }
};

// The horizontal axis as the screen needs it: float32, and filled up past the last tile.
struct ArgmaxColumns {
  bool resized = false;
  std::vector<int32_t> low, high;
  std::vector<float> share;
};

// Some neighbouring pixels of one row of one image.
struct ArgmaxSegment {
  int64_t image;
  int64_t row;
  int64_t first;
  int64_t count;
};

// Two source rows of a mask, and the share of the second.
template <typename T>
struct ArgmaxRows {
  const T* low;
  const T* high;
  float share;
  bool mixed;
};

// All pointers are borrowed.
template <typename T>
struct ArgmaxProblem {
  using A = accumulate_t<T>;

  int64_t queries, classes, padded_classes;
  int64_t rows, row_length;  // of the output
  int64_t segment_length, segments_per_row;
  int64_t row_room;  // source pixels of the longest segment
  const T* masks;
  int64_t mask_steps[4];
  std::vector<ArgmaxClasses> tables;
  std::optional<ArgmaxAxis> vertical, horizontal;
  ArgmaxColumns columns;
  bool sigmoid;
  double mask_threshold;
  float value_threshold, threshold_error;  // the same before the activation, and its rounding
  int64_t* labels;
  A* scores;  // or null

  ArgmaxSegment segment(int64_t index) const {
    const int64_t row = index / segments_per_row;
    const int64_t first = index % segments_per_row * segment_length;
    return {row / rows, row % rows, first, std::min(segment_length, row_length - first)};
  }

  int64_t source_length(const ArgmaxSegment& segment) const {
    return horizontal ? row_room : segment.count;
  }

  ArgmaxRows<T> source_rows(const ArgmaxSegment& segment, int64_t query) const {
    const T* plane = masks + segment.image * mask_steps[0] + query * mask_steps[1];
    if (!vertical) {
      const T* row = plane + segment.row * mask_steps[2] + segment.first * mask_steps[3];
      return {row, row, 0.0f, false};
    }
    return {plane + vertical->low[segment.row] * mask_steps[2],
            plane + vertical->high[segment.row] * mask_steps[2],
            static_cast<float>(vertical->share[segment.row]), true};
  }

  double mask_value(int64_t image, int64_t query, int64_t row, int64_t column) const {
    const T* plane = masks + image * mask_steps[0] + query * mask_steps[1];
    const auto at = [&](int64_t y, int64_t x) {
      return static_cast<double>(plane[y * mask_steps[2] + x * mask_steps[3]]);
    };
    if (!vertical) return at(row, column);
    const int64_t left = horizontal->low[column], right = horizontal->high[column];
    const double across = horizontal->share[column], down = vertical->share[row];
    const auto mix = [&](int64_t y) { return (1 - across) * at(y, left) + across * at(y, right); };
    return (1 - down) * mix(vertical->low[row]) + down * mix(vertical->high[row]);
  }

  void write(const ArgmaxSegment& segment, int64_t x, int64_t label, double score) const {
    const int64_t pixel = (segment.image * rows + segment.row) * row_length + segment.first + x;
    labels[pixel] = label;
    if (scores != nullptr) scores[pixel] = static_cast<A>(score);
  }

  void write_nothing(const ArgmaxSegment& segment) const {
    for (int64_t x = 0; x < segment.count; ++x) write(segment, x, 0, 0.0);
  }
};

template <typename T>
struct ArgmaxKernels {
  bool integers;  // whether the screen may be in integers
  void (*segments)(const ArgmaxProblem<T>& problem, int64_t begin, int64_t end);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "semantic_argmax/semantic_argmax.isa.h"
#define AVSKERNELS_KERNEL_VNNI
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

template <typename T>
void set_geometry(const Tensor& mask_logits, int64_t height, int64_t width,
                  ArgmaxProblem<T>& problem) {
  for (int64_t i = 0; i < 4; ++i) problem.mask_steps[i] = mask_logits.stride(i);
  problem.rows = height;
  problem.row_length = width;
  if (height != mask_logits.size(2) || width != mask_logits.size(3)) {
    problem.vertical.emplace(mask_logits.size(2), height);
    problem.horizontal.emplace(mask_logits.size(3), width);
    problem.columns = {true,
                       problem.horizontal->low,
                       problem.horizontal->high,
                       {problem.horizontal->share.begin(), problem.horizontal->share.end()}};
    const int64_t room = width + 3 * kMostLanes;
    problem.columns.low.resize(room, problem.columns.low.back());
    problem.columns.high.resize(room, problem.columns.high.back());
    problem.columns.share.resize(room, 0.0f);
    problem.segment_length = width;
    problem.row_room = mask_logits.size(3);
  } else {
    if (problem.mask_steps[2] == width * problem.mask_steps[3]) {  // the image is one long row
      problem.rows = 1;
      problem.row_length = height * width;
    }
    problem.segment_length = std::min(problem.row_length, kSegment);
    problem.row_room = problem.segment_length;
  }
  problem.segments_per_row =
      (problem.row_length + problem.segment_length - 1) / problem.segment_length;
}

}  // namespace

void SemanticArgmax::require() const {
  constexpr const char* op = "semantic_argmax";
  if (class_probs.size(2) == 0) {
    fail(op, ": expected at least one class, got ", shape(class_probs));
  }
  if (height < 0 || width < 0) {
    fail(op, ": expected a size of at least 0, got [", height, ", ", width, "]");
  }
  if (height * width > 0 && mask_logits.size(2) * mask_logits.size(3) == 0) {
    fail(op, ": expected masks that are not empty, got ", shape(mask_logits));
  }
}

std::tuple<Tensor, Tensor> semantic_argmax_cpu(const SemanticArgmax& in) {
  const Tensor& mask_logits = in.mask_logits;
  const ScalarType type = mask_logits.scalar_type();
  const int64_t images = mask_logits.size(0);
  const std::vector<int64_t> sizes = {images, in.height, in.width};
  Tensor labels = torch::stable::new_empty(mask_logits, sizes, ScalarType::Long);
  Tensor scores = torch::stable::new_empty(
      mask_logits, in.return_scores ? sizes : std::vector<int64_t>{0}, accumulate_type(type));
  if (labels.numel() == 0) return {labels, scores};
  dispatch_floating(type, [&]<typename T>() {
    using A = accumulate_t<T>;
    ArgmaxProblem<T> problem{};
    problem.queries = mask_logits.size(1);
    problem.classes = in.class_probs.size(2);
    problem.padded_classes = padded_classes(problem.classes);
    problem.masks = mask_logits.const_data_ptr<T>();
    set_geometry(mask_logits, in.height, in.width, problem);
    problem.sigmoid = in.sigmoid;
    problem.mask_threshold = in.mask_threshold;
    const double infinity = std::numeric_limits<double>::infinity();
    const double value_threshold =
        !in.sigmoid              ? in.mask_threshold
        : in.mask_threshold <= 0 ? -infinity
        : in.mask_threshold >= 1 ? infinity
                                 : std::log(in.mask_threshold) - std::log1p(-in.mask_threshold);
    problem.value_threshold = static_cast<float>(value_threshold);
    problem.threshold_error =
        std::isfinite(value_threshold) ? 1e-6f * (1 + std::abs(problem.value_threshold)) : 0;
    problem.labels = labels.mutable_data_ptr<int64_t>();
    problem.scores = in.return_scores ? scores.mutable_data_ptr<A>() : nullptr;
    const ArgmaxKernels<T>& kernels = AVSKERNELS_ACTIVE(kArgmaxKernels<T>);
    const bool integers =
        kernels.integers && in.sigmoid && !in.return_scores && problem.queries >= kFewQueries;
    const T* probs = in.class_probs.const_data_ptr<T>();
    const int64_t steps[] = {in.class_probs.stride(0), in.class_probs.stride(1),
                             in.class_probs.stride(2)};
    for (int64_t b = 0; b < images; ++b) {
      problem.tables.push_back(argmax_classes(probs + b * steps[0], steps, problem.queries,
                                              problem.classes, in.class_threshold, integers));
    }
    parallel_for(images * problem.rows * problem.segments_per_row, 1,
                 [&](int64_t begin, int64_t end) { kernels.segments(problem, begin, end); });
  });
  return {labels, scores};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) { avskernels::define<avskernels::SemanticArgmax>(m); }

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::semantic_argmax_cpu>(m);
}
