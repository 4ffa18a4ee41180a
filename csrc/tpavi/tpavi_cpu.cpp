// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "attention_pool/pooling.h"
#include "common/check.h"
#include "common/large_output.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "tpavi/tpavi.h"

#define AVSKERNELS_KERNEL "tpavi/tpavi_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

constexpr const char* kOp = "tpavi";

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

// One block: where it is, and where in the arrays of its clip.
struct Block {
  int64_t clip, frame, position, length, map_offset;

  Block(const Clips& clips, int64_t task) {
    const int64_t block = task % clips.blocks.count;
    frame = task / clips.blocks.count % clips.frames;
    clip = task / clips.blocks.count / clips.frames;
    position = frame * clips.pixels + clips.blocks.begin(block);
    length = clips.blocks.length(block);
    map_offset = clip * clips.channels * clips.positions() + position;
  }
};

Tensor dense(const char* name, const Tensor& tensor, const std::vector<Dim>& dims,
             ScalarType dtype) {
  expect(kOp, name, tensor, dims, {dtype});
  return torch::stable::contiguous(tensor);
}

void check_visual(const Tensor& visual) {
  expect(kOp, "visual", visual, {"B", "C", "T", "H", "W"}, kFloatingPoint);
}

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

std::tuple<Tensor, Tensor> tpavi_scores_cpu(const Tensor& visual, const Tensor& keys,
                                            const std::optional<Tensor>& offsets) {
  check_visual(visual);
  const Clips clips(visual, 1);
  const ScalarType dtype = accumulate_type(visual.scalar_type());
  const Tensor map = torch::stable::contiguous(visual);
  const Tensor rows = dense("keys", keys, {clips.batch, "R", clips.channels}, dtype);
  const int64_t count = rows.size(1);
  const std::optional<Tensor> start =
      offsets ? std::optional(dense("offsets", *offsets, {clips.batch, count}, dtype))
              : std::nullopt;
  Tensor scores = torch::stable::new_empty(rows, {clips.batch, count, clips.positions()});
  Tensor sums = torch::stable::new_empty(rows, {clips.batch, clips.frames, clips.channels});
  dispatch_floating(visual.scalar_type(), kOp, [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel =
        select_isa(&portable::score_block<T>, &avx2::score_block<T>, &avx512::score_block<T>);
    const std::vector<A> packed = pack_all<T>(rows);
    std::vector<A> parts(clips.tasks() * clips.channels);
    for_each_block<A>(clips, std::max<int64_t>(1, count) * clips.blocks.size,
                      [&](int64_t task, const Block& block, A* scratch) {
                        kernel(map.const_data_ptr<T>() + block.map_offset, clips.positions(),
                               packed.data() + block.clip * count * clips.channels,
                               start ? start->const_data_ptr<A>() + block.clip * count : nullptr,
                               count, clips.channels, block.length, scratch,
                               scores.mutable_data_ptr<A>() +
                                   block.clip * count * clips.positions() + block.position,
                               clips.positions(), parts.data() + task * clips.channels);
                      });
    sum_parts(parts.data(), clips.batch * clips.frames, clips.blocks.count, clips.channels,
              sums.mutable_data_ptr<A>());
  });
  return {scores, sums};
}

Tensor tpavi_scores_backward_cpu(const Tensor& grad_visual, const Tensor& visual,
                                 const Tensor& keys, const Tensor& grad_scores,
                                 const Tensor& grad_sums) {
  check_visual(visual);
  const Clips clips(visual, 2);
  const ScalarType dtype = accumulate_type(visual.scalar_type());
  const Tensor map = torch::stable::contiguous(visual);
  const Tensor rows = dense("keys", keys, {clips.batch, "R", clips.channels}, dtype);
  const int64_t count = rows.size(1);
  const Tensor scores =
      dense("grad_scores", grad_scores, {clips.batch, count, clips.positions()}, dtype);
  const Tensor sums =
      dense("grad_sums", grad_sums, {clips.batch, clips.frames, clips.channels}, dtype);
  expect(kOp, "grad_visual", grad_visual,
         {clips.batch, clips.channels, clips.frames, visual.size(3), visual.size(4)},
         {visual.scalar_type()});
  if (!grad_visual.is_contiguous()) fail(kOp, ": expected grad_visual contiguous, got strides");
  Tensor grad_keys = torch::stable::new_empty(rows, {clips.batch, count, clips.channels});
  dispatch_floating(visual.scalar_type(), kOp, [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel =
        select_isa(&portable::score_block_backward<T>, &avx2::score_block_backward<T>,
                   &avx512::score_block_backward<T>);
    const int64_t size = count * clips.channels;
    std::vector<A> parts(clips.tasks() * size);
    for_each_block<A>(
        clips, count * clips.blocks.size, [&](int64_t task, const Block& block, A* scratch) {
          kernel(
              map.const_data_ptr<T>() + block.map_offset, clips.positions(),
              rows.const_data_ptr<A>() + block.clip * size,
              scores.const_data_ptr<A>() + block.clip * count * clips.positions() + block.position,
              clips.positions(),
              sums.const_data_ptr<A>() + (block.clip * clips.frames + block.frame) * clips.channels,
              count, clips.channels, block.length, scratch,
              grad_visual.mutable_data_ptr<T>() + block.map_offset, parts.data() + task * size);
        });
    sum_parts(parts.data(), clips.batch, clips.frames * clips.blocks.count, size,
              grad_keys.mutable_data_ptr<A>());
  });
  return grad_keys;
}

std::tuple<Tensor, Tensor, Tensor> tpavi_fuse_cpu(const Tensor& visual, const Tensor& weights,
                                                  const Tensor& values, const Tensor& shift,
                                                  const std::optional<Tensor>& norm_weight,
                                                  const std::optional<Tensor>& norm_bias,
                                                  double norm_eps) {
  check_visual(visual);
  const Clips clips(visual, 2);
  const ScalarType dtype = accumulate_type(visual.scalar_type());
  const Tensor map = torch::stable::contiguous(visual);
  const Tensor rows = dense("weights", weights, {clips.batch, "R", clips.positions()}, dtype);
  const int64_t count = rows.size(1);
  const Tensor factors = dense("values", values, {clips.batch, count, clips.channels}, dtype);
  const Tensor start = dense("shift", shift, {clips.channels}, dtype);
  const bool normalised = norm_weight.has_value() && norm_bias.has_value();
  const Tensor gain =
      normalised ? dense("norm_weight", *norm_weight, {clips.channels}, dtype) : start;
  const Tensor bias = normalised ? dense("norm_bias", *norm_bias, {clips.channels}, dtype) : start;
  const int64_t statistics = normalised ? clips.positions() : 0;
  Tensor fused = in_huge_pages(torch::stable::empty_like(map));
  const bool stream = past_caches(fused, visual.size(3) * visual.size(4));
  Tensor mean = torch::stable::new_empty(rows, {clips.batch, statistics});
  Tensor rstd = torch::stable::new_empty(rows, {clips.batch, statistics});
  dispatch_floating(visual.scalar_type(), kOp, [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel =
        select_isa(&portable::fuse_block<T>, &avx2::fuse_block<T>, &avx512::fuse_block<T>);
    const auto scratch_size =
        select_isa(&portable::fuse_scratch<A>, &avx2::fuse_scratch<A>, &avx512::fuse_scratch<A>);
    for_each_block<A>(
        clips, scratch_size(count, clips.channels, clips.blocks.size),
        [&](int64_t, const Block& block, A* scratch) {
          const int64_t statistic = normalised ? block.clip * statistics + block.position : 0;
          kernel(map.const_data_ptr<T>() + block.map_offset, clips.positions(),
                 rows.const_data_ptr<A>() + block.clip * count * clips.positions() + block.position,
                 clips.positions(),
                 factors.const_data_ptr<A>() + block.clip * count * clips.channels,
                 start.const_data_ptr<A>(), normalised ? gain.const_data_ptr<A>() : nullptr,
                 bias.const_data_ptr<A>(), static_cast<A>(norm_eps), count, clips.channels,
                 block.length, scratch, stream, fused.mutable_data_ptr<T>() + block.map_offset,
                 mean.mutable_data_ptr<A>() + statistic, rstd.mutable_data_ptr<A>() + statistic);
        });
  });
  return {fused, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> tpavi_fuse_backward_cpu(
    const Tensor& grad, const Tensor& visual, const Tensor& weights, const Tensor& values,
    const Tensor& shift, const std::optional<Tensor>& norm_weight, const Tensor& mean,
    const Tensor& rstd) {
  check_visual(visual);
  const Clips clips(visual, 3);
  const ScalarType dtype = accumulate_type(visual.scalar_type());
  const Tensor map = torch::stable::contiguous(visual);
  const Tensor grads = dense(
      "grad", grad, {clips.batch, clips.channels, clips.frames, visual.size(3), visual.size(4)},
      visual.scalar_type());
  const Tensor rows = dense("weights", weights, {clips.batch, "R", clips.positions()}, dtype);
  const int64_t count = rows.size(1);
  const Tensor factors = dense("values", values, {clips.batch, count, clips.channels}, dtype);
  const Tensor start = dense("shift", shift, {clips.channels}, dtype);
  const Tensor gain =
      norm_weight ? dense("norm_weight", *norm_weight, {clips.channels}, dtype) : start;
  const int64_t statistics = norm_weight ? clips.positions() : 0;
  const Tensor average = dense("mean", mean, {clips.batch, statistics}, dtype);
  const Tensor inverse = dense("rstd", rstd, {clips.batch, statistics}, dtype);
  Tensor grad_visual = in_huge_pages(torch::stable::empty_like(map));
  Tensor grad_weights = torch::stable::new_empty(rows, {clips.batch, count, clips.positions()});
  Tensor grad_values = torch::stable::new_empty(rows, {clips.batch, count, clips.channels});
  Tensor grad_shift = torch::stable::new_empty(rows, {clips.channels});
  Tensor grad_gain = torch::stable::new_empty(rows, {clips.channels});
  Tensor grad_bias = torch::stable::new_empty(rows, {clips.channels});
  dispatch_floating(visual.scalar_type(), kOp, [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = select_isa(&portable::fuse_block_backward<T>, &avx2::fuse_block_backward<T>,
                                   &avx512::fuse_block_backward<T>);
    const auto scratch_size =
        select_isa(&portable::fuse_backward_scratch<A>, &avx2::fuse_backward_scratch<A>,
                   &avx512::fuse_backward_scratch<A>);
    const std::vector<A> packed = pack_all<T>(factors);
    const int64_t channels = clips.channels, size = (count + 1) * channels;
    std::vector<A> value_parts(clips.tasks() * size), norm_parts(clips.tasks() * 2 * channels);
    for_each_block<A>(
        clips, scratch_size(count, channels, clips.blocks.size),
        [&](int64_t task, const Block& block, A* scratch) {
          const int64_t row = block.clip * count * clips.positions() + block.position;
          const int64_t statistic = norm_weight ? block.clip * statistics + block.position : 0;
          A* norm = norm_parts.data() + task * 2 * channels;
          kernel(grads.const_data_ptr<T>() + block.map_offset,
                 map.const_data_ptr<T>() + block.map_offset, clips.positions(),
                 rows.const_data_ptr<A>() + row, clips.positions(),
                 factors.const_data_ptr<A>() + block.clip * count * channels,
                 packed.data() + block.clip * count * channels, start.const_data_ptr<A>(),
                 norm_weight ? gain.const_data_ptr<A>() : nullptr,
                 average.const_data_ptr<A>() + statistic, inverse.const_data_ptr<A>() + statistic,
                 count, channels, block.length, scratch,
                 grad_visual.mutable_data_ptr<T>() + block.map_offset,
                 grad_weights.mutable_data_ptr<A>() + row, clips.positions(),
                 value_parts.data() + task * size, norm, norm + channels);
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

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("_tpavi_scores", TORCH_BOX(&avskernels::tpavi_scores_cpu));
  m.impl("_tpavi_scores_backward", TORCH_BOX(&avskernels::tpavi_scores_backward_cpu));
  m.impl("_tpavi_fuse", TORCH_BOX(&avskernels::tpavi_fuse_cpu));
  m.impl("_tpavi_fuse_backward", TORCH_BOX(&avskernels::tpavi_fuse_backward_cpu));
}
