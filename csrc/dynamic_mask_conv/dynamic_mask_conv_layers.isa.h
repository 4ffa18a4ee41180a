// SPDX-License-Identifier: Apache-2.0
// Layers of a query's network over a tile of pixels, forward and backward, in register blocks.
// Included once per instruction set by dynamic_mask_conv.isa.h.

constexpr int64_t kMaskTile = 3;                           // vectors of a tile
constexpr int kMaskRows = kVectorRegisters >= 32 ? 8 : 4;  // outputs of a register block

template <typename A>
constexpr int64_t kMaskPixels = kMaskTile * kLanes<A>;

enum class MaskFinish { none, relu, gate };

// What a loop over inputs may load into L2 on the way: the line at data + i * step for input i.
struct MaskAhead {
  const char* data;
  int64_t step;
};

alignas(64) constexpr char kMaskLine[64] = {};
constexpr MaskAhead kNothingAhead = {kMaskLine, 0};

// out[o] = start[o] + sum_i weight[o * output_step + i * input_step] * in[i], over a tile's pixels.
template <typename A>
struct MaskAffine {
  const A* weight;
  int64_t output_step;
  int64_t input_step;
  const A* start;  // null: the sums go on from what is in `out`
  int64_t outputs;
  int64_t inputs;
};

// sum[o] += sum_i weight[o * output_step + i * input_step] * in[i], ROWS outputs in registers. Rows
// of `in` are row_step apart.
template <typename A, int ROWS, int VECTORS>
inline __attribute__((always_inline)) void mask_accumulate(const MaskAffine<A>& affine, const A* in,
                                                           int64_t row_step, MaskAhead ahead,
                                                           Vec<A> (&sum)[ROWS][VECTORS]) {
  using V = Vec<A>;
  for (int64_t i = 0; i < affine.inputs; ++i) {
    __builtin_prefetch(ahead.data + i * ahead.step, 0, 2);
    V pixels[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) pixels[v] = load(in + i * row_step + v * kLanes<A>);
#pragma GCC unroll 8
    for (int o = 0; o < ROWS; ++o) {
      const V factor = broadcast(affine.weight[o * affine.output_step + i * affine.input_step]);
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) sum[o][v] += factor * pixels[v];
    }
  }
}

// NaN stays NaN in this order of the arguments.
template <typename V>
inline V mask_relu(V value) {
  return maximum(V{}, value);
}

// VECTORS vectors of the first ROWS outputs. `gate` holds the activations whose ReLU the result
// passes back through.
template <typename A, int ROWS, int VECTORS, MaskFinish FINISH>
inline void mask_register_block(const MaskAffine<A>& affine, const A* in, const A* gate,
                                MaskAhead ahead, A* out) {
  using V = Vec<A>;
  constexpr int64_t lanes = kLanes<A>;
  constexpr int64_t tile = kMaskPixels<A>;
  V sum[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int o = 0; o < ROWS; ++o) {
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) {
      sum[o][v] =
          affine.start != nullptr ? broadcast(affine.start[o]) : load(out + o * tile + v * lanes);
    }
  }
  mask_accumulate<A>(affine, in, tile, ahead, sum);
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
  int64_t channels;
  int64_t first_feature;  // row
  const A* centres;       // [2][tile] pixel centres, null without coordinates
  const A* point;         // the reference point, [2]
  A scale;
  int64_t first_coord;  // row
};

// A whole network of three layers whose first has kMaskRows outputs: no activation leaves the
// registers. Writes VECTORS vectors of the mask.
template <typename A, int VECTORS>
inline void mask_chain(const std::vector<MaskLayer>& layers, const A* params,
                       const MaskSource<A>& source, MaskAhead ahead, A* out) {
  using V = Vec<A>;
  constexpr int64_t lanes = kLanes<A>;
  const MaskLayer &first = layers[0], &second = layers[1], &third = layers[2];
  V state[kMaskRows][VECTORS];
#pragma GCC unroll 8
  for (int o = 0; o < kMaskRows; ++o) {
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) state[o][v] = broadcast(params[first.bias + o]);
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
      const V factor = broadcast(weight[o * first.inputs]);
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) state[o][v] += factor * relative[v];
    }
  }
  mask_accumulate<A>({params + first.weight + source.first_feature, first.inputs, 1, nullptr,
                      kMaskRows, source.channels},
                     source.features, source.feature_step, ahead, state);
#pragma GCC unroll 8
  for (int o = 0; o < kMaskRows; ++o) {
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; ++v) state[o][v] = mask_relu(state[o][v]);
  }
  V mask[VECTORS];
  for (int v = 0; v < VECTORS; ++v) mask[v] = broadcast(params[third.bias]);
  const A* weight = params + second.weight;
  for (int64_t o = 0; o < second.outputs; ++o, weight += kMaskRows) {
    V sum[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sum[v] = broadcast(params[second.bias + o]);
#pragma GCC unroll 8
    for (int i = 0; i < kMaskRows; ++i) {
      const V factor = broadcast(weight[i]);
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) sum[v] += factor * state[i][v];
    }
    const V factor = broadcast(params[third.weight + o]);
    for (int v = 0; v < VECTORS; ++v) mask[v] += factor * mask_relu(sum[v]);
  }
  for (int v = 0; v < VECTORS; ++v) store(out + v * lanes, mask[v]);
}

template <typename A, int ROWS, int VECTORS, MaskFinish FINISH>
inline void mask_affine_blocks(MaskAffine<A> affine, const A* in, const A* gate, MaskAhead ahead,
                               A* out) {
  constexpr int64_t tile = kMaskPixels<A>;
  for (; affine.outputs >= ROWS; affine.outputs -= ROWS) {
    mask_register_block<A, ROWS, VECTORS, FINISH>(affine, in, gate, ahead, out);
    affine.weight += ROWS * affine.output_step;
    if (affine.start != nullptr) affine.start += ROWS;
    if (gate != nullptr) gate += ROWS * tile;
    out += ROWS * tile;
    ahead = kNothingAhead;
  }
  if constexpr (ROWS > 1) {
    if (affine.outputs > 0) {
      mask_affine_blocks<A, ROWS / 2, VECTORS, FINISH>(affine, in, gate, ahead, out);
    }
  }
}

// All outputs of a layer for the first `pixels` pixels of a tile.
template <typename A, MaskFinish FINISH>
inline void mask_affine(const MaskAffine<A>& affine, int64_t pixels, const A* in, const A* gate,
                        A* out, MaskAhead ahead = kNothingAhead) {
  constexpr int64_t lanes = kLanes<A>;
  if (pixels == kMaskPixels<A>) {
    mask_affine_blocks<A, kMaskRows, kMaskTile, FINISH>(affine, in, gate, ahead, out);
    return;
  }
  for (int64_t at = 0; at < pixels; at += lanes) {
    mask_affine_blocks<A, kMaskRows, 1, FINISH>(affine, in + at, gate == nullptr ? gate : gate + at,
                                                kNothingAhead, out + at);
  }
}

// gradient[a * step + b] += sum over the pixels of a block of left[a] * right[b].
template <typename A>
struct MaskOuter {
  const A* left;
  int64_t left_rows;
  int64_t left_step;  // from a tile to the next
  const A* right;
  int64_t right_rows;
  int64_t tiles;
  A* gradient;
  int64_t step;
};

// The same for LEFT x RIGHT of the rows, from rows a and b on; rows past the end repeat the last
// one and are not written.
template <typename A, int LEFT, int RIGHT>
inline void mask_outer_register_block(const MaskOuter<A>& outer, int64_t a, int64_t b) {
  using V = Vec<A>;
  constexpr int64_t lanes = kLanes<A>;
  constexpr int64_t tile = kMaskPixels<A>;
  const int64_t left_rows = outer.left_rows, right_rows = outer.right_rows;
  const int64_t left_step = outer.left_step, tiles = outer.tiles;
  const A* left_row[LEFT];
  const A* right_row[RIGHT];
  for (int i = 0; i < LEFT; ++i) left_row[i] = outer.left + std::min(a + i, left_rows - 1) * tile;
  for (int j = 0; j < RIGHT; ++j) {
    right_row[j] = outer.right + std::min(b + j, right_rows - 1) * tile;
  }
  V sum[lanes] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t left_tile = t * left_step;
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
      outer.gradient[(a + i) * outer.step + b + j] += sums[i * RIGHT + j];
    }
  }
}

// The same for all rows.
template <typename A>
inline void mask_outer(const MaskOuter<A>& outer) {
  constexpr int64_t lanes = kLanes<A>;
  constexpr int kLeft = lanes >= 16 ? 4 : lanes >= 4 ? 2 : 1;
  constexpr int kRight = lanes / kLeft;
  if (outer.left_rows == 1) {
    constexpr int kSingle = lanes / 2;
    for (int64_t b = 0; b < outer.right_rows; b += kSingle) {
      mask_outer_register_block<A, 1, kSingle>(outer, 0, b);
    }
    return;
  }
  for (int64_t b = 0; b < outer.right_rows; b += kRight) {
    for (int64_t a = 0; a < outer.left_rows; a += kLeft) {
      mask_outer_register_block<A, kLeft, kRight>(outer, a, b);
    }
  }
}

// gradient[a] += sum over the pixels of a block's rows[a].
template <typename A>
inline void mask_row_sums(const A* rows, int64_t count, int64_t step, int64_t tiles, A* gradient) {
  using V = Vec<A>;
  constexpr int64_t lanes = kLanes<A>;
  constexpr int64_t tile = kMaskPixels<A>;
  for (int64_t a = 0; a < count; ++a) {
    V total = {};
    for (int64_t t = 0; t < tiles; ++t) {
      for (int64_t at = 0; at < tile; at += lanes) {
        total += load(rows + t * step + a * tile + at);
      }
    }
    gradient[a] += sum(total);
  }
}
