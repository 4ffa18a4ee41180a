// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "matching_cost/matching_cost.h"
#include "matching_cost/pair_costs.h"

namespace avskernels {
namespace {

// The mask and dice terms of one image.
template <typename T>
struct MaskCost {
  const T* logits;  // [N, pixels]
  MaskData masks;   // [B' J, pixels]
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

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "matching_cost/matching_cost_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// The same values, dense, in the given dtype: for the small arguments.
Tensor dense(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::contiguous(torch::stable::to(tensor, dtype));
}

template <typename T>
std::vector<T> values(const Tensor& tensor) {
  const Tensor flat = torch::stable::contiguous(tensor);
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
  std::vector<int64_t> counts;             // [B']
  std::vector<std::vector<int64_t>> seen;  // [B' J] the frames that count for a target
  std::vector<PixelRanges> ranges;         // [B']

  Targets(const MatchingShape& size, const std::optional<Tensor>& num_targets,
          const std::optional<Tensor>& valid, const std::optional<Tensor>& labelled,
          int64_t frame_pixels)
      : size(size), counts(size.target_images, size.targets) {
    if (num_targets) {
      counts = values<int64_t>(*num_targets);
      for (const int64_t count : counts) {
        if (count < 0 || count > size.targets) {
          fail("matching_cost: expected num_targets in 0..", size.targets, ", got ", count);
        }
      }
    }
    const Tensor valid_data = valid ? torch::stable::contiguous(*valid) : Tensor();
    const Tensor labelled_data = labelled ? torch::stable::contiguous(*labelled) : Tensor();
    const bool* const shown = labelled ? labelled_data.const_data_ptr<bool>() : nullptr;
    const bool* const present = valid ? valid_data.const_data_ptr<bool>() : nullptr;
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

Tensor matching_cost_cpu(
    const std::optional<Tensor>& class_logits, const std::optional<Tensor>& boxes,
    const std::optional<Tensor>& mask_logits, const std::optional<Tensor>& target_labels,
    const std::optional<Tensor>& target_boxes, const std::optional<Tensor>& target_masks,
    const std::optional<Tensor>& num_targets, const std::optional<Tensor>& valid,
    const std::optional<Tensor>& labelled, double cls, double l1, double giou, double mask,
    double dice, const std::string& class_cost, const std::string& mask_cost, double alpha,
    double gamma) {
  const MatchingShape size =
      check_matching(class_logits, boxes, mask_logits, target_labels, target_boxes, target_masks,
                     num_targets, valid, labelled);
  const Tensor& like = class_logits ? *class_logits : boxes ? *boxes : *mask_logits;
  Tensor cost =
      torch::stable::new_empty(like, {size.images, size.queries, size.targets}, size.dtype);
  const int64_t rows = size.images * size.queries;
  const int64_t pixels = mask_logits && rows > 0 ? mask_logits->numel() / rows : 0;
  const Targets targets(size, num_targets, valid, labelled,
                        pixels / std::max<int64_t>(1, size.frames));
  PairTensors pairs;
  pairs.focal = pixel_loss("focal", alpha, gamma);
  pairs.softmax = class_cost == "softmax";
  pairs.class_weight = cls;
  pairs.l1_weight = l1;
  pairs.giou_weight = giou;
  if (class_logits) {
    pairs.class_logits = dense(*class_logits, size.dtype);
    pairs.classes = class_logits->size(3);
    pairs.labels = values<int64_t>(*target_labels);
    targets.check_labels(pairs.labels, pairs.classes);
  }
  if (boxes) {
    pairs.boxes = dense(*boxes, size.dtype);
    pairs.target_boxes = dense(*target_boxes, size.dtype);
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
  if (!mask_logits || cost.numel() == 0) {
    return cost;
  }
  const ScalarType mask_type =
      size.dtype == ScalarType::Double ? ScalarType::Double : mask_logits->scalar_type();
  const Tensor logits = dense(*mask_logits, mask_type);
  const Tensor masks = torch::stable::contiguous(*target_masks);
  PixelLoss loss = pixel_loss(mask_cost, alpha, gamma);
  if (mask == 0) loss.kind = PixelLossKind::none;
  // Chunks of predictions: enough to share the reading of the masks, few enough for every thread.
  const int64_t chunks = (size.queries + kQueriesPerChunk - 1) / kQueriesPerChunk;
  dispatch_floating(mask_type, "matching_cost", [&]<typename T>() {
    const auto kernel =
        select_isa(&portable::mask_costs<T>, &avx2::mask_costs<T>, &avx512::mask_costs<T>);
    parallel_for(size.images * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / chunks, k = b % size.target_images, chunk = item % chunks;
        if (targets.counts[k] == 0) {
          continue;
        }
        const int64_t first = chunk * size.queries / chunks;
        const MaskCost<T> task = {
            logits.const_data_ptr<T>() + b * size.queries * pixels,
            MaskData(masks),
            k * size.targets,
            targets.counts[k],
            size.targets,
            pixels,
            &targets.ranges[k],
            loss,
            mask,
            dice,
            cost.mutable_data_ptr<accumulate_t<T>>() + b * size.queries * size.targets};
        kernel(task, first, (chunk + 1) * size.queries / chunks - first);
      }
    });
  });
  return cost;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("matching_cost", TORCH_BOX(&avskernels::matching_cost_cpu));
}
