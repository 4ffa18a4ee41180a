// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/operator.h"
#include "common/parallel.h"
#include "common/tensors.h"
#include "common/view.h"
#include "deformable_attention/deformable_attention.h"

namespace avskernels {

// The L * P samples of a query and head: what all queries and heads have in common (the samples'
// maps), and scratch for what is each one's own (the four pixels of a sample). Arrays are padded to
// whole vectors.
template <typename T>
struct DeformableSamples {
  int64_t count;
  const T* width;
  const T* height;
  const int32_t* first;
  int32_t* token[4];  // -1 in the first for a sample that is off the map
  T* weight[4];       // bilinear times attention
};

// Scratch for one head: its value and gradient by token, one row of the output's gradient, and the
// products of every sample's four pixels with that row. Rows are padded to whole vectors.
template <typename T>
struct DeformableScratch {
  int64_t dim;
  T* value;       // [tokens, dim]
  T* grad_value;  // [tokens, dim]
  T* grad_row;    // [dim]
  T* dot[4];      // [L * P]
};

// One head of one image. Where an array has a dimension of heads, it is given from this head on.
template <typename T, typename A = accumulate_t<T>>
struct DeformableJob {
  const DeformableShape& shape;
  DeformableSamples<A> samples;
  View<const T> value;          // [S, D]
  const A* sampling_locations;  // [Q, heads, L, P, 2]
  const A* attention_weights;   // [Q, heads, L, P]
  T* output;                    // [Q, heads, D]
};

template <typename T, typename A = accumulate_t<T>>
struct DeformableGradientJob {
  const DeformableShape& shape;
  DeformableSamples<A> samples;
  DeformableScratch<A> scratch;
  const T* grad_output;         // [Q, heads, D]
  const T* value;               // [S, heads, D]
  const A* sampling_locations;  // [Q, heads, L, P, 2]
  const A* attention_weights;   // [Q, heads, L, P]
  T* grad_value;                // as value
  A* grad_locations;            // as sampling_locations
  A* grad_attention;            // as attention_weights
};

// Neighbouring levels: their samples of a query and head, and their tokens.
struct LevelRange {
  int64_t first_sample, last_sample, first_token, last_token;
};

template <typename T>
struct DeformableKernels {
  void (*rows)(const DeformableJob<T>& job, int64_t begin, int64_t end);
  void (*gradients)(const DeformableGradientJob<T>& job, const LevelRange& levels);
};

}  // namespace avskernels

#define AVSKERNELS_KERNEL "deformable_attention/deformable_attention.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

constexpr int64_t kQueryBlock = 64;
constexpr int64_t kMostLanes = 16;

template <typename T>
class SampleBuffer {
 public:
  SampleBuffer(const std::vector<Level>& levels, int64_t points)
      : count_(levels.size() * points),
        padded_(count_ + kMostLanes),
        integers_(5 * padded_),
        numbers_(6 * padded_) {
    for (int64_t i = 0; i < count_; ++i) {
      const Level& level = levels[i / points];
      numbers_[i] = static_cast<T>(level.width);
      numbers_[padded_ + i] = static_cast<T>(level.height);
      integers_[i] = static_cast<int32_t>(level.first);
    }
  }

  DeformableSamples<T> samples() {
    const auto integers = [&](int row) { return integers_.data() + row * padded_; };
    const auto numbers = [&](int row) { return numbers_.data() + row * padded_; };
    return {count_,
            numbers(0),
            numbers(1),
            integers(0),
            {integers(1), integers(2), integers(3), integers(4)},
            {numbers(2), numbers(3), numbers(4), numbers(5)}};
  }

 private:
  int64_t count_;
  int64_t padded_;
  std::vector<int32_t> integers_;
  std::vector<T> numbers_;
};

template <typename T>
class ScratchBuffer {
 public:
  ScratchBuffer(const DeformableShape& shape, int64_t tokens)
      : dim_((shape.dim + kMostLanes - 1) / kMostLanes * kMostLanes),
        tokens_(tokens),
        padded_(shape.levels * shape.points + kMostLanes),
        numbers_((2 * tokens + 1) * dim_ + 4 * padded_) {}

  DeformableScratch<T> scratch() {
    T* const value = numbers_.data();
    T* const grad_value = value + tokens_ * dim_;
    T* const grad_row = grad_value + tokens_ * dim_;
    T* const dot = grad_row + dim_;
    return {dim_,
            value,
            grad_value,
            grad_row,
            {dot, dot + padded_, dot + 2 * padded_, dot + 3 * padded_}};
  }

 private:
  int64_t dim_;
  int64_t tokens_;
  int64_t padded_;
  std::vector<T> numbers_;
};

// The value of one head, where that is worth it copied together: rows that lie heads * D apart
// share a few sets of every cache (1 KiB apart: an eighth of the first level).
template <typename T>
class HeadCopy {
 public:
  explicit HeadCopy(const DeformableShape& shape)
      : tokens_(shape.tokens), dim_(shape.dim), stride_(shape.heads * shape.dim) {
    const int64_t reads = 4 * shape.queries * shape.levels * shape.points;
    if (shape.heads > 1 && reads >= shape.tokens) {
      copied_.resize(tokens_ * dim_);
    }
  }

  // `value`: [S, heads, D], from the head on.
  void use(const T* value) {
    if (value == value_) {
      return;
    }
    value_ = value;
    if (!copied_.empty()) {
      for (int64_t token = 0; token < tokens_; ++token) {
        std::memcpy(copied_.data() + token * dim_, value + token * stride_, dim_ * sizeof(T));
      }
    }
  }

  const T* data() const { return copied_.empty() ? value_ : copied_.data(); }
  int64_t stride() const { return copied_.empty() ? stride_ : dim_; }

 private:
  int64_t tokens_;
  int64_t dim_;
  int64_t stride_;
  const T* value_ = nullptr;
  std::vector<T> copied_;
};

}  // namespace

Tensor deformable_attention_cpu(const DeformableAttention& in) {
  const DeformableShape shape = deformable_shape(in);
  const std::vector<Level> levels = read_levels(dense(in.spatial_shapes), shape.tokens);
  const Tensor values = dense(in.value);
  const Tensor locations = dense(in.sampling_locations);
  const Tensor weights = dense(in.attention_weights);
  Tensor output =
      torch::stable::new_empty(in.value, {shape.batch, shape.queries, shape.heads * shape.dim});
  dispatch_floating(in.value.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kDeformableKernels<T>).rows;
    const int64_t count = shape.levels * shape.points;
    const int64_t blocks = (shape.queries + kQueryBlock - 1) / kQueryBlock;
    const T* value_data = values.const_data_ptr<T>();
    const A* location_data = locations.const_data_ptr<A>();
    const A* weight_data = weights.const_data_ptr<A>();
    T* output_data = output.mutable_data_ptr<T>();
    // A head at a time: its part of the value is what stays in the cache.
    parallel_for(shape.batch * shape.heads * blocks, 1, [&](int64_t begin, int64_t end) {
      SampleBuffer<A> buffer(levels, shape.points);
      HeadCopy<T> copy(shape);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t first = item % blocks * kQueryBlock;
        const int64_t head = item / blocks % shape.heads;
        const int64_t image = item / blocks / shape.heads;
        const int64_t row = image * shape.queries * shape.heads + head;
        copy.use(value_data + (image * shape.tokens * shape.heads + head) * shape.dim);
        kernel({.shape = shape,
                .samples = buffer.samples(),
                .value = {copy.data(), copy.stride(), shape.tokens, shape.dim},
                .sampling_locations = location_data + row * count * 2,
                .attention_weights = weight_data + row * count,
                .output = output_data + row * shape.dim},
               first, std::min(first + kQueryBlock, shape.queries));
      }
    });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward_cpu(
    const DeformableAttentionBackward& in) {
  const DeformableShape shape = deformable_shape(in);
  const std::vector<Level> levels = read_levels(dense(in.spatial_shapes), shape.tokens);
  const Tensor grads = dense(in.grad_output);
  const Tensor values = dense(in.value);
  const Tensor locations = dense(in.sampling_locations);
  const Tensor weights = dense(in.attention_weights);
  Tensor grad_value = torch::stable::new_empty(in.value, in.value.sizes());
  Tensor grad_locations =
      torch::stable::new_empty(in.sampling_locations, in.sampling_locations.sizes());
  Tensor grad_weights =
      torch::stable::new_empty(in.attention_weights, in.attention_weights.sizes());
  dispatch_floating(in.value.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kDeformableKernels<T>).gradients;
    const int64_t count = shape.levels * shape.points;
    const T* grad_data = grads.const_data_ptr<T>();
    const T* value_data = values.const_data_ptr<T>();
    const A* location_data = locations.const_data_ptr<A>();
    const A* weight_data = weights.const_data_ptr<A>();
    T* grad_value_data = grad_value.mutable_data_ptr<T>();
    A* grad_location_data = grad_locations.mutable_data_ptr<A>();
    A* grad_weight_data = grad_weights.mutable_data_ptr<A>();
    const auto first_token = [&](int64_t level) {
      return level == shape.levels ? shape.tokens : levels[level].first;
    };
    // Levels of a head share no pixel and no sample: a thread takes some of them, and nobody else
    // adds to its gradients.
    parallel_for(shape.batch * shape.heads * shape.levels, 1, [&](int64_t begin, int64_t end) {
      SampleBuffer<A> samples(levels, shape.points);
      ScratchBuffer<A> buffer(shape, shape.tokens);
      for (int64_t item = begin; item < end;) {
        const int64_t first = item % shape.levels;
        const int64_t last = std::min(first + end - item, shape.levels);
        const int64_t head = item / shape.levels % shape.heads;
        const int64_t image = item / shape.levels / shape.heads;
        const int64_t token = (image * shape.tokens * shape.heads + head) * shape.dim;
        const int64_t row = image * shape.queries * shape.heads + head;
        kernel({.shape = shape,
                .samples = samples.samples(),
                .scratch = buffer.scratch(),
                .grad_output = grad_data + row * shape.dim,
                .value = value_data + token,
                .sampling_locations = location_data + row * count * 2,
                .attention_weights = weight_data + row * count,
                .grad_value = grad_value_data + token,
                .grad_locations = grad_location_data + row * count * 2,
                .grad_attention = grad_weight_data + row * count},
               {.first_sample = first * shape.points,
                .last_sample = last * shape.points,
                .first_token = first_token(first),
                .last_token = first_token(last)});
        item += last - first;
      }
    });
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::DeformableAttention>(m);
  avskernels::define<avskernels::DeformableAttentionBackward>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::deformable_attention_cpu>(m);
  avskernels::implement<&avskernels::deformable_attention_backward_cpu>(m);
}
