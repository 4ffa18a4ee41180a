// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by dynamic_mask_conv_cpu.cpp.
//
// Pixels go through in tiles of kMaskTile vectors. Inside a tile an activation is a row of the
// tile's pixels, and rows follow each other: [rows][tile]. A block is some tiles of one image.

constexpr int64_t kMaskTile = 3;                           // vectors of a tile
constexpr int kMaskRows = kVectorRegisters >= 32 ? 8 : 4;  // outputs of a register block

template <typename A>
constexpr int64_t kMaskPixels = kMaskTile * kLanesOf<A>;

template <typename A>
int64_t mask_tile() {
  return kMaskPixels<A>;
}

enum class MaskFinish { none, relu, gate };

// What a loop over inputs may load into L2 on the way: the line at data + i * step for input i.
struct MaskAhead {
  const char* data;
  int64_t step;
};

alignas(64) constexpr char kMaskLine[64] = {};
constexpr MaskAhead kNothingAhead = {kMaskLine, 0};

// sum[o] += sum_i weight[o * output_step + i * input_step] * in[i], ROWS outputs in registers. Rows
// of `in` are row_step apart; COPY also writes them into the tile `copy`.
template <typename A, int ROWS, int VECTORS, bool COPY = false>
inline __attribute__((always_inline)) void mask_accumulate(const A* weight, int64_t output_step,
                                                           int64_t input_step, int64_t inputs,
                                                           const A* in, int64_t row_step, A* copy,
                                                           MaskAhead ahead,
                                                           VecOf<A> (&sum)[ROWS][VECTORS]) {
  using V = VecOf<A>;
  for (int64_t i = 0; i < inputs; ++i) {
    __builtin_prefetch(ahead.data + i * ahead.step, 0, 2);
    V pixels[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) {
      pixels[v] = load(in + i * row_step + v * kLanesOf<A>);
      if constexpr (COPY) store(copy + i * kMaskPixels<A> + v * kLanesOf<A>, pixels[v]);
    }
#pragma GCC unroll 8
    for (int o = 0; o < ROWS; ++o) {
      const V factor = weight[o * output_step + i * input_step] - V{};
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) sum[o][v] += factor * pixels[v];
    }
  }
}

// In this order of the arguments NaN stays.
template <typename V>
inline V mask_relu(V value) {
  return maximum(V{}, value);
}

// out[o] (+)= start[o] + sum_i weight[o * output_step + i * input_step] * in[i] over VECTORS
// vectors for ROWS outputs. Without `start` the sum goes on from what is in `out`. `gate` holds the
// activations whose ReLU the result passes back through.
template <typename A, int ROWS, int VECTORS, MaskFinish FINISH>
inline void mask_register_block(const A* weight, int64_t output_step, int64_t input_step,
                                const A* start, int64_t inputs, const A* in, const A* gate,
                                MaskAhead ahead, A* out) {
  using V = VecOf<A>;
  constexpr int64_t lanes = kLanesOf<A>;
  constexpr int64_t tile = kMaskPixels<A>;
  V sum[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int o = 0; o < ROWS; ++o) {
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) {
      sum[o][v] = start != nullptr ? start[o] - V{} : load(out + o * tile + v * lanes);
    }
  }
  mask_accumulate<A>(weight, output_step, input_step, inputs, in, tile, nullptr, ahead, sum);
#pragma GCC unroll 8
  for (int o = 0; o < ROWS; ++o) {
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) {
      V result = sum[o][v];
      if constexpr (FINISH == MaskFinish::relu) {
        result = mask_relu(result);
      } else if constexpr (FINISH == MaskFinish::gate) {
        result = load(gate + o * tile + v * lanes) <= 0 ? V{} : result;
      }
      store(out + o * tile + v * lanes, result);
    }
  }
}

// Where a query's first layer finds its inputs for a tile.
template <typename A>
struct MaskSource {
  const A* features;
  int64_t feature_step;  // from channel to channel
  A* copy;               // the tile that a first reading fills
  int64_t channels;
  int64_t first_feature;  // row
  const A* centres;       // [2][tile] pixel centres, null without coordinates
  const A* point;         // the reference point, [2]
  A scale;
  int64_t first_coord;  // row
};

// A whole network of three layers whose first has kMaskRows outputs: no activation leaves the
// registers. Writes VECTORS vectors of the mask.
template <typename A, int VECTORS, bool COPY>
inline void mask_chain(const std::vector<MaskLayer>& layers, const A* params,
                       const MaskSource<A>& source, MaskAhead ahead, A* out) {
  using V = VecOf<A>;
  constexpr int64_t lanes = kLanesOf<A>;
  const MaskLayer &first = layers[0], &second = layers[1], &third = layers[2];
  V state[kMaskRows][VECTORS];
#pragma GCC unroll 8
  for (int o = 0; o < kMaskRows; ++o) {
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) state[o][v] = params[first.bias + o] - V{};
  }
  for (int64_t axis = 0; source.centres != nullptr && axis < 2; ++axis) {
    V relative[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      const V centre = load(source.centres + axis * kMaskPixels<A> + v * lanes);
      relative[v] = (source.point[axis] - centre) * source.scale;
    }
    const A* weight = params + first.weight + source.first_coord + axis;
#pragma GCC unroll 8
    for (int o = 0; o < kMaskRows; ++o) {
      const V factor = weight[o * first.inputs] - V{};
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) state[o][v] += factor * relative[v];
    }
  }
  mask_accumulate<A, kMaskRows, VECTORS, COPY>(params + first.weight + source.first_feature,
                                               first.inputs, 1, source.channels, source.features,
                                               source.feature_step, source.copy, ahead, state);
#pragma GCC unroll 8
  for (int o = 0; o < kMaskRows; ++o) {
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) state[o][v] = mask_relu(state[o][v]);
  }
  V mask[VECTORS];
  for (int v = 0; v < VECTORS; ++v) mask[v] = params[third.bias] - V{};
  const A* weight = params + second.weight;
  for (int64_t o = 0; o < second.outputs; ++o, weight += kMaskRows) {
    V sum[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sum[v] = params[second.bias + o] - V{};
#pragma GCC unroll 8
    for (int i = 0; i < kMaskRows; ++i) {
      const V factor = weight[i] - V{};
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) sum[v] += factor * state[i][v];
    }
    const V factor = params[third.weight + o] - V{};
    for (int v = 0; v < VECTORS; ++v) mask[v] += factor * mask_relu(sum[v]);
  }
  for (int v = 0; v < VECTORS; ++v) store(out + v * lanes, mask[v]);
}

template <typename A, int ROWS, int VECTORS, MaskFinish FINISH>
inline void mask_affine_from(int64_t first, const A* weight, int64_t output_step,
                             int64_t input_step, const A* start, int64_t outputs, int64_t inputs,
                             const A* in, const A* gate, MaskAhead ahead, A* out) {
  constexpr int64_t tile = kMaskPixels<A>;
  for (; first + ROWS <= outputs; first += ROWS) {
    mask_register_block<A, ROWS, VECTORS, FINISH>(
        weight + first * output_step, output_step, input_step,
        start == nullptr ? nullptr : start + first, inputs, in,
        gate == nullptr ? nullptr : gate + first * tile, ahead, out + first * tile);
    ahead = kNothingAhead;
  }
  if constexpr (ROWS > 1) {
    if (first < outputs) {
      mask_affine_from<A, ROWS / 2, VECTORS, FINISH>(first, weight, output_step, input_step, start,
                                                     outputs, inputs, in, gate, ahead, out);
    }
  }
}

// All outputs of a layer for the first `pixels` pixels of a tile.
template <typename A, MaskFinish FINISH>
inline void mask_affine(const A* weight, int64_t output_step, int64_t input_step, const A* start,
                        int64_t outputs, int64_t inputs, int64_t pixels, const A* in, const A* gate,
                        A* out, MaskAhead ahead = kNothingAhead) {
  constexpr int64_t lanes = kLanesOf<A>;
  if (pixels == kMaskPixels<A>) {
    mask_affine_from<A, kMaskRows, kMaskTile, FINISH>(0, weight, output_step, input_step, start,
                                                      outputs, inputs, in, gate, ahead, out);
    return;
  }
  for (int64_t at = 0; at < pixels; at += lanes) {
    mask_affine_from<A, kMaskRows, 1, FINISH>(0, weight, output_step, input_step, start, outputs,
                                              inputs, in + at, gate == nullptr ? gate : gate + at,
                                              kNothingAhead, out + at);
  }
}

// gradient[a * step + b] += sum over the pixels of left[a] * right[b], for LEFT x RIGHT of the rows
// of a block; rows past the end repeat the last one and are not written.
template <typename A, int LEFT, int RIGHT>
inline void mask_outer_register_block(const A* left, int64_t left_rows, int64_t a, const A* right,
                                      int64_t right_rows, int64_t b, int64_t tiles, A* gradient,
                                      int64_t step) {
  using V = VecOf<A>;
  constexpr int64_t lanes = kLanesOf<A>;
  constexpr int64_t tile = kMaskPixels<A>;
  const A* left_row[LEFT];
  const A* right_row[RIGHT];
  for (int i = 0; i < LEFT; ++i) left_row[i] = left + std::min(a + i, left_rows - 1) * tile;
  for (int j = 0; j < RIGHT; ++j) right_row[j] = right + std::min(b + j, right_rows - 1) * tile;
  V sum[lanes] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t left_tile = t * left_rows * tile;
    const int64_t right_tile = t * right_rows * tile;
    for (int64_t at = 0; at < tile; at += lanes) {
      V factor[LEFT];
#pragma GCC unroll 4
      for (int i = 0; i < LEFT; ++i) factor[i] = load(left_row[i] + left_tile + at);
#pragma GCC unroll 16
      for (int j = 0; j < RIGHT; ++j) {
        const V pixels = load(right_row[j] + right_tile + at);
#pragma GCC unroll 4
        for (int i = 0; i < LEFT; ++i) sum[i * RIGHT + j] += factor[i] * pixels;
      }
    }
  }
  A sums[lanes];
  store(sums, row_sums(sum));
  for (int64_t i = 0; i < std::min<int64_t>(LEFT, left_rows - a); ++i) {
    for (int64_t j = 0; j < std::min<int64_t>(RIGHT, right_rows - b); ++j) {
      gradient[(a + i) * step + b + j] += sums[i * RIGHT + j];
    }
  }
}

// As above for all rows.
template <typename A>
inline void mask_outer(const A* left, int64_t left_rows, const A* right, int64_t right_rows,
                       int64_t tiles, A* gradient, int64_t step) {
  constexpr int64_t lanes = kLanesOf<A>;
  constexpr int kLeft = lanes >= 16 ? 4 : lanes >= 4 ? 2 : 1;
  constexpr int kRight = lanes / kLeft;
  if (left_rows == 1) {
    constexpr int kSingle = lanes / 2;
    for (int64_t b = 0; b < right_rows; b += kSingle) {
      mask_outer_register_block<A, 1, kSingle>(left, 1, 0, right, right_rows, b, tiles, gradient,
                                               step);
    }
    return;
  }
  for (int64_t b = 0; b < right_rows; b += kRight) {
    for (int64_t a = 0; a < left_rows; a += kLeft) {
      mask_outer_register_block<A, kLeft, kRight>(left, left_rows, a, right, right_rows, b, tiles,
                                                  gradient, step);
    }
  }
}

// gradient[a] += sum over the pixels of a block's rows[a].
template <typename A>
inline void mask_row_sums(const A* rows, int64_t count, int64_t tiles, A* gradient) {
  using V = VecOf<A>;
  constexpr int64_t lanes = kLanesOf<A>;
  constexpr int64_t tile = kMaskPixels<A>;
  for (int64_t a = 0; a < count; ++a) {
    V sum = {};
    for (int64_t t = 0; t < tiles; ++t) {
      for (int64_t at = 0; at < tile; at += lanes) {
        sum += load(rows + (t * count + a) * tile + at);
      }
    }
    gradient[a] += reduce_add(sum);
  }
}

// Widens `count` pixels of an image plane, from pixel `first` in row-major order, into `out`, and
// fills up the last tile with zeros. Tiles are `tile_step` apart.
template <typename T>
inline void mask_gather(const MaskPlane<T>& plane, int64_t width, int64_t first, int64_t count,
                        int64_t tile_step, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  constexpr int64_t lanes = kLanesOf<A>;
  constexpr int64_t tile = kMaskPixels<A>;
  if (!plane.contiguous(width)) {
    int64_t row = first / width, column = first % width;
    for (int64_t i = 0; i < count; ++i) {
      out[i / tile * tile_step + i % tile] =
          static_cast<A>(plane.data[row * plane.row_step + column * plane.column_step]);
      if (++column == width) {
        column = 0;
        ++row;
      }
    }
  } else {
    const T* data = plane.data + first;
    for (int64_t i = 0; i + lanes <= count; i += lanes) {
      store(out + i / tile * tile_step + i % tile, load(data + i));
    }
    for (int64_t i = count / lanes * lanes; i < count; ++i) {
      out[i / tile * tile_step + i % tile] = static_cast<A>(data[i]);
    }
  }
  for (int64_t i = count; i % tile != 0; ++i) out[i / tile * tile_step + i % tile] = 0;
}

// Narrows `count` pixels, in tiles that are `tile_step` apart, into contiguous memory.
template <typename T>
inline void mask_scatter(const accumulate_t<T>* in, int64_t tile_step, int64_t count, T* data) {
  constexpr int64_t lanes = kLanesOf<accumulate_t<T>>;
  constexpr int64_t tile = kMaskPixels<accumulate_t<T>>;
  for (int64_t i = 0; i + lanes <= count; i += lanes) {
    store(data + i, load(in + i / tile * tile_step + i % tile));
  }
  for (int64_t i = count / lanes * lanes; i < count; ++i) {
    data[i] = static_cast<T>(in[i / tile * tile_step + i % tile]);
  }
}

// A block's inputs: features, and the pixel centres from which each query makes its coordinates.
template <typename T>
struct MaskInputs {
  using A = accumulate_t<T>;
  using V = VecOf<A>;
  static constexpr int64_t lanes = kLanesOf<A>;
  static constexpr int64_t tile = kMaskPixels<A>;

  const MaskProblem<T>& problem;
  const int64_t rows;           // C, or C + 2 with coordinates
  const int64_t first_feature;  // row
  const int64_t first_coord;    // row
  Scratch<A> data;              // [tiles][rows][tile]
  Scratch<A> centres;           // [tiles][2][tile]
  int64_t count = 0;            // pixels
  int64_t tiles = 0;

  explicit MaskInputs(const MaskProblem<T>& problem_)
      : problem(problem_),
        rows(problem.layers.front().inputs),
        first_feature(problem.points != nullptr && problem.coords_first ? 2 : 0),
        first_coord(problem.coords_first ? 0 : problem.channels),
        data(problem.block_tiles * rows * tile),
        centres(problem.block_tiles * 2 * tile) {}

  A* tile_data(int64_t t) const { return data.data() + t * rows * tile; }

  int64_t tile_count(int64_t t) const { return std::min(tile, count - t * tile); }

  // Reads a block; `later` leaves the features of whole tiles to the first query.
  void read(const MaskBlock& block, bool later = false) {
    const int64_t first = block.first_pixel;
    count = block.pixels;
    tiles = (count + tile - 1) / tile;
    const int64_t left_out = later ? count / tile : 0;
    for (int64_t c = 0; c < problem.channels; ++c) {
      mask_gather(problem.feature_plane(block.image, c), problem.width, first + left_out * tile,
                  count - left_out * tile, rows * tile,
                  tile_data(left_out) + (first_feature + c) * tile);
    }
    for (int64_t i = 0; problem.points != nullptr && i < tiles * tile; ++i) {
      A* centre = centres.data() + i / tile * 2 * tile + i % tile;
      centre[0] = ((first + i) % problem.width) * problem.stride + problem.stride / 2;
      centre[tile] = ((first + i) / problem.width) * problem.stride + problem.stride / 2;
    }
  }

  // The step-th line of each channel of a block that is read next.
  MaskAhead ahead(const MaskBlock& next, int64_t step) const {
    constexpr int64_t line = 64 / sizeof(T);
    const MaskPlane<T> plane = problem.feature_plane(next.image, 0);
    if (!plane.contiguous(problem.width) || step * line >= next.pixels) return kNothingAhead;
    const int64_t channel_step = problem.feature_steps[1];
    const T* data = plane.data + next.first_pixel + step * line;
    return {reinterpret_cast<const char*>(data), channel_step * static_cast<int64_t>(sizeof(T))};
  }

  MaskSource<A> source(int64_t query, int64_t t) const {
    A* features = tile_data(t) + first_feature * tile;
    const bool coordinates = problem.points != nullptr;
    return {features,
            tile,
            features,
            problem.channels,
            first_feature,
            coordinates ? centres.data() + t * 2 * tile : nullptr,
            coordinates ? problem.points + query * 2 : nullptr,
            problem.scale == nullptr ? A(1) : problem.scale[query],
            first_coord};
  }

  // Writes the coordinates relative to a query's reference point into a tile.
  void place(int64_t query, int64_t t) const {
    if (problem.points == nullptr) return;
    const A scale = problem.scale == nullptr ? A(1) : problem.scale[query];
    for (int64_t axis = 0; axis < 2; ++axis) {
      const A point = problem.points[query * 2 + axis];
      const A* centre = centres.data() + (t * 2 + axis) * tile;
      A* out = tile_data(t) + (first_coord + axis) * tile;
      for (int64_t at = 0; at < tile; at += lanes) {
        store(out + at, (point - load(centre + at)) * scale);
      }
    }
  }
};

// computes: masks of all queries of an image for the blocks [begin, end) of all images
// loop order: blocks, queries, tiles, layers, register blocks, inputs
// traffic and FLOPs: features and masks once, params once a block from L2; 2 (P - biases) a pixel
//   and query; the next block's features come into L2 meanwhile
// numerics: fused multiply-adds in accumulate_t<T>, bias first, then the inputs in order
// limits: none
template <typename T>
void mask_conv_forward(const MaskProblem<T>& problem, T* masks, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  constexpr int64_t tile = kMaskPixels<A>;
  const auto& layers = problem.layers;
  const MaskLayer& last = layers.back();
  const bool in_registers =
      kVectorRegisters >= 32 && layers.size() == 3 && layers.front().outputs == kMaskRows;
  MaskInputs<T> inputs(problem);
  const Scratch<A> states(2 * problem.widest * tile);
  const Scratch<A> result(tile);
  for (int64_t index = begin; index < end; ++index) {
    const MaskBlock block = problem.block(index, tile);
    if (block.first_query == block.last_query) continue;
    const MaskPlane<T> plane = problem.feature_plane(block.image, 0);
    const bool later = in_registers && std::is_same_v<T, A> && plane.contiguous(problem.width);
    inputs.read(block, later);
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
            for (int64_t at = 0; at < count; at += kLanesOf<A>) {
              mask_chain<A, 1, false>(layers, params, source, ahead, result.data() + at);
              source.features += kLanesOf<A>;
              source.centres += source.centres == nullptr ? 0 : kLanesOf<A>;
            }
          } else if (later && i == block.first_query) {
            if constexpr (std::is_same_v<T, A>) {
              source.features = plane.data + block.first_pixel + t * tile;
              source.feature_step = problem.feature_steps[1];
              mask_chain<A, kMaskTile, true>(layers, params, source, ahead, result.data());
            }
          } else {
            mask_chain<A, kMaskTile, false>(layers, params, source, ahead, result.data());
          }
        } else {
          inputs.place(query, t);
          const A* in = inputs.tile_data(t);
          for (size_t l = 0; l + 1 < layers.size(); ++l) {
            A* out = states.data() + l % 2 * problem.widest * tile;
            mask_affine<A, MaskFinish::relu>(params + layers[l].weight, layers[l].inputs, 1,
                                             params + layers[l].bias, layers[l].outputs,
                                             layers[l].inputs, count, in, nullptr, out,
                                             l == 0 ? ahead : kNothingAhead);
            in = out;
          }
          mask_affine<A, MaskFinish::none>(params + last.weight, last.inputs, 1, params + last.bias,
                                           1, last.inputs, count, in, nullptr, result.data());
        }
        mask_scatter(result.data(), tile, count, mask + t * tile);
      }
    }
  }
}

// computes: for the chunks [begin, end) of the images' blocks, the gradient of their features, and
//   their share of the gradient of the parameters, partial [chunks an image, queries, P]
// loop order: chunks, blocks, queries; then layers forth and back over the block
// traffic and FLOPs: features, their gradient and the masks' gradient once, partial sums once a
//   block from L2; three times the forward FLOPs
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
  MaskInputs<T> inputs(problem);
  const Scratch<A> states(hidden_layers * problem.widest * block_pixels);
  const Scratch<A> deltas(2 * problem.widest * block_pixels);
  const Scratch<A> grad_inputs(problem.channels * block_pixels);

  for (int64_t index = begin; index < end; ++index) {
    const MaskChunk chunk = problem.chunk(index);
    A* partial = partial_params + chunk.number * problem.num_queries * problem.params_per_query;
    for (int64_t i = problem.first_query[chunk.image]; i < problem.first_query[chunk.image + 1];
         ++i) {
      std::fill_n(partial + problem.queries[i] * problem.params_per_query, problem.params_per_query,
                  A(0));
    }
    for (int64_t b = chunk.first_block; b < chunk.last_block; ++b) {
      const MaskBlock block = problem.block(b, tile);
      inputs.read(block);
      std::fill_n(grad_inputs.data(), problem.channels * inputs.tiles * tile, A(0));
      for (int64_t i = block.first_query; i < block.last_query; ++i) {
        const int64_t query = problem.queries[i];
        const A* params = problem.params + query * problem.params_per_query;
        A* gradient = partial + query * problem.params_per_query;
        const auto state = [&](int64_t l, int64_t t) {
          return states.data() + l * problem.widest * block_pixels + t * layers[l].outputs * tile;
        };
        for (int64_t t = 0; t < inputs.tiles; ++t) {
          inputs.place(query, t);
          const A* in = inputs.tile_data(t);
          for (int64_t l = 0; l < hidden_layers; ++l) {
            mask_affine<A, MaskFinish::relu>(params + layers[l].weight, layers[l].inputs, 1,
                                             params + layers[l].bias, layers[l].outputs,
                                             layers[l].inputs, tile, in, nullptr, state(l, t));
            in = state(l, t);
          }
        }
        A* delta = deltas.data();
        A* next = deltas.data() + problem.widest * block_pixels;
        mask_gather(problem.grad_plane(query), problem.width, block.first_pixel, block.pixels, tile,
                    delta);
        for (int64_t l = hidden_layers; l >= 0; --l) {
          const MaskLayer& layer = layers[l];
          const A* in = l == 0 ? inputs.tile_data(0) : state(l - 1, 0);
          mask_outer(delta, layer.outputs, in, layer.inputs, inputs.tiles, gradient + layer.weight,
                     layer.inputs);
          mask_row_sums(delta, layer.outputs, inputs.tiles, gradient + layer.bias);
          for (int64_t t = 0; t < inputs.tiles; ++t) {
            const A* from = delta + t * layer.outputs * tile;
            if (l > 0) {
              mask_affine<A, MaskFinish::gate>(
                  params + layer.weight, 1, layer.inputs, problem.zeros, layer.inputs,
                  layer.outputs, tile, from, state(l - 1, t), next + t * layer.inputs * tile);
            } else {
              mask_affine<A, MaskFinish::none>(params + layer.weight + inputs.first_feature, 1,
                                               layer.inputs, nullptr, problem.channels,
                                               layer.outputs, tile, from, nullptr,
                                               grad_inputs.data() + t * problem.channels * tile);
            }
          }
          std::swap(delta, next);
        }
      }
      for (int64_t c = 0; c < problem.channels; ++c) {
        mask_scatter(grad_inputs.data() + c * tile, problem.channels * tile, block.pixels,
                     grad_features + (block.image * problem.channels + c) * problem.pixels +
                         block.first_pixel);
      }
    }
  }
}
