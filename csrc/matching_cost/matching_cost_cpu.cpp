// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/mask_loss.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/tensors.h"
#include "matching_cost/matching_cost.h"
#include "matching_cost/pair_costs.h"

namespace avskernels {
namespace {

// The mask and dice terms of one image.
template <typename T>
struct MaskCost {
  const T* logits;  // [N, pixels]
  MaskData masks;   // [target_images J, pixels]
  int64_t first_mask;
  int64_t targets;      // of this image; its other costs stay as they are
  int64_t cost_stride;  // J
  int64_t pixels;       // of all frames
  const PixelRanges* ranges;
  PixelLoss loss;
  double mask_weight;
  double dice_weight;
  accumulate_t<T>* cost;  // [N, J], added to
};

template <typename T>
struct MatchingKernels {
  void (*mask_costs)(const MaskCost<T>& task, int64_t first_query, int64_t queries);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "matching_cost/matching_cost.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

struct MatchingShape {
  int64_t images;         // B
  int64_t queries;        // N
  int64_t frames;         // T
  int64_t target_images;  // a divisor of B: prediction b meets target b % target_images
  int64_t targets;        // J
  ScalarType dtype;       // of the cost
};

MatchingShape shape_of(const MatchingCost& in) {
  ScalarType dtype = ScalarType::Float;
  for (const auto& tensor : {in.class_logits, in.boxes, in.mask_logits}) {
    if (tensor && tensor->scalar_type() == ScalarType::Double) dtype = ScalarType::Double;
  }
  const Tensor &prediction = in.prediction(), &target = in.target();
  return {prediction.size(0), prediction.size(1), prediction.size(2),
          target.size(0),     target.size(1),     dtype};
}

// The same values, dense, in the given dtype: for the small arguments.
Tensor dense_as(const Tensor& tensor, ScalarType dtype) {
  return dense(torch::stable::to(tensor, dtype));
}

template <typename T>
std::vector<T> values(const Tensor& tensor) {
  const Tensor flat = dense(tensor);
  const T* data = flat.const_data_ptr<T>();
  return std::vector<T>(data, data + flat.numel());
}

constexpr int64_t kQueriesPerChunk = 32;

struct PairTensors {
  std::optional<Tensor> class_logits, boxes, target_boxes;  // dense, of the cost's dtype
  std::vector<int64_t> labels;
  int64_t classes = 0;
  bool softmax;
  PixelLoss focal;
  double class_weight, l1_weight, giou_weight;
};

// What is known of the targets of all images.
struct Targets {
  MatchingShape size;
  std::vector<int64_t> counts;             // [target_images]
  std::vector<std::vector<int64_t>> seen;  // [target_images J] the frames that count for a target
  std::vector<PixelRanges> ranges;         // [target_images]

  Targets(const MatchingShape& size, const MatchingCost& in, int64_t frame_pixels)
      : size(size), counts(size.target_images, size.targets) {
    if (in.num_targets) {
      counts = values<int64_t>(*in.num_targets);
      for (const int64_t count : counts) {
        if (count < 0 || count > size.targets) {
          fail("matching_cost: expected num_targets in 0..", size.targets, ", got ", count);
        }
      }
    }
    const Tensor valid = in.valid ? dense(*in.valid) : Tensor();
    const Tensor labelled = in.labelled ? dense(*in.labelled) : Tensor();
    const bool* const shown = in.labelled ? labelled.const_data_ptr<bool>() : nullptr;
    const bool* const present = in.valid ? valid.const_data_ptr<bool>() : nullptr;
    for (int64_t k = 0; k < size.target_images; ++k) {
      const bool* const frames = shown == nullptr ? nullptr : shown + k * size.frames;
      ranges.push_back(labelled_pixels(frames, size.frames, frame_pixels));
      for (int64_t j = 0; j < size.targets; ++j) {
        std::vector<int64_t>& own = seen.emplace_back();
        for (int64_t t = 0; t < size.frames; ++t) {
          const int64_t at = (k * size.targets + j) * size.frames + t;
          if ((frames == nullptr || frames[t]) && (present == nullptr || present[at])) {
            own.push_back(t);
          }
        }
      }
    }
  }

  void check_labels(const std::vector<int64_t>& labels, int64_t classes) const {
    for (int64_t k = 0; k < size.target_images; ++k) {
      for (int64_t j = 0; j < counts[k]; ++j) {
        const int64_t label = labels[k * size.targets + j];
        if (label < 0 || label >= classes) {
          fail("matching_cost: expected target_labels in 0..", classes - 1, ", got ", label);
        }
      }
    }
  }
};

template <typename A>
A log_sum_exp(const A* logits, int64_t count) {
  const A largest = *std::max_element(logits, logits + count);
  A sum = 0;
  for (int64_t c = 0; c < count; ++c) sum += std::exp(logits[c] - largest);
  return largest + std::log(sum);
}

// The class and box terms of predictions [begin, end) of all images: cost[row][j].
template <typename A>
void pair_costs(const Targets& targets, const PairTensors& pairs, int64_t begin, int64_t end,
                A* cost) {
  const auto [images, queries, frames, target_images, count, dtype] = targets.size;
  const A* const logits = pairs.class_logits ? pairs.class_logits->const_data_ptr<A>() : nullptr;
  const A* const boxes = pairs.boxes ? pairs.boxes->const_data_ptr<A>() : nullptr;
  const A* const target_boxes = boxes ? pairs.target_boxes->const_data_ptr<A>() : nullptr;
  std::vector<A> norms(frames);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t k = row / queries % target_images;
    const A* const row_logits = logits + row * frames * pairs.classes;
    if (logits != nullptr && pairs.softmax) {
      for (int64_t t = 0; t < frames; ++t) {
        norms[t] = log_sum_exp(row_logits + t * pairs.classes, pairs.classes);
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      A total = 0;
      const int64_t target = k * count + j;
      if (j >= targets.counts[k]) {
        cost[row * count + j] = std::numeric_limits<A>::infinity();
        continue;
      }
      for (const int64_t t : targets.seen[target]) {
        if (logits != nullptr) {
          const A x = row_logits[t * pairs.classes + pairs.labels[target]];
          total += static_cast<A>(pairs.class_weight) *
                   (pairs.softmax ? -std::exp(x - norms[t]) : focal_class_cost(x, pairs.focal));
        }
        if (boxes != nullptr) {
          total +=
              box_cost(boxes + (row * frames + t) * 4, target_boxes + (target * frames + t) * 4,
                       pairs.l1_weight, pairs.giou_weight);
        }
      }
      const size_t seen = targets.seen[target].size();
      cost[row * count + j] = total / static_cast<A>(std::max<size_t>(1, seen));
    }
  }
}

}  // namespace

void MatchingCost::require() const {
  if (!class_logits && !boxes && !mask_logits) {
    fail("matching_cost: expected class_logits, boxes or mask_logits, got none of them");
  }
  const auto paired = [](const char* name, bool prediction, bool target) {
    if (prediction != target) {
      fail("matching_cost: expected ", name, " with its prediction, got ",
           target ? "it alone" : "none");
    }
  };
  paired("target_labels", class_logits.has_value(), target_labels.has_value());
  paired("target_boxes", boxes.has_value(), target_boxes.has_value());
  paired("target_masks", mask_logits.has_value(), target_masks.has_value());
  check_divides("matching_cost", target().size(0), prediction().size(0));
}

Tensor matching_cost_cpu(const MatchingCost& in) {
  const MatchingShape size = shape_of(in);
  Tensor cost = torch::stable::new_empty(in.prediction(), {size.images, size.queries, size.targets},
                                         size.dtype);
  const int64_t rows = size.images * size.queries;
  const int64_t pixels = in.mask_logits && rows > 0 ? in.mask_logits->numel() / rows : 0;
  const Targets targets(size, in, pixels / std::max<int64_t>(1, size.frames));
  PairTensors pairs;
  pairs.focal = pixel_loss("focal", in.alpha, in.gamma);
  pairs.softmax = in.class_cost == "softmax";
  pairs.class_weight = in.cls;
  pairs.l1_weight = in.l1;
  pairs.giou_weight = in.giou;
  if (in.class_logits) {
    pairs.class_logits = dense_as(*in.class_logits, size.dtype);
    pairs.classes = in.class_logits->size(3);
    pairs.labels = values<int64_t>(*in.target_labels);
    targets.check_labels(pairs.labels, pairs.classes);
  }
  if (in.boxes) {
    pairs.boxes = dense_as(*in.boxes, size.dtype);
    pairs.target_boxes = dense_as(*in.target_boxes, size.dtype);
  }
  const auto add_pairs = [&]<typename A>(A* out) {
    parallel_for(
        rows, 1 + 2048 / std::max<int64_t>(1, size.targets * size.frames),
        [&](int64_t begin, int64_t end) { pair_costs<A>(targets, pairs, begin, end, out); });
  };
  if (size.dtype == ScalarType::Double) {
    add_pairs(cost.mutable_data_ptr<double>());
  } else {
    add_pairs(cost.mutable_data_ptr<float>());
  }
  if (!in.mask_logits || cost.numel() == 0) {
    return cost;
  }
  const ScalarType mask_type =
      size.dtype == ScalarType::Double ? ScalarType::Double : in.mask_logits->scalar_type();
  const Tensor logits = dense_as(*in.mask_logits, mask_type);
  const Tensor masks = dense(*in.target_masks);
  PixelLoss loss = pixel_loss(in.mask_cost, in.alpha, in.gamma);
  if (in.mask == 0) loss.kind = PixelLossKind::none;
  // Chunks of predictions: enough to share the reading of the masks, few enough for every thread.
  const int64_t chunks = (size.queries + kQueriesPerChunk - 1) / kQueriesPerChunk;
  dispatch_floating(mask_type, [&]<typename T>() {
    const auto kernel = AVSKERNELS_ACTIVE(kMatchingKernels<T>).mask_costs;
    parallel_for(size.images * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / chunks, k = b % size.target_images, chunk = item % chunks;
        if (targets.counts[k] == 0) {
          continue;
        }
        const int64_t first = chunk * size.queries / chunks;
        const MaskCost<T> task = {
            .logits = logits.const_data_ptr<T>() + b * size.queries * pixels,
            .masks = MaskData(masks),
            .first_mask = k * size.targets,
            .targets = targets.counts[k],
            .cost_stride = size.targets,
            .pixels = pixels,
            .ranges = &targets.ranges[k],
            .loss = loss,
            .mask_weight = in.mask,
            .dice_weight = in.dice,
            .cost = cost.mutable_data_ptr<accumulate_t<T>>() + b * size.queries * size.targets};
        kernel(task, first, (chunk + 1) * size.queries / chunks - first);
      }
    });
  });
  return cost;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) { avskernels::define<avskernels::MatchingCost>(m); }

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::matching_cost_cpu>(m);
}
