// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by dynamic_mask_conv_cpu.cpp.
//
// Pixels are processed in tiles of kMaskTile vectors. In a tile, an activation is one row of
// pixels: [rows][tile]. A block is a few tiles of one image.

#include "dynamic_mask_conv/dynamic_mask_conv_layers.isa.h"
#include "dynamic_mask_conv/dynamic_mask_conv_tiles.isa.h"

constexpr int64_t kMaskGroupRows = 64;  // of first layers that share a product backward

template <typename A>
inline MaskAffine<A> affine_of(const MaskLayer& layer, const A* params) {
  return {params + layer.weight, layer.inputs, 1, params + layer.bias, layer.outputs, layer.inputs};
}

// computes: masks of all queries of an image for the blocks [begin, end) of all images
// loop order: blocks, queries, tiles, layers, register blocks, inputs
// traffic and FLOPs: features and masks once, params once per block from L2; 2 (P - biases) per
//   pixel and query; the next block's features come into L2 meanwhile. 300 masks of 8 channels,
//   200 x 200: 50 MB, 3.6 GFLOP. 20 images of 256 channels, 56 x 56, 5 masks each: 65 MB, 1.34
//   GFLOP, 5.7 ms at 117 GFLOP/s from each of two cores
// numerics: fused multiply-adds in accumulate_t<T>, bias first, then the inputs in order
// limits: none
template <typename T>
void mask_conv_forward(const MaskProblem<T>& problem, T* masks, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  constexpr int64_t tile = kMaskPixels<A>;
  const auto& layers = problem.layers;
  const bool in_registers =
      kVectorRegisters >= 32 && layers.size() == 3 && layers.front().outputs == kMaskRows;
  MaskInputs<T> inputs(problem);
  const Scratch<A> states(2 * problem.widest * tile);
  const Scratch<A> result(tile);
  for (int64_t index = begin; index < end; ++index) {
    const MaskBlock block = problem.block(index, tile);
    if (block.first_query == block.last_query) continue;
    inputs.read(block, in_registers);
    int64_t step = 0;
    for (int64_t i = block.first_query; i < block.last_query; ++i) {
      const int64_t query = problem.queries[i];
      const A* params = problem.params + query * problem.params_per_query;
      T* mask = masks + query * problem.pixels + block.first_pixel;
      for (int64_t t = 0; t < inputs.tiles; ++t) {
        const int64_t count = inputs.tile_count(t);
        const MaskAhead ahead =
            index + 1 < end ? inputs.ahead(problem.block(index + 1, tile), step++) : kNothingAhead;
        if (in_registers) {
          MaskSource<A> source = inputs.source(query, t);
          if (count < tile) {
            for (int64_t at = 0; at < count; at += kLanes<A>) {
              mask_chain<A, 1>(layers, params, source, ahead, result.data() + at);
              source.features += kLanes<A>;
              source.centres += source.centres == nullptr ? 0 : kLanes<A>;
            }
          } else {
            mask_chain<A, kMaskTile>(layers, params, source, ahead, result.data());
          }
        } else {
          inputs.place(query, t);
          const A* in = inputs.tile_data(t);
          for (size_t l = 0; l + 1 < layers.size(); ++l) {
            A* out = states.data() + l % 2 * problem.widest * tile;
            mask_affine<A, MaskFinish::relu>(affine_of(layers[l], params), count, in, nullptr, out,
                                             l == 0 ? ahead : kNothingAhead);
            in = out;
          }
          mask_affine<A, MaskFinish::none>(affine_of(layers.back(), params), count, in, nullptr,
                                           result.data());
        }
        mask_scatter(result.data(), tile, count, mask + t * tile);
      }
    }
  }
}

// computes: for the chunks [begin, end) of the images' blocks, the gradient of their features, and
//   their share of the gradient of the parameters, partial [chunks per image, queries, P]
// loop order: chunks, blocks, queries; then layers forward and backward over the block. The
//   gradient of features is one product for a group of queries, as if their first layers were one
// traffic and FLOPs: features, their gradient and the masks' gradient once, partial sums once per
//   block from L2; three times the forward FLOPs; the next block's features come into L2 meanwhile
// numerics: as the forward kernel; sums over a block, then over the blocks of a chunk in order
// limits: none
template <typename T>
void mask_conv_backward(const MaskProblem<T>& problem, T* grad_features,
                        accumulate_t<T>* partial_params, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  constexpr int64_t tile = kMaskPixels<A>;
  const auto& layers = problem.layers;
  const int64_t hidden_layers = layers.size() - 1;
  const int64_t block_pixels = problem.block_tiles * tile;
  const int64_t channels = problem.channels, units = layers.front().outputs;
  const int64_t group = std::max<int64_t>(1, kMaskGroupRows / units);
  MaskInputs<T> inputs(problem);
  const Scratch<A> states(hidden_layers * problem.widest * block_pixels);
  const Scratch<A> deltas(2 * problem.widest * block_pixels);
  const Scratch<A> first_deltas(group * units * block_pixels);  // [tiles][group][units][tile]
  const Scratch<A> first_weights(group * units * channels);     // [group][units][channels]
  const Scratch<A> grad_inputs(channels * block_pixels);
  const int64_t end_block = begin < end ? problem.chunk(end - 1).last_block : 0;

  for (int64_t index = begin; index < end; ++index) {
    const MaskChunk chunk = problem.chunk(index);
    const int64_t first_query = problem.first_query[chunk.image];
    const int64_t last_query = problem.first_query[chunk.image + 1];
    A* partial = partial_params + chunk.number * problem.num_queries * problem.params_per_query;
    for (int64_t i = first_query; i < last_query; ++i) {
      std::fill_n(partial + problem.queries[i] * problem.params_per_query, problem.params_per_query,
                  A(0));
    }
    for (int64_t b = chunk.first_block; b < chunk.last_block; ++b) {
      const MaskBlock block = problem.block(b, tile);
      inputs.read(block);
      int64_t step = 0;
      if (first_query == last_query) {
        std::fill_n(grad_inputs.data(), channels * inputs.tiles * tile, A(0));
      }
      for (int64_t i = first_query; i < last_query; ++i) {
        const int64_t query = problem.queries[i], member = (i - first_query) % group;
        const A* params = problem.params + query * problem.params_per_query;
        A* gradient = partial + query * problem.params_per_query;
        const auto state = [&](int64_t l, int64_t t) AVSKERNELS_TARGET {
          return states.data() + l * problem.widest * block_pixels + t * layers[l].outputs * tile;
        };
        const auto delta_step = [&](int64_t l) AVSKERNELS_TARGET {
          return (l == 0 ? group * units : layers[l].outputs) * tile;
        };
        const auto delta = [&](int64_t l) AVSKERNELS_TARGET {
          return l == 0 ? first_deltas.data() + member * units * tile
                        : deltas.data() + l % 2 * problem.widest * block_pixels;
        };
        for (int64_t t = 0; t < inputs.tiles; ++t) {
          inputs.place(query, t);
          const A* in = inputs.tile_data(t);
          for (int64_t l = 0; l < hidden_layers; ++l) {
            const bool more = l == 0 && b + 1 < end_block;
            mask_affine<A, MaskFinish::relu>(
                affine_of(layers[l], params), tile, in, nullptr, state(l, t),
                more ? inputs.ahead(problem.block(b + 1, tile), step++) : kNothingAhead);
            in = state(l, t);
          }
        }
        mask_gather(problem.grad_plane(query), problem.width, block.first_pixel, block.pixels,
                    delta_step(hidden_layers), delta(hidden_layers));
        for (int64_t l = hidden_layers; l >= 0; --l) {
          const MaskLayer& layer = layers[l];
          const A* in = l == 0 ? inputs.tile_data(0) : state(l - 1, 0);
          mask_outer<A>({.left = delta(l),
                         .left_rows = layer.outputs,
                         .left_step = delta_step(l),
                         .right = in,
                         .right_rows = layer.inputs,
                         .tiles = inputs.tiles,
                         .gradient = gradient + layer.weight,
                         .step = layer.inputs});
          mask_row_sums(delta(l), layer.outputs, delta_step(l), inputs.tiles,
                        gradient + layer.bias);
          for (int64_t t = 0; l > 0 && t < inputs.tiles; ++t) {
            mask_affine<A, MaskFinish::gate>({params + layer.weight, 1, layer.inputs, problem.zeros,
                                              layer.inputs, layer.outputs},
                                             tile, delta(l) + t * delta_step(l), state(l - 1, t),
                                             delta(l - 1) + t * delta_step(l - 1));
          }
        }
        for (int64_t u = 0; u < units; ++u) {
          std::copy_n(params + layers[0].weight + u * layers[0].inputs + inputs.first_feature,
                      channels, first_weights.data() + (member * units + u) * channels);
        }
        if (member + 1 < group && i + 1 < last_query) continue;
        const A* start = i - first_query < group ? problem.zeros : nullptr;
        for (int64_t t = 0; t < inputs.tiles; ++t) {
          mask_affine<A, MaskFinish::none>(
              {first_weights.data(), 1, channels, start, channels, (member + 1) * units}, tile,
              first_deltas.data() + t * delta_step(0), nullptr,
              grad_inputs.data() + t * channels * tile);
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        mask_scatter(
            grad_inputs.data() + c * tile, channels * tile, block.pixels,
            grad_features + (block.image * channels + c) * problem.pixels + block.first_pixel);
      }
    }
  }
}

template <typename T>
constexpr MaskKernels<T> kMaskKernels = {
    .tile = kMaskPixels<accumulate_t<T>>,
    .forward = &mask_conv_forward<T>,
    .backward = &mask_conv_backward<T>,
};
