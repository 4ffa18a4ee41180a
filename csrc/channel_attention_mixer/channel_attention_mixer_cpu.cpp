// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "attention_pool/pooling.h"
#include "channel_attention_mixer/channel_attention_mixer.h"
#include "common/check.h"
#include "common/large_output.h"
#include "common/parallel.h"
#include "common/scratch.h"

#define AVSKERNELS_KERNEL "channel_attention_mixer/channel_attention_mixer_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

constexpr const char* kOp = "channel_attention_mixer";

Tensor dense(const char* name, const Tensor& tensor, const std::vector<Dim>& dims,
             ScalarType dtype) {
  expect(kOp, name, tensor, dims, {dtype});
  return torch::stable::contiguous(tensor);
}

std::optional<Tensor> dense(const char* name, const std::optional<Tensor>& tensor,
                            const std::vector<Dim>& dims, ScalarType dtype) {
  return tensor ? std::optional<Tensor>(dense(name, *tensor, dims, dtype)) : std::nullopt;
}

// The arguments that both directions share, checked and contiguous.
struct MixerArguments {
  Tensor features, query, k_weight, v_weight, out_weight;
  std::optional<Tensor> k_bias, v_bias, mask;
  PoolShape shape;
  int64_t num_heads;
  bool softmax;
  bool sigmoid;

  MixerArguments(const Tensor& features_, const Tensor& query_, const Tensor& k_weight_,
                 const Tensor& v_weight_, const Tensor& out_weight_,
                 const std::optional<Tensor>& k_bias_, const std::optional<Tensor>& v_bias_,
                 const std::optional<Tensor>& mask_, int64_t num_heads_, bool softmax_,
                 const std::string& gate)
      : num_heads(num_heads_), softmax(softmax_), sigmoid(gate == "sigmoid") {
    expect(kOp, "features", features_, {"B", "C", "H", "W"}, kFloatingPoint);
    const int64_t batch = features_.size(0), channels = features_.size(1);
    const int64_t height = features_.size(2), width = features_.size(3);
    const ScalarType dtype = accumulate_type(features_.scalar_type());
    features = torch::stable::contiguous(features_);
    query = dense("query", query_, {batch, channels}, dtype);
    k_weight = dense("k_weight", k_weight_, {channels, channels}, dtype);
    v_weight = dense("v_weight", v_weight_, {channels, channels}, dtype);
    out_weight = dense("out_weight", out_weight_, {channels, channels}, dtype);
    k_bias = dense("k_bias", k_bias_, {channels}, dtype);
    v_bias = dense("v_bias", v_bias_, {channels}, dtype);
    mask = dense("mask", mask_, {batch, height, width}, ScalarType::Bool);
    if (num_heads < 1 || channels % num_heads != 0) {
      fail(kOp, ": expected num_heads to divide ", channels, " channels, got ", num_heads);
    }
    shape = {batch, num_heads, channels, height * width};
  }
};

template <typename A>
const A* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<A>() : nullptr;
}

// The small matrices' work, in the instruction set in use.
template <typename A>
struct SmallKernels {
  decltype(&portable::sum_rows<A>) sum_rows =
      select_isa(&portable::sum_rows<A>, &avx2::sum_rows<A>, &avx512::sum_rows<A>);
  decltype(&portable::project<A>) project =
      select_isa(&portable::project<A>, &avx2::project<A>, &avx512::project<A>);
};

// One mixer with its arguments' data: what lies between the passes over the map.
template <typename T>
class Mixer {
 public:
  using A = accumulate_t<T>;

  explicit Mixer(const MixerArguments& arguments) : in_(arguments) {
    const PoolShape& shape = in_.shape;
    const int64_t channels = shape.channels, width = channels / shape.rows;
    const A scale = A(1) / std::sqrt(A(width));
    queries_.resize(shape.batch * shape.rows_size());
    if (in_.k_bias) offsets_.resize(shape.batch * shape.rows);
    // By heads and not by images, so that the weight is read once.
    parallel_for(shape.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        const int64_t first = head * width;
        const A* weight = in_.k_weight.template const_data_ptr<A>() + first * channels;
        for (int64_t b = 0; b < shape.batch; ++b) {
          const A* query = in_.query.template const_data_ptr<A>() + b * channels + first;
          const int64_t row = b * shape.rows + head;
          small_.sum_rows(query, weight, 1, width, channels, scale,
                          queries_.data() + row * channels);
          for (int64_t i = 0; i < width && in_.k_bias; ++i) {
            offsets_[row] += scale * query[i] * data_of<A>(in_.k_bias)[first + i];
          }
        }
      }
    });
  }

  PoolInputs<T> pool_inputs() const {
    return {in_.shape,
            in_.softmax,
            in_.features.template const_data_ptr<T>(),
            queries_.data(),
            A(1),
            in_.k_bias ? offsets_.data() : nullptr,
            data_of<bool>(in_.mask)};
  }

  // Whether any pixel of an image takes part.
  bool any(int64_t b) const {
    if (!in_.mask) return true;
    const bool* mask = data_of<bool>(in_.mask) + b * in_.shape.pixels;
    return std::find(mask, mask + in_.shape.pixels, true) != mask + in_.shape.pixels;
  }

  // gate [C] of one image's pooled rows [h, C].
  void gate(int64_t b, const A* pooled, const A* normalizer, const A* out_bias, A* gate) const {
    const PoolShape& shape = in_.shape;
    std::vector<A> total(normalizer, normalizer + shape.rows), values(shape.channels);
    for (A& sum : total) {
      if (in_.softmax) sum = sum == -std::numeric_limits<A>::infinity() ? A(0) : A(1);
    }
    small_.project(pooled, in_.v_weight.template const_data_ptr<A>(), data_of<A>(in_.v_bias),
                   total.data(), shape.rows, shape.channels, values.data());
    small_.project(values.data(), in_.out_weight.template const_data_ptr<A>(), out_bias, nullptr, 1,
                   shape.channels, gate);
    const bool shut = !any(b);
    for (int64_t c = 0; c < shape.channels; ++c) {
      if (in_.sigmoid) gate[c] = A(1) / (A(1) + std::exp(-gate[c]));
      if (shut) gate[c] = 0;
    }
  }

  // What a channel is multiplied by.
  std::vector<A> factors(const A* gate) const {
    std::vector<A> factors(gate, gate + in_.shape.channels);
    for (A& factor : factors) factor += in_.sigmoid ? A(0) : A(1);
    return factors;
  }

  // From the gradient of the gate's value to those of g (in place), of the values [C], of the
  // pooled rows [h, C], and of the sums of the weights [h], which only weights without softmax
  // have.
  void gate_backward(int64_t b, const A* gate, A* grad_gate, A* grad_values, A* grad_pooled,
                     A* grad_total) const {
    const PoolShape& shape = in_.shape;
    const bool shut = !any(b);
    for (int64_t c = 0; c < shape.channels; ++c) {
      if (in_.sigmoid) grad_gate[c] *= gate[c] * (A(1) - gate[c]);
      if (shut) grad_gate[c] = 0;
    }
    small_.sum_rows(grad_gate, in_.out_weight.template const_data_ptr<A>(), 1, shape.channels,
                    shape.channels, A(1), grad_values);
    small_.sum_rows(grad_values, in_.v_weight.template const_data_ptr<A>(), shape.rows,
                    shape.channels / shape.rows, shape.channels, A(1), grad_pooled);
    std::fill(grad_total, grad_total + shape.rows, A(0));
    for (int64_t i = 0; i < shape.channels && in_.v_bias && !in_.softmax; ++i) {
      grad_total[i * shape.rows / shape.channels] += grad_values[i] * data_of<A>(in_.v_bias)[i];
    }
  }

 private:
  const MixerArguments& in_;
  SmallKernels<A> small_;
  std::vector<A> queries_;  // [B, h, C], the keys' projection folded in
  std::vector<A> offsets_;  // [B, h]
};

constexpr int64_t kPieceChannels = 16;  // of a pass that goes channel by channel

int64_t channel_pieces(const PoolShape& shape) {
  return (shape.channels + kPieceChannels - 1) / kPieceChannels;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_cpu(
    const Tensor& features, const Tensor& query, const Tensor& k_weight, const Tensor& v_weight,
    const Tensor& out_weight, const std::optional<Tensor>& out_bias,
    const std::optional<Tensor>& k_bias, const std::optional<Tensor>& v_bias,
    const std::optional<Tensor>& mask, int64_t num_heads, bool softmax, const std::string& gate) {
  const MixerArguments arguments(features, query, k_weight, v_weight, out_weight, k_bias, v_bias,
                                 mask, num_heads, softmax, gate);
  const PoolShape& shape = arguments.shape;
  const std::optional<Tensor> bias =
      dense("out_bias", out_bias, {shape.channels}, accumulate_type(features.scalar_type()));
  Tensor mixed = in_huge_pages(torch::stable::empty_like(arguments.features));
  const bool stream = past_caches(mixed, shape.pixels);
  Tensor pooled = torch::stable::new_empty(query, {shape.batch, num_heads, shape.channels});
  Tensor normalizer = torch::stable::new_empty(query, {shape.batch, num_heads});
  Tensor gates = torch::stable::new_empty(query, {shape.batch, shape.channels});
  dispatch_floating(features.scalar_type(), kOp, [&]<typename T>() {
    using A = accumulate_t<T>;
    const Mixer<T> mixer(arguments);
    Pooling<T> pooling(mixer.pool_inputs());
    const auto scale = select_isa(&portable::scale_channels<T>, &avx2::scale_channels<T>,
                                  &avx512::scale_channels<T>);
    std::vector<std::vector<A>> factors(shape.batch);
    parallel_passes<Scratch<A>>(
        shape.batch, pooling.blocks.count, channel_pieces(shape), pooling.scratch_size(),
        [&](int64_t b, int64_t block, const Scratch<A>& scratch) {
          pooling.run_block(b, block, scratch.data());
        },
        [&](int64_t b) {
          A* rows = pooled.mutable_data_ptr<A>() + b * shape.rows_size();
          A* sums = normalizer.mutable_data_ptr<A>() + b * shape.rows;
          A* own = gates.mutable_data_ptr<A>() + b * shape.channels;
          pooling.merge(b, rows, sums);
          mixer.gate(b, rows, sums, data_of<A>(bias), own);
          factors[b] = mixer.factors(own);
        },
        [&](int64_t b, int64_t piece, const Scratch<A>&) {
          const int64_t first = b * shape.map_size(), channel = piece * kPieceChannels;
          scale(arguments.features.const_data_ptr<T>() + first, factors[b].data(), channel,
                std::min(channel + kPieceChannels, shape.channels), shape.pixels, stream,
                mixed.mutable_data_ptr<T>() + first);
        });
  });
  return {mixed, pooled, normalizer, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_backward_cpu(
    const Tensor& grad, const Tensor& features, const Tensor& query, const Tensor& k_weight,
    const Tensor& v_weight, const Tensor& out_weight, const std::optional<Tensor>& k_bias,
    const std::optional<Tensor>& v_bias, const std::optional<Tensor>& mask, const Tensor& pooled,
    const Tensor& normalizer, const Tensor& gate_value, int64_t num_heads, bool softmax,
    const std::string& gate) {
  const MixerArguments arguments(features, query, k_weight, v_weight, out_weight, k_bias, v_bias,
                                 mask, num_heads, softmax, gate);
  const PoolShape& shape = arguments.shape;
  const Tensor grads =
      dense("grad", grad, {shape.batch, shape.channels, "H", "W"}, features.scalar_type());
  Tensor grad_features = in_huge_pages(torch::stable::empty_like(arguments.features));
  const bool stream = past_caches(grad_features, shape.pixels);
  Tensor grad_queries = torch::stable::new_empty(query, {shape.batch, num_heads, shape.channels});
  Tensor grad_offsets = torch::stable::new_empty(query, {shape.batch, num_heads});
  Tensor grad_gates = torch::stable::new_empty(query, {shape.batch, shape.channels});
  Tensor grad_values = torch::stable::new_empty(query, {shape.batch, shape.channels});
  dispatch_floating(features.scalar_type(), kOp, [&]<typename T>() {
    using A = accumulate_t<T>;
    const Mixer<T> mixer(arguments);
    PoolingBackward<T> pooling(mixer.pool_inputs(), normalizer.const_data_ptr<A>());
    const auto dots =
        select_isa(&portable::channel_dots<T>, &avx2::channel_dots<T>, &avx512::channel_dots<T>);
    std::vector<typename PoolingBackward<T>::Image> images(shape.batch);
    std::vector<std::vector<A>> factors(shape.batch);
    parallel_passes<Scratch<A>>(
        shape.batch, channel_pieces(shape), pooling.blocks.count, pooling.scratch_size(),
        [&](int64_t b, int64_t piece, const Scratch<A>&) {
          const int64_t first = b * shape.map_size(), channel = piece * kPieceChannels;
          dots(grads.const_data_ptr<T>() + first, arguments.features.const_data_ptr<T>() + first,
               channel, std::min(channel + kPieceChannels, shape.channels), shape.pixels,
               grad_gates.mutable_data_ptr<A>() + b * shape.channels);
        },
        [&](int64_t b) {
          const A* own = gate_value.const_data_ptr<A>() + b * shape.channels;
          std::vector<A> grad_pooled(shape.rows_size()), grad_total(shape.rows);
          mixer.gate_backward(b, own, grad_gates.mutable_data_ptr<A>() + b * shape.channels,
                              grad_values.mutable_data_ptr<A>() + b * shape.channels,
                              grad_pooled.data(), grad_total.data());
          images[b] =
              pooling.image(b, grad_pooled.data(),
                            pooled.const_data_ptr<A>() + b * shape.rows_size(), grad_total.data());
          factors[b] = mixer.factors(own);
        },
        [&](int64_t b, int64_t block, const Scratch<A>& scratch) {
          const int64_t first = b * shape.map_size();
          pooling.run_block(b, block, images[b], grads.const_data_ptr<T>() + first,
                            factors[b].data(), scratch.data(), stream,
                            grad_features.mutable_data_ptr<T>() + first);
        });
    for (int64_t b = 0; b < shape.batch; ++b) {
      pooling.merge(b, grad_queries.mutable_data_ptr<A>() + b * shape.rows_size(),
                    grad_offsets.mutable_data_ptr<A>() + b * shape.rows);
    }
  });
  return {grad_features, grad_queries, grad_offsets, grad_gates, grad_values};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("channel_attention_mixer", TORCH_BOX(&avskernels::channel_attention_mixer_cpu));
  m.impl("_channel_attention_mixer_backward",
         TORCH_BOX(&avskernels::channel_attention_mixer_backward_cpu));
}
