// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/large_output.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tensors.h"
#include "dynamic_mask_conv/dynamic_mask_conv.h"

namespace avskernels {
namespace {

// One channel of an image, or one mask: pixel (y, x) is data[y * row_step + x * column_step].
template <typename T>
struct MaskPlane {
  const T* data;
  int64_t row_step;
  int64_t column_step;

  bool contiguous(int64_t width) const { return column_step == 1 && row_step == width; }
};

// Some neighbouring pixels of one image, and its queries queries[first_query..last_query).
struct MaskBlock {
  int64_t image;
  int64_t first_pixel;
  int64_t pixels;
  int64_t first_query;
  int64_t last_query;
};

// Some neighbouring blocks of one image, whose parameter gradients are summed together.
struct MaskChunk {
  int64_t image;
  int64_t number;
  int64_t first_block;  // of all images' blocks
  int64_t last_block;
};

// What the kernels need to know; all pointers are borrowed.
template <typename T>
struct MaskProblem {
  using A = accumulate_t<T>;

  int64_t images, channels, width, pixels, num_queries, params_per_query;
  std::vector<MaskLayer> layers;
  int64_t widest;  // layer, in outputs
  const T* features;
  int64_t feature_steps[4];
  const T* grad_masks;    // backward only
  int64_t grad_steps[4];  // of [images, queries per image, H, W]; one image for a query list
  int64_t queries_per_grad_image;
  const A* params;  // [queries, P]
  const A* points;  // [queries, 2] or null
  const A* scale;   // [queries] or null
  const A* zeros;   // [max(widest, channels)]
  A stride;
  bool coords_first;
  std::vector<int64_t> queries;      // sorted by image
  std::vector<int64_t> first_query;  // [images + 1], into queries
  int64_t block_tiles;               // tiles of a block
  int64_t blocks_per_image;
  int64_t chunks_per_image;

  MaskPlane<T> feature_plane(int64_t image, int64_t channel) const {
    return {features + image * feature_steps[0] + channel * feature_steps[1], feature_steps[2],
            feature_steps[3]};
  }

  MaskPlane<T> grad_plane(int64_t query) const {
    return {grad_masks + query / queries_per_grad_image * grad_steps[0] +
                query % queries_per_grad_image * grad_steps[1],
            grad_steps[2], grad_steps[3]};
  }

  MaskBlock block(int64_t index, int64_t tile) const {
    const int64_t image = index / blocks_per_image;
    const int64_t first = index % blocks_per_image * block_tiles * tile;
    return {image, first, std::min(block_tiles * tile, pixels - first), first_query[image],
            first_query[image + 1]};
  }

  MaskChunk chunk(int64_t index) const {
    const int64_t image = index / chunks_per_image;
    const int64_t number = index % chunks_per_image;
    const int64_t start = image * blocks_per_image;
    return {image, number, start + number * blocks_per_image / chunks_per_image,
            start + (number + 1) * blocks_per_image / chunks_per_image};
  }
};

template <typename T>
struct MaskKernels {
  int64_t tile;  // pixels
  void (*forward)(const MaskProblem<T>& problem, T* masks, int64_t begin, int64_t end);
  void (*backward)(const MaskProblem<T>& problem, T* grad_features, accumulate_t<T>* partial_params,
                   int64_t begin, int64_t end);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "dynamic_mask_conv/dynamic_mask_conv.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

constexpr int64_t kChunks = 32;  // of all images together, at least: what runs in parallel backward

// Tensors that a problem points into.
struct MaskOperands {
  Tensor params;
  std::optional<Tensor> points, scale;
};

// Sorts the queries by image, keeping their order: first_query and queries of the problem.
template <typename T>
void sort_queries(const std::optional<Tensor>& image_index, MaskProblem<T>& problem) {
  const int64_t count = problem.num_queries;
  std::vector<int64_t> image_of(count);
  if (image_index) {
    const Tensor index = dense(*image_index);
    std::copy_n(index.const_data_ptr<int64_t>(), count, image_of.begin());
  } else {
    for (int64_t q = 0; q < count; ++q) image_of[q] = q / (count / problem.images);
  }
  if (count > 0) {
    const auto [low, high] = std::minmax_element(image_of.begin(), image_of.end());
    check(*low >= 0 && *high < problem.images, "dynamic_mask_conv: expected image_index in 0..",
          problem.images - 1, ", got ", *low, "..", *high);
  }
  problem.first_query.assign(problem.images + 1, 0);
  for (const int64_t image : image_of) ++problem.first_query[image + 1];
  for (int64_t b = 0; b < problem.images; ++b) {
    problem.first_query[b + 1] += problem.first_query[b];
  }
  problem.queries.resize(count);
  std::vector<int64_t> next(problem.first_query.begin(), problem.first_query.end() - 1);
  for (int64_t q = 0; q < count; ++q) problem.queries[next[image_of[q]]++] = q;
}

template <typename T, typename Arguments>
MaskProblem<T> mask_problem(const Arguments& in, const MaskOperands& operands) {
  using A = accumulate_t<T>;
  const Tensor& features = in.features;
  MaskProblem<T> problem{};
  problem.images = features.size(0);
  problem.channels = features.size(1);
  problem.width = features.size(3);
  problem.pixels = features.size(2) * features.size(3);
  problem.layers = mask_layers(in);
  problem.params_per_query = problem.layers.back().bias + 1;
  problem.num_queries = operands.params.numel() / problem.params_per_query;
  for (const MaskLayer& layer : problem.layers) {
    problem.widest = std::max(problem.widest, layer.outputs);
  }
  problem.features = features.const_data_ptr<T>();
  for (int64_t i = 0; i < 4; ++i) problem.feature_steps[i] = features.stride(i);
  problem.params = operands.params.template const_data_ptr<A>();
  problem.points = data_or_null<A>(operands.points);
  problem.scale = data_or_null<A>(operands.scale);
  problem.stride = static_cast<A>(in.stride);
  problem.coords_first = in.coords_first;
  sort_queries(in.image_index, problem);
  return problem;
}

// Blocks of about `bytes` of inputs, at most `most` tiles.
template <typename T>
void divide_into_blocks(int64_t tile, int64_t bytes, int64_t most, MaskProblem<T>& problem) {
  const int64_t tile_bytes = problem.layers.front().inputs * tile * sizeof(accumulate_t<T>);
  const int64_t tiles = (problem.pixels + tile - 1) / tile;
  problem.block_tiles = std::clamp<int64_t>(bytes / tile_bytes, 1, std::min(most, tiles));
  problem.blocks_per_image = (tiles + problem.block_tiles - 1) / problem.block_tiles;
}

template <typename Arguments>
MaskOperands mask_operands(const Arguments& in) {
  const ScalarType type = accumulate_type(in.features.scalar_type());
  return {dense(torch::stable::to(in.params, type)), dense(in.reference_points),
          dense(in.coord_scale)};
}

}  // namespace

Tensor dynamic_mask_conv_cpu(const DynamicMaskConv& in) {
  std::vector<int64_t> sizes(in.params.sizes().begin(), in.params.sizes().end() - 1);
  sizes.insert(sizes.end(), {in.features.size(2), in.features.size(3)});
  Tensor masks = in_huge_pages(torch::stable::new_empty(in.features, sizes));
  const MaskOperands operands = mask_operands(in);
  dispatch_floating(in.features.scalar_type(), [&]<typename T>() {
    auto problem = mask_problem<T>(in, operands);
    if (masks.numel() == 0) return;
    const MaskKernels<T>& kernels = AVSKERNELS_ACTIVE(kMaskKernels<T>);
    divide_into_blocks(kernels.tile, 256 << 10, 16, problem);
    T* out = masks.mutable_data_ptr<T>();
    parallel_for(problem.images * problem.blocks_per_image, 1,
                 [&](int64_t begin, int64_t end) { kernels.forward(problem, out, begin, end); });
  });
  return masks;
}

std::tuple<Tensor, Tensor> dynamic_mask_conv_backward_cpu(const DynamicMaskConvBackward& in) {
  const Tensor& grad_masks = in.grad_masks;
  Tensor grad_features = in_huge_pages(torch::stable::new_empty(in.features, in.features.sizes()));
  Tensor grad_params = torch::stable::new_empty(in.params, in.params.sizes());
  const MaskOperands operands = mask_operands(in);
  dispatch_floating(in.features.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    auto problem = mask_problem<T>(in, operands);
    if (problem.pixels == 0 || problem.num_queries == 0) {
      torch::stable::zero_(grad_features);
      torch::stable::zero_(grad_params);
      return;
    }
    problem.grad_masks = grad_masks.const_data_ptr<T>();
    const int64_t missing = 4 - grad_masks.dim();  // a query list has no dimension of images
    for (int64_t i = missing; i < 4; ++i) problem.grad_steps[i] = grad_masks.stride(i - missing);
    problem.queries_per_grad_image = grad_masks.size(1 - missing);
    const std::vector<A> zeros(std::max(problem.widest, problem.channels));
    problem.zeros = zeros.data();
    const MaskKernels<T>& kernels = AVSKERNELS_ACTIVE(kMaskKernels<T>);
    divide_into_blocks(kernels.tile, 320 << 10, 6, problem);
    // A fixed number of partial sums, whatever the number of threads, so that no bit depends on it.
    problem.chunks_per_image =
        std::min((kChunks + problem.images - 1) / problem.images, problem.blocks_per_image);
    const int64_t partial_size = problem.num_queries * problem.params_per_query;
    const Scratch<A> partial(problem.chunks_per_image * partial_size);
    T* out = grad_features.mutable_data_ptr<T>();
    parallel_for(problem.images * problem.chunks_per_image, 1, [&](int64_t begin, int64_t end) {
      kernels.backward(problem, out, partial.data(), begin, end);
    });
    T* out_params = grad_params.mutable_data_ptr<T>();
    parallel_for(partial_size, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        A sum = 0;
        for (int64_t chunk = 0; chunk < problem.chunks_per_image; ++chunk) {
          sum += partial.data()[chunk * partial_size + i];
        }
        out_params[i] = static_cast<T>(sum);
      }
    });
  });
  return {grad_features, grad_params};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::DynamicMaskConv>(m);
  avskernels::define<avskernels::DynamicMaskConvBackward>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::dynamic_mask_conv_cpu>(m);
  avskernels::implement<&avskernels::dynamic_mask_conv_backward_cpu>(m);
}
