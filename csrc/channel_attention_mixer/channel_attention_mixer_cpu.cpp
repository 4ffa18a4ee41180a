// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "attention_pool/pooling.h"
#include "channel_attention_mixer/channel_attention_mixer.h"
#include "common/check.h"
#include "common/dispatch.h"
#include "common/large_output.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tensors.h"
#include "common/view.h"

namespace avskernels {
namespace {

template <typename T, typename A = accumulate_t<T>>
struct MixerKernels {
  void (*sum_rows)(const A* vector, const A* weight, int64_t heads, int64_t width, int64_t channels,
                   A scale, A* out);
  void (*project)(const A* rows, const A* weight, const A* bias, const A* bias_factor,
                  int64_t heads, int64_t channels, A* out);
  void (*scale_channels)(View<const T> features, const A* factors, bool past_caches, View<T> mixed);
  void (*channel_dots)(View<const T> x, View<const T> y, A* dots);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "channel_attention_mixer/channel_attention_mixer.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

void require_heads(int64_t num_heads, int64_t channels) {
  if (num_heads < 1 || channels % num_heads != 0) {
    fail("channel_attention_mixer: expected num_heads to divide ", channels, " channels, got ",
         num_heads);
  }
}

// The arguments that both directions share, contiguous.
struct MixerArguments {
  Tensor features, query, k_weight, v_weight, out_weight;
  std::optional<Tensor> out_bias, k_bias, v_bias, mask;
  PoolShape shape;
  bool softmax;
  bool sigmoid;

  template <typename Arguments>
  explicit MixerArguments(const Arguments& in)
      : features(dense(in.features)),
        query(dense(in.query)),
        k_weight(dense(in.k_weight)),
        v_weight(dense(in.v_weight)),
        out_weight(dense(in.out_weight)),
        out_bias(dense(in.out_bias)),
        k_bias(dense(in.k_bias)),
        v_bias(dense(in.v_bias)),
        mask(dense(in.mask)),
        shape{features.size(0), in.num_heads, features.size(1),
              features.size(2) * features.size(3)},
        softmax(in.softmax),
        sigmoid(in.gate == "sigmoid") {}
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
          kernels_.sum_rows(query, weight, 1, width, channels, scale,
                            queries_.data() + row * channels);
          for (int64_t i = 0; i < width && in_.k_bias; ++i) {
            offsets_[row] += scale * query[i] * data_or_null<A>(in_.k_bias)[first + i];
          }
        }
      }
    });
  }

  PoolInputs<T> pool_inputs() const {
    return {.shape = in_.shape,
            .softmax = in_.softmax,
            .features = in_.features.template const_data_ptr<T>(),
            .queries = queries_.data(),
            .scale = A(1),
            .offsets = in_.k_bias ? offsets_.data() : nullptr,
            .mask = data_or_null<bool>(in_.mask)};
  }

  // Whether any pixel of an image takes part.
  bool any(int64_t b) const {
    if (!in_.mask) return true;
    const bool* mask = data_or_null<bool>(in_.mask) + b * in_.shape.pixels;
    return std::find(mask, mask + in_.shape.pixels, true) != mask + in_.shape.pixels;
  }

  // gate [C] of one image's pooled rows [h, C].
  void gate(int64_t b, const A* pooled, const A* normalizer, A* gate) const {
    const PoolShape& shape = in_.shape;
    std::vector<A> total(normalizer, normalizer + shape.rows), values(shape.channels);
    for (A& sum : total) {
      if (in_.softmax) sum = sum == -std::numeric_limits<A>::infinity() ? A(0) : A(1);
    }
    kernels_.project(pooled, in_.v_weight.template const_data_ptr<A>(), data_or_null<A>(in_.v_bias),
                     total.data(), shape.rows, shape.channels, values.data());
    kernels_.project(values.data(), in_.out_weight.template const_data_ptr<A>(),
                     data_or_null<A>(in_.out_bias), nullptr, 1, shape.channels, gate);
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

  // From the gradient of the factors [C] to those of the pooled rows [h, C] and of the sums of the
  // weights [h], which only weights without softmax have.
  void gate_backward(int64_t b, const A* gate, const A* grad_factor, A* grad_pooled,
                     A* grad_total) const {
    const PoolShape& shape = in_.shape;
    const bool shut = !any(b);
    std::vector<A> grad_gate(grad_factor, grad_factor + shape.channels);
    std::vector<A> grad_values(shape.channels);
    for (int64_t c = 0; c < shape.channels; ++c) {
      if (in_.sigmoid) grad_gate[c] *= gate[c] * (A(1) - gate[c]);
      if (shut) grad_gate[c] = 0;
    }
    kernels_.sum_rows(grad_gate.data(), in_.out_weight.template const_data_ptr<A>(), 1,
                      shape.channels, shape.channels, A(1), grad_values.data());
    kernels_.sum_rows(grad_values.data(), in_.v_weight.template const_data_ptr<A>(), shape.rows,
                      shape.channels / shape.rows, shape.channels, A(1), grad_pooled);
    std::fill(grad_total, grad_total + shape.rows, A(0));
    for (int64_t i = 0; i < shape.channels && in_.v_bias && !in_.softmax; ++i) {
      grad_total[i * shape.rows / shape.channels] +=
          grad_values[i] * data_or_null<A>(in_.v_bias)[i];
    }
  }

 private:
  const MixerArguments& in_;
  const MixerKernels<T>& kernels_ = AVSKERNELS_ACTIVE(kMixerKernels<T>);
  std::vector<A> queries_;  // [B, h, C], the keys' projection folded in
  std::vector<A> offsets_;  // [B, h]
};

constexpr int64_t kPieceChannels = 16;  // of a pass that goes channel by channel

int64_t channel_pieces(const PoolShape& shape) {
  return (shape.channels + kPieceChannels - 1) / kPieceChannels;
}

// The channels of a piece of image b.
template <typename T>
View<T> channel_piece(T* maps, const PoolShape& shape, int64_t b, int64_t piece) {
  const int64_t first = piece * kPieceChannels;
  return {maps + b * shape.map_size() + first * shape.pixels, shape.pixels,
          std::min(kPieceChannels, shape.channels - first), shape.pixels};
}

}  // namespace

void ChannelAttentionMixer::require() const { require_heads(num_heads, features.size(1)); }
void ChannelAttentionMixerBackward::require() const { require_heads(num_heads, features.size(1)); }

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_cpu(
    const ChannelAttentionMixer& in) {
  const MixerArguments arguments(in);
  const PoolShape& shape = arguments.shape;
  Tensor mixed = in_huge_pages(torch::stable::empty_like(arguments.features));
  const bool stream = past_caches(mixed, shape.pixels);
  Tensor pooled = torch::stable::new_empty(in.query, {shape.batch, shape.rows, shape.channels});
  Tensor normalizer = torch::stable::new_empty(in.query, {shape.batch, shape.rows});
  Tensor gates = torch::stable::new_empty(in.query, {shape.batch, shape.channels});
  dispatch_floating(in.features.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const Mixer<T> mixer(arguments);
    Pooling<T> pooling(mixer.pool_inputs());
    const auto scale = AVSKERNELS_ACTIVE(kMixerKernels<T>).scale_channels;
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
          mixer.gate(b, rows, sums, own);
          factors[b] = mixer.factors(own);
        },
        [&](int64_t b, int64_t piece, const Scratch<A>&) {
          scale(channel_piece(arguments.features.const_data_ptr<T>(), shape, b, piece),
                factors[b].data() + piece * kPieceChannels, stream,
                channel_piece(mixed.mutable_data_ptr<T>(), shape, b, piece));
        });
  });
  return {mixed, pooled, normalizer, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_attention_mixer_backward_cpu(
    const ChannelAttentionMixerBackward& in) {
  const MixerArguments arguments(in);
  const PoolShape& shape = arguments.shape;
  const Tensor grads = dense(in.grad_mixed);
  const Tensor pooled = dense(in.pooled);
  const Tensor normalizer = dense(in.normalizer);
  const Tensor gates = dense(in.gate_value);
  Tensor grad_features = in_huge_pages(torch::stable::empty_like(arguments.features));
  const bool stream = past_caches(grad_features, shape.pixels);
  Tensor grad_queries = torch::stable::empty_like(pooled);
  Tensor grad_offsets = torch::stable::empty_like(normalizer);
  Tensor grad_factors = torch::stable::empty_like(gates);
  dispatch_floating(in.features.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const Mixer<T> mixer(arguments);
    PoolingBackward<T> pooling(mixer.pool_inputs(), normalizer.const_data_ptr<A>());
    const auto dots = AVSKERNELS_ACTIVE(kMixerKernels<T>).channel_dots;
    std::vector<typename PoolingBackward<T>::Image> images(shape.batch);
    std::vector<std::vector<A>> factors(shape.batch);
    parallel_passes<Scratch<A>>(
        shape.batch, channel_pieces(shape), pooling.blocks.count, pooling.scratch_size(),
        [&](int64_t b, int64_t piece, const Scratch<A>&) {
          dots(channel_piece(grads.const_data_ptr<T>(), shape, b, piece),
               channel_piece(arguments.features.const_data_ptr<T>(), shape, b, piece),
               grad_factors.mutable_data_ptr<A>() + b * shape.channels + piece * kPieceChannels);
        },
        [&](int64_t b) {
          const A* own = gates.const_data_ptr<A>() + b * shape.channels;
          std::vector<A> grad_pooled(shape.rows_size()), grad_total(shape.rows);
          mixer.gate_backward(b, own, grad_factors.const_data_ptr<A>() + b * shape.channels,
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
  return {grad_features, grad_queries, grad_offsets, grad_factors};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::ChannelAttentionMixer>(m);
  avskernels::define<avskernels::ChannelAttentionMixerBackward>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::channel_attention_mixer_cpu>(m);
  avskernels::implement<&avskernels::channel_attention_mixer_backward_cpu>(m);
}
