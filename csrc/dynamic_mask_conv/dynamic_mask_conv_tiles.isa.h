// SPDX-License-Identifier: Apache-2.0
// The tiles that layers work on: read from and written to the planes of images.
// Included once per instruction set by dynamic_mask_conv.isa.h.

// Widens `count` pixels of an image plane, from pixel `first` in row-major order, into `out`, with
// zeros after them to the end of the last tile. Tiles are `tile_step` apart.
template <typename T>
inline void mask_gather(const MaskPlane<T>& plane, int64_t width, int64_t first, int64_t count,
                        int64_t tile_step, accumulate_t<T>* out) {
  using A = accumulate_t<T>;
  constexpr int64_t lanes = kLanes<A>;
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
  constexpr int64_t lanes = kLanes<accumulate_t<T>>;
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
  using V = Vec<A>;
  static constexpr int64_t lanes = kLanes<A>;
  static constexpr int64_t tile = kMaskPixels<A>;

  const MaskProblem<T>& problem;
  const int64_t rows;           // C, or C + 2 with coordinates
  const int64_t first_feature;  // row
  const int64_t first_coord;    // row
  Scratch<A> data;              // [tiles][rows][tile]
  Scratch<A> centres;           // [tiles][2][tile]
  MaskBlock block{};
  bool in_place = false;  // whole tiles of features stay where they are
  int64_t tiles = 0;

  explicit MaskInputs(const MaskProblem<T>& problem_)
      : problem(problem_),
        rows(problem.layers.front().inputs),
        first_feature(problem.points != nullptr && problem.coords_first ? 2 : 0),
        first_coord(problem.coords_first ? 0 : problem.channels),
        data(problem.block_tiles * rows * tile),
        centres(problem.block_tiles * 2 * tile) {}

  A* tile_data(int64_t t) const { return data.data() + t * rows * tile; }

  int64_t tile_count(int64_t t) const { return std::min(tile, block.pixels - t * tile); }

  // Reads a block; with leave_features its whole tiles only where layers cannot load from.
  void read(const MaskBlock& next, bool leave_features = false) {
    block = next;
    in_place = leave_features && std::is_same_v<T, A> &&
               problem.feature_plane(block.image, 0).contiguous(problem.width);
    const int64_t first = block.first_pixel;
    tiles = (block.pixels + tile - 1) / tile;
    const int64_t left_out = in_place ? block.pixels / tile : 0;
    for (int64_t c = 0; c < problem.channels; ++c) {
      mask_gather(problem.feature_plane(block.image, c), problem.width, first + left_out * tile,
                  block.pixels - left_out * tile, rows * tile,
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
    const bool coordinates = problem.points != nullptr;
    MaskSource<A> source = {tile_data(t) + first_feature * tile,
                            tile,
                            problem.channels,
                            first_feature,
                            coordinates ? centres.data() + t * 2 * tile : nullptr,
                            coordinates ? problem.points + query * 2 : nullptr,
                            problem.scale == nullptr ? A(1) : problem.scale[query],
                            first_coord};
    if constexpr (std::is_same_v<T, A>) {
      if (in_place && tile_count(t) == tile) {
        source.features = problem.feature_plane(block.image, 0).data + block.first_pixel + t * tile;
        source.feature_step = problem.feature_steps[1];
      }
    }
    return source;
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
