// SPDX-License-Identifier: Apache-2.0
// Pooling of a batch of maps, block by block. Included after common/for_each_isa.h by the .cpp
// files whose kernel file includes attention_pool/attention_pool.isa.h.
#pragma once

#include <algorithm>
#include <vector>

#include "common/dispatch.h"
#include "common/scratch.h"
#include "common/view.h"

namespace avskernels {

struct PoolShape {
  int64_t batch;     // B
  int64_t rows;      // h
  int64_t channels;  // C
  int64_t pixels;    // N

  int64_t map_size() const { return channels * pixels; }
  int64_t rows_size() const { return rows * channels; }
};

// The pixels of an image in blocks that fit the second-level cache. The blocks do not depend on the
// number of threads, and their results are merged in their order.
struct PixelBlocks {
  int64_t pixels;
  int64_t size;  // of a block, but the last
  int64_t count;

  PixelBlocks(int64_t pixels, int64_t bytes_per_pixel) : pixels(pixels) {
    constexpr int64_t kCacheBytes = 512 * 1024, kUnit = 96;  // of both tile and padding
    const int64_t most = std::max(kUnit, kCacheBytes / bytes_per_pixel);
    const int64_t wanted = std::max<int64_t>(1, (pixels + most - 1) / most);
    size = std::max(kUnit, (pixels + wanted * kUnit - 1) / (wanted * kUnit) * kUnit);
    count = (pixels + size - 1) / size;
  }

  int64_t begin(int64_t block) const { return block * size; }
  int64_t length(int64_t block) const { return std::min(size, pixels - begin(block)); }
};

// A block of an image's pixels, and what its logits q.x + offset are made of.
template <typename T, typename A = accumulate_t<T>>
struct PoolBlock {
  View<const T> features;   // [C, pixels]
  int64_t rows;             // h
  const A* packed_queries;  // [h, C], as pack_rows leaves them
  const A* offsets;         // [h] or null
  const bool* mask;         // [pixels] or null
  bool softmax;
};

// What is kept of a block of pixels until all are merged.
template <typename A>
struct PoolSums {
  A* maximum;  // [h], with softmax
  A* total;    // [h], the sum of exp(logit - maximum), or of the logits
  A* sums;     // [h, C], the pixels weighted likewise
};

// The backward pass of a block.
template <typename T, typename A = accumulate_t<T>>
struct PoolGradient {
  View<const T> source;   // [C, pixels], is added to the gradient of features; may be left out
  const A* source_scale;  // [C] or null
  const A* queries;       // [2 h, C]: queries, then the gradients of the pooled rows
  const A* packed_grads;  // [h, C]: the latter, as pack_rows leaves them
  const A* normalizer;    // [h]
  const A* shift;         // [h]
  View<T> grad_features;  // [C, pixels]
  bool past_caches;       // how grad_features is written
  A* grad_queries;        // [h, C]
  A* grad_offsets;        // [h]
};

// The kernels of attention_pool.isa.h in the instruction set in use, for the operators that pool.
template <typename T, typename A = accumulate_t<T>>
struct PoolKernels {
  void (*pack_rows)(const A* rows, int64_t count, int64_t channels, A* packed);
  void (*pool_block)(const PoolBlock<T>& block, A* scratch, const PoolSums<A>& out);
  void (*merge_blocks)(const A* blocks, int64_t count, int64_t rows, int64_t channels, bool softmax,
                       A* pooled, A* normalizer);
  void (*pool_block_backward)(const PoolBlock<T>& block, const PoolGradient<T>& gradient,
                              A* scratch);
};

template <typename T>
const PoolKernels<T>& pool_kernels();

// The rows of all images, [B, h, C], and the same in the order that row_dots reads.
template <typename A>
struct PackedRows {
  std::vector<A> rows;
  std::vector<A> packed;

  template <typename Pack>
  PackedRows(const A* source, A scale, const PoolShape& shape, const Pack& pack)
      : rows(source, source + shape.batch * shape.rows_size()), packed(rows.size()) {
    for (A& value : rows) value *= scale;
    for (int64_t b = 0; b < shape.batch; ++b) {
      const int64_t first = b * shape.rows_size();
      pack(rows.data() + first, shape.rows, shape.channels, packed.data() + first);
    }
  }
};

// What the logits of a batch are made of.
template <typename T>
struct PoolInputs {
  using A = accumulate_t<T>;

  PoolShape shape;
  bool softmax;
  const T* features;  // [B, C, N]
  const A* queries;   // [B, h, C]
  A scale;            // of the queries
  const A* offsets;   // [B, h] or null
  const bool* mask;   // [B, N] or null

  PixelBlocks blocks(int64_t maps) const {
    return {shape.pixels,
            std::max<int64_t>(1, shape.channels * maps * sizeof(T) + 2 * shape.rows * sizeof(A))};
  }

  // The pixels [first, first + length) of an image and its packed queries.
  PoolBlock<T> block(int64_t b, int64_t first, int64_t length, const A* packed_queries) const {
    return {
        .features = {features + b * shape.map_size() + first, shape.pixels, shape.channels, length},
        .rows = shape.rows,
        .packed_queries = packed_queries,
        .offsets = offsets ? offsets + b * shape.rows : nullptr,
        .mask = mask ? mask + b * shape.pixels + first : nullptr,
        .softmax = softmax};
  }
};

template <typename T>
class Pooling {
 public:
  using A = accumulate_t<T>;

  const PixelBlocks blocks;

  explicit Pooling(const PoolInputs<T>& inputs)
      : blocks(inputs.blocks(1)),
        in_(inputs),
        queries_(inputs.queries, inputs.scale, inputs.shape, kernels_.pack_rows),
        partial_(inputs.shape.batch * blocks.count * partial_size()) {}

  int64_t scratch_size() const { return in_.shape.rows * blocks.size; }

  void run_block(int64_t b, int64_t block, A* scratch) {
    const int64_t rows = in_.shape.rows;
    A* out = partial_.data() + (b * blocks.count + block) * partial_size();
    kernels_.pool_block(in_.block(b, blocks.begin(block), blocks.length(block),
                                  queries_.packed.data() + b * in_.shape.rows_size()),
                        scratch, {.maximum = out, .total = out + rows, .sums = out + 2 * rows});
  }

  void merge(int64_t b, A* pooled, A* normalizer) const {  // [h, C], [h]
    kernels_.merge_blocks(partial_.data() + b * blocks.count * partial_size(), blocks.count,
                          in_.shape.rows, in_.shape.channels, in_.softmax, pooled, normalizer);
  }

 private:
  int64_t partial_size() const { return in_.shape.rows * (in_.shape.channels + 2); }

  PoolInputs<T> in_;
  const PoolKernels<T>& kernels_ = pool_kernels<T>();
  PackedRows<A> queries_;
  Scratch<A> partial_;  // of each block: maximum [h], total [h], sums [h, C]
};

template <typename T>
class PoolingBackward {
 public:
  using A = accumulate_t<T>;

  const PixelBlocks blocks;

  // grad_total [B, h] or null: the gradient of the sums of the weights without softmax.
  PoolingBackward(const PoolInputs<T>& inputs, const A* normalizer)
      : blocks(inputs.blocks(3)),
        in_(inputs),
        normalizer_(normalizer),
        queries_(inputs.queries, inputs.scale, inputs.shape, kernels_.pack_rows),
        partial_(inputs.shape.batch * blocks.count * partial_size()) {}

  int64_t scratch_size() const { return 2 * in_.shape.rows * blocks.size; }

  // Sets what one image's blocks need: the pooled rows' gradient [h, C], and what is subtracted
  // from its product with a pixel to give the logit's gradient (before the weight) [h].
  struct Image {
    std::vector<A> rows;    // queries, then gradients: [2 h, C]
    std::vector<A> packed;  // the same, each half packed
    std::vector<A> shift;   // [h]
  };

  Image image(int64_t b, const A* grad_pooled, const A* pooled, const A* grad_total) const {
    const PoolShape& shape = in_.shape;
    const int64_t size = shape.rows_size();
    const PackedRows<A> grads(grad_pooled, A(1), {1, shape.rows, shape.channels, shape.pixels},
                              kernels_.pack_rows);
    Image image;
    for (const auto& [to, queries, gradients] :
         {std::tuple(&image.rows, &queries_.rows, &grads.rows),
          std::tuple(&image.packed, &queries_.packed, &grads.packed)}) {
      to->assign(queries->begin() + b * size, queries->begin() + (b + 1) * size);
      to->insert(to->end(), gradients->begin(), gradients->end());
    }
    image.shift.assign(shape.rows, A(0));
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t c = 0; c < shape.channels && in_.softmax; ++c) {
        image.shift[r] += grad_pooled[r * shape.channels + c] * pooled[r * shape.channels + c];
      }
      if (grad_total != nullptr) image.shift[r] -= grad_total[r];
    }
    return image;
  }

  // source [C, N] and scale [C], or null: what is added to the gradient of the features.
  void run_block(int64_t b, int64_t block, const Image& image, const T* source, const A* scale,
                 A* scratch, bool past_caches, T* grad_features) {
    const PoolShape& shape = in_.shape;
    const int64_t first = blocks.begin(block), length = blocks.length(block);
    A* out = partial_.data() + (b * blocks.count + block) * partial_size();
    kernels_.pool_block_backward(
        in_.block(b, first, length, image.packed.data()),
        {.source = {source ? source + first : nullptr, shape.pixels, shape.channels, length},
         .source_scale = scale,
         .queries = image.rows.data(),
         .packed_grads = image.packed.data() + shape.rows_size(),
         .normalizer = normalizer_ + b * shape.rows,
         .shift = image.shift.data(),
         .grad_features = {grad_features + first, shape.pixels, shape.channels, length},
         .past_caches = past_caches,
         .grad_queries = out + shape.rows,
         .grad_offsets = out},
        scratch);
  }

  // The sums over the blocks of the queries' gradients [h, C], not yet scaled, and of the offsets'.
  void merge(int64_t b, A* grad_queries, A* grad_offsets) const {
    const PoolShape& shape = in_.shape;
    std::fill(grad_queries, grad_queries + shape.rows_size(), A(0));
    std::fill(grad_offsets, grad_offsets + shape.rows, A(0));
    for (int64_t block = 0; block < blocks.count; ++block) {
      const A* own = partial_.data() + (b * blocks.count + block) * partial_size();
      for (int64_t r = 0; r < shape.rows; ++r) grad_offsets[r] += own[r];
      for (int64_t i = 0; i < shape.rows_size(); ++i) grad_queries[i] += own[shape.rows + i];
    }
  }

 private:
  int64_t partial_size() const { return in_.shape.rows * (in_.shape.channels + 1); }

  PoolInputs<T> in_;
  const PoolKernels<T>& kernels_ = pool_kernels<T>();
  const A* normalizer_;  // [B, h]
  PackedRows<A> queries_;
  Scratch<A> partial_;  // of each block: the gradients of the offsets [h], the queries [h, C]
};

}  // namespace avskernels
