// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "attention_pool/pooling.h"
#include "common/dispatch.h"
#include "common/large_output.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tensors.h"
#include "common/view.h"
#include "tpavi/tpavi.h"

namespace avskernels {
namespace {

// What the kernels get for one block of a frame's positions; R rows of keys, weights and values.
template <typename T, typename A = accumulate_t<T>>
struct ScoreJob {
  View<const T> visual;  // [C, positions]
  const A* packed_keys;  // [R, C], as pack_rows leaves them
  const A* offsets;      // [R] or null
  View<A> scores;        // [R, positions]
  A* sums;               // [C]
};

template <typename T, typename A = accumulate_t<T>>
struct ScoreGradientJob {
  View<const T> visual;       // [C, positions]
  const A* keys;              // [R, C]
  View<const A> grad_scores;  // [R, positions]
  const A* grad_sums;         // [C]
  View<T> grad_visual;        // [C, positions], added to
  A* grad_keys;               // [R, C], of the block
};

template <typename T, typename A = accumulate_t<T>>
struct FuseJob {
  View<const T> visual;   // [C, positions]
  View<const A> weights;  // [R, positions]
  const A* values;        // [R, C]
  const A* shift;         // [C]
  const A* norm_weight;   // [C] or null
  const A* norm_bias;     // [C]
  A norm_eps;
  bool past_caches;  // how fused is written
  View<T> fused;     // [C, positions]
  A* mean;           // [positions]
  A* rstd;           // [positions]
};

template <typename T, typename A = accumulate_t<T>>
struct FuseGradientJob {
  View<const T> grad;      // [C, positions]
  View<const T> visual;    // [C, positions]
  View<const A> weights;   // [R, positions]
  const A* values;         // [R, C]
  const A* packed_values;  // the same, as pack_rows leaves them
  const A* shift;          // [C]
  const A* norm_weight;    // [C] or null
  const A* mean;           // [positions]
  const A* rstd;           // [positions]
  View<T> grad_visual;     // [C, positions]
  View<A> grad_weights;    // [R, positions]
  A* grad_values;          // [R + 1, C], of the block; the last row is the gradient of shift
  A* grad_norm_weight;     // [C], of the block
  A* grad_norm_bias;       // [C], of the block
};

template <typename T, typename A = accumulate_t<T>>
struct TpaviKernels {
  void (*score_block)(const ScoreJob<T>& job, A* scratch);
  void (*score_block_backward)(const ScoreGradientJob<T>& job, A* scratch);
  void (*fuse_block)(const FuseJob<T>& job, A* scratch);
  int64_t (*fuse_scratch)(int64_t rows, int64_t channels, int64_t pixels);
  void (*fuse_block_backward)(const FuseGradientJob<T>& job, A* scratch);
  int64_t (*fuse_backward_scratch)(int64_t rows, int64_t channels, int64_t pixels);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "tpavi/tpavi.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// The map as the kernels walk it: in blocks, none across two frames.
struct Clips {
  int64_t batch, channels, frames, pixels;  // pixels of a frame
  PixelBlocks blocks;                       // of a frame

  Clips(const Tensor& visual, int64_t maps)
      : batch(visual.size(0)),
        channels(visual.size(1)),
        frames(visual.size(2)),
        pixels(visual.size(3) * visual.size(4)),
        blocks(pixels, std::max<int64_t>(1, channels * maps * 4)) {}

  int64_t positions() const { return frames * pixels; }
  int64_t tasks() const { return batch * frames * blocks.count; }
};

// One block: where it is, and its part of an array of all clips.
struct Block {
  int64_t clip, frame, position, length, positions;

  Block(const Clips& clips, int64_t task) : positions(clips.positions()) {
    const int64_t block = task % clips.blocks.count;
    frame = task / clips.blocks.count % clips.frames;
    clip = task / clips.blocks.count / clips.frames;
    position = frame * clips.pixels + clips.blocks.begin(block);
    length = clips.blocks.length(block);
  }

  // Of an array [B, rows, positions].
  template <typename T>
  View<T> view(T* data, int64_t rows) const {
    return {data + clip * rows * positions + position, positions, rows, length};
  }
};

// out[i] (of `groups` groups of `size`) = the sum of the group's parts, `count` each, in their
// order.
template <typename A>
void sum_parts(const A* parts, int64_t groups, int64_t count, int64_t size, A* out) {
  std::fill(out, out + groups * size, A(0));
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t p = 0; p < count; ++p) {
      const A* part = parts + (g * count + p) * size;
      for (int64_t i = 0; i < size; ++i) out[g * size + i] += part[i];
    }
  }
}

// The rows of all clips in the order that row_dots reads.
template <typename T, typename A = accumulate_t<T>>
std::vector<A> pack_all(const Tensor& rows) {  // [B, R, C]
  std::vector<A> packed(rows.numel());
  const int64_t size = rows.size(1) * rows.size(2);
  for (int64_t b = 0; b < rows.size(0); ++b) {
    pool_kernels<T>().pack_rows(rows.const_data_ptr<A>() + b * size, rows.size(1), rows.size(2),
                                packed.data() + b * size);
  }
  return packed;
}

template <typename A, typename Run>
void for_each_block(const Clips& clips, int64_t scratch_size, const Run& run) {
  parallel_for(clips.tasks(), 1, [&](int64_t begin, int64_t end) {
    const Scratch<A> scratch(scratch_size);
    for (int64_t task = begin; task < end; ++task) run(task, Block(clips, task), scratch.data());
  });
}

}  // namespace

std::tuple<Tensor, Tensor> tpavi_scores_cpu(const TpaviScores& in) {
  const Clips clips(in.visual, 1);
  const Tensor map = dense(in.visual);
  const Tensor rows = dense(in.keys);
  const int64_t count = rows.size(1);
  const std::optional<Tensor> start = dense(in.offsets);
  Tensor scores = torch::stable::new_empty(rows, {clips.batch, count, clips.positions()});
  Tensor sums = torch::stable::new_empty(rows, {clips.batch, clips.frames, clips.channels});
  dispatch_floating(in.visual.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kTpaviKernels<T>).score_block;
    const std::vector<A> packed = pack_all<T>(rows);
    std::vector<A> parts(clips.tasks() * clips.channels);
    for_each_block<A>(
        clips, std::max<int64_t>(1, count) * clips.blocks.size,
        [&](int64_t task, const Block& block, A* scratch) {
          kernel({.visual = block.view(map.const_data_ptr<T>(), clips.channels),
                  .packed_keys = packed.data() + block.clip * count * clips.channels,
                  .offsets = start ? start->const_data_ptr<A>() + block.clip * count : nullptr,
                  .scores = block.view(scores.mutable_data_ptr<A>(), count),
                  .sums = parts.data() + task * clips.channels},
                 scratch);
        });
    sum_parts(parts.data(), clips.batch * clips.frames, clips.blocks.count, clips.channels,
              sums.mutable_data_ptr<A>());
  });
  return {scores, sums};
}

Tensor tpavi_scores_backward_cpu(const TpaviScoresBackward& in) {
  const Clips clips(in.visual, 2);
  const Tensor map = dense(in.visual);
  const Tensor rows = dense(in.keys);
  const int64_t count = rows.size(1);
  const Tensor scores = dense(in.grad_scores);
  const Tensor sums = dense(in.grad_sums);
  Tensor grad_keys = torch::stable::new_empty(rows, {clips.batch, count, clips.channels});
  dispatch_floating(in.visual.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kTpaviKernels<T>).score_block_backward;
    const int64_t size = count * clips.channels;
    std::vector<A> parts(clips.tasks() * size);
    for_each_block<A>(
        clips, count * clips.blocks.size, [&](int64_t task, const Block& block, A* scratch) {
          kernel({.visual = block.view(map.const_data_ptr<T>(), clips.channels),
                  .keys = rows.const_data_ptr<A>() + block.clip * size,
                  .grad_scores = block.view(scores.const_data_ptr<A>(), count),
                  .grad_sums = sums.const_data_ptr<A>() +
                               (block.clip * clips.frames + block.frame) * clips.channels,
                  .grad_visual = block.view(in.grad_visual.mutable_data_ptr<T>(), clips.channels),
                  .grad_keys = parts.data() + task * size},
                 scratch);
        });
    sum_parts(parts.data(), clips.batch, clips.frames * clips.blocks.count, size,
              grad_keys.mutable_data_ptr<A>());
  });
  return grad_keys;
}

std::tuple<Tensor, Tensor, Tensor> tpavi_fuse_cpu(const TpaviFuse& in) {
  const Clips clips(in.visual, 2);
  const Tensor map = dense(in.visual);
  const Tensor rows = dense(in.weights);
  const int64_t count = rows.size(1);
  const Tensor factors = dense(in.values);
  const Tensor start = dense(in.shift);
  const bool normalised = in.norm_weight.has_value();
  const Tensor gain = normalised ? dense(*in.norm_weight) : start;
  const Tensor bias = normalised ? dense(*in.norm_bias) : start;
  const int64_t statistics = normalised ? clips.positions() : 0;
  Tensor fused = in_huge_pages(torch::stable::empty_like(map));
  const bool stream = past_caches(fused, clips.pixels);
  const std::vector<int64_t> of_clips{clips.batch, statistics}, none{0};
  Tensor mean = torch::stable::new_empty(rows, normalised ? of_clips : none);
  Tensor rstd = torch::stable::new_empty(rows, normalised ? of_clips : none);
  dispatch_floating(in.visual.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kTpaviKernels<T>).fuse_block;
    const auto scratch_size = AVSKERNELS_ACTIVE(kTpaviKernels<T>).fuse_scratch;
    for_each_block<A>(
        clips, scratch_size(count, clips.channels, clips.blocks.size),
        [&](int64_t, const Block& block, A* scratch) {
          const int64_t statistic = normalised ? block.clip * statistics + block.position : 0;
          kernel({.visual = block.view(map.const_data_ptr<T>(), clips.channels),
                  .weights = block.view(rows.const_data_ptr<A>(), count),
                  .values = factors.const_data_ptr<A>() + block.clip * count * clips.channels,
                  .shift = start.const_data_ptr<A>(),
                  .norm_weight = normalised ? gain.const_data_ptr<A>() : nullptr,
                  .norm_bias = bias.const_data_ptr<A>(),
                  .norm_eps = static_cast<A>(in.norm_eps),
                  .past_caches = stream,
                  .fused = block.view(fused.mutable_data_ptr<T>(), clips.channels),
                  .mean = mean.mutable_data_ptr<A>() + statistic,
                  .rstd = rstd.mutable_data_ptr<A>() + statistic},
                 scratch);
        });
  });
  return {fused, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> tpavi_fuse_backward_cpu(
    const TpaviFuseBackward& in) {
  const Clips clips(in.visual, 3);
  const Tensor map = dense(in.visual);
  const Tensor grads = dense(in.grad_fused);
  const Tensor rows = dense(in.weights);
  const int64_t count = rows.size(1);
  const Tensor factors = dense(in.values);
  const Tensor start = dense(in.shift);
  const bool normalised = in.norm_weight.has_value();
  const Tensor gain = normalised ? dense(*in.norm_weight) : start;
  const Tensor average = normalised ? dense(*in.mean) : start;
  const Tensor inverse = normalised ? dense(*in.rstd) : start;
  const int64_t statistics = normalised ? clips.positions() : 0;
  Tensor grad_visual = in_huge_pages(torch::stable::empty_like(map));
  Tensor grad_weights = torch::stable::new_empty(rows, {clips.batch, count, clips.positions()});
  Tensor grad_values = torch::stable::new_empty(rows, {clips.batch, count, clips.channels});
  Tensor grad_shift = torch::stable::new_empty(rows, {clips.channels});
  Tensor grad_gain = torch::stable::new_empty(rows, {clips.channels});
  Tensor grad_bias = torch::stable::new_empty(rows, {clips.channels});
  dispatch_floating(in.visual.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kTpaviKernels<T>).fuse_block_backward;
    const auto scratch_size = AVSKERNELS_ACTIVE(kTpaviKernels<T>).fuse_backward_scratch;
    const std::vector<A> packed = pack_all<T>(factors);
    const int64_t channels = clips.channels, size = (count + 1) * channels;
    std::vector<A> value_parts(clips.tasks() * size), norm_parts(clips.tasks() * 2 * channels);
    for_each_block<A>(
        clips, scratch_size(count, channels, clips.blocks.size),
        [&](int64_t task, const Block& block, A* scratch) {
          const int64_t statistic = normalised ? block.clip * statistics + block.position : 0;
          A* norm = norm_parts.data() + task * 2 * channels;
          kernel({.grad = block.view(grads.const_data_ptr<T>(), channels),
                  .visual = block.view(map.const_data_ptr<T>(), channels),
                  .weights = block.view(rows.const_data_ptr<A>(), count),
                  .values = factors.const_data_ptr<A>() + block.clip * count * channels,
                  .packed_values = packed.data() + block.clip * count * channels,
                  .shift = start.const_data_ptr<A>(),
                  .norm_weight = normalised ? gain.const_data_ptr<A>() : nullptr,
                  .mean = average.const_data_ptr<A>() + statistic,
                  .rstd = inverse.const_data_ptr<A>() + statistic,
                  .grad_visual = block.view(grad_visual.mutable_data_ptr<T>(), channels),
                  .grad_weights = block.view(grad_weights.mutable_data_ptr<A>(), count),
                  .grad_values = value_parts.data() + task * size,
                  .grad_norm_weight = norm,
                  .grad_norm_bias = norm + channels},
                 scratch);
        });
    std::vector<A> clip_parts(clips.batch * size), shift_parts(clips.batch * channels),
        norm(2 * channels);
    sum_parts(value_parts.data(), clips.batch, clips.frames * clips.blocks.count, size,
              clip_parts.data());
    for (int64_t b = 0; b < clips.batch; ++b) {
      const A* own = clip_parts.data() + b * size;
      std::copy(own, own + count * channels,
                grad_values.mutable_data_ptr<A>() + b * count * channels);
      std::copy(own + count * channels, own + size, shift_parts.data() + b * channels);
    }
    sum_parts(shift_parts.data(), 1, clips.batch, channels, grad_shift.mutable_data_ptr<A>());
    sum_parts(norm_parts.data(), 1, clips.tasks(), 2 * channels, norm.data());
    std::copy(norm.begin(), norm.begin() + channels, grad_gain.mutable_data_ptr<A>());
    std::copy(norm.begin() + channels, norm.end(), grad_bias.mutable_data_ptr<A>());
  });
  return {grad_visual, grad_weights, grad_values, grad_shift, grad_gain, grad_bias};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::Tpavi>(m);
  avskernels::define<avskernels::TpaviScores>(m);
  avskernels::define<avskernels::TpaviScoresBackward>(m);
  avskernels::define<avskernels::TpaviFuse>(m);
  avskernels::define<avskernels::TpaviFuseBackward>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::tpavi_scores_cpu>(m);
  avskernels::implement<&avskernels::tpavi_scores_backward_cpu>(m);
  avskernels::implement<&avskernels::tpavi_fuse_cpu>(m);
  avskernels::implement<&avskernels::tpavi_fuse_backward_cpu>(m);
}
