// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by vector_quantize.isa.h: screening of all codewords with
// a bound on its own error.
//
// With x = x' + m, c = c' + m and m near the mean codeword, |x - c|^2 - |x'|^2 = |c'|^2 - 2 x'.c',
// and the score of a codeword is that with x'.c' taken from the operands x' = s_x q_x + r_x,
// c' = s_c q_c + r_c. It is off by at most 2 (|r_x| |c'| + (|x'| + |r_x|) |r_c|) plus rounding,
// where the residuals r are measured, not assumed.

constexpr int64_t kScreenRows = 4;
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
constexpr int64_t kScreenVectors = 4;
#else
constexpr int64_t kScreenVectors = 2;
#endif
constexpr int64_t kChunkTiles = 16;  // tiles whose scores are kept at a time

// What screening keeps of a block of rows.
struct Screen {
  Screen(const PackedCodebook& packed, int64_t rows)
      : packed(packed),
        capacity(16 + packed.codewords / 16),
        stride(std::min(packed.tiles, kChunkTiles) * PackedCodebook::kTile),
        centred(packed.dim + kLanes<float>),
        operands(rows * packed.steps),
        scores(rows * stride),
        minima(rows * kChunkTiles * kLanes<float>),
        candidates(rows * capacity),
        lower(rows * capacity) {}

  // An upper bound on the error of a codeword's score for a row.
  float codeword_bound(int64_t row, int64_t k) const {
    return residual[row] * packed.norm[k] + reach[row] * packed.residual[k] + packed.rounding[k];
  }

  const PackedCodebook& packed;
  const int64_t capacity;  // candidates that a row may have
  const int64_t stride;    // scores of a row
  Scratch<float> centred;  // one row
  Scratch<float> operands;
  Scratch<float> scores;
  Scratch<float> minima;  // lane-wise, of each tile's scores
  Scratch<int32_t> candidates;
  Scratch<float> lower;                     // least possible scores of the candidates
  float best[RowBatch::kMaxBlockRows];      // the least score is at most this
  float scale[RowBatch::kMaxBlockRows];     // twice the row's
  float square[RowBatch::kMaxBlockRows];    // |x'|^2
  float residual[RowBatch::kMaxBlockRows];  // |r_x|
  float reach[RowBatch::kMaxBlockRows];     // |x'| + |r_x|
  int32_t start[RowBatch::kMaxBlockRows];
  int64_t found[RowBatch::kMaxBlockRows];  // candidates; above capacity: too many to keep
};

// Scores of kScreenRows rows and a tile, and their part in the rows' upper bounds.
template <typename Dot>
inline void score_tile(Screen& screen, int64_t row, int64_t tile, float* __restrict__ scores,
                       float* __restrict__ minima) {
  constexpr int64_t kTile = PackedCodebook::kTile;
  const PackedCodebook& packed = screen.packed;
  const int64_t steps = packed.steps;
  const float* rows = screen.operands.data() + row * steps;
  for (int64_t lane = 0; lane < kTile; lane += kScreenVectors * kLanes<float>) {
    typename Dot::Accumulator sums[kScreenRows][kScreenVectors];
    for (int64_t r = 0; r < kScreenRows; ++r) {
      for (int64_t v = 0; v < kScreenVectors; ++v) {
        sums[r][v] = Dot::start(screen.start[row + r]);
      }
    }
    const float* codewords = packed.operands + tile * steps * kTile + lane;
    for (int64_t step = 0; step < steps; ++step, codewords += kTile) {
#pragma GCC unroll 4
      for (int64_t r = 0; r < kScreenRows; ++r) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < kScreenVectors; ++v) {
          sums[r][v] =
              Dot::multiply_add(sums[r][v], rows + r * steps + step, codewords + v * kLanes<float>);
        }
      }
    }
    const float* square = packed.square + tile * kTile + lane;
    const float* scale = packed.scale + tile * kTile + lane;
#pragma GCC unroll 4
    for (int64_t r = 0; r < kScreenRows; ++r) {
      float* minimum_of_tile = minima + (row + r) * kChunkTiles * kLanes<float>;
      Vec<float> least =
          lane == 0 ? broadcast(std::numeric_limits<float>::infinity()) : load(minimum_of_tile);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kScreenVectors; ++v) {
        const Vec<float> product = Dot::to_float(sums[r][v]) * load(scale + v * kLanes<float>);
        const Vec<float> score = load(square + v * kLanes<float>) - screen.scale[row + r] * product;
        store(scores + (row + r) * screen.stride + lane + v * kLanes<float>, score);
        least = minimum(score, least);
      }
      store(minimum_of_tile, least);
    }
  }
}

// Notes the candidates of a row in tiles [begin, end), at most a chunk: codewords whose least
// possible score is at most the best upper bound so far. Tiles are sifted by their bound first.
inline void collect_chunk(Screen& screen, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t kTile = PackedCodebook::kTile;
  const PackedCodebook& packed = screen.packed;
  const float* scores = screen.scores.data() + row * screen.stride;
  const float* minima = screen.minima.data() + row * kChunkTiles * kLanes<float>;
  const int64_t tiles = end - begin;
  float limits[kChunkTiles];  // at first, bounds on the error of any score of the tile
  for (int64_t i = 0; i < tiles; i += kLanes<float>) {
    store(limits + i, screen.residual[row] * load(packed.tile_norm + begin + i) +
                          screen.reach[row] * load(packed.tile_residual + begin + i) +
                          load(packed.tile_rounding + begin + i));
  }
  Vec<float> upper = broadcast(screen.best[row]);
  for (int64_t i = 0; i < tiles; ++i) {
    upper = minimum(load(minima + i * kLanes<float>) + limits[i], upper);
  }
  const float best = screen.best[row] = minimum(upper);
  uint32_t hits = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    limits[i] += best;
    hits |= (lanes_at_most(load(minima + i * kLanes<float>), broadcast(limits[i])) != 0 ? 1u : 0u)
            << i;
  }
  int64_t found = screen.found[row];
  for (; hits != 0; hits &= hits - 1) {
    const int64_t i = __builtin_ctz(hits);
    uint64_t lanes = 0;
    for (int64_t lane = 0; lane < kTile; lane += kLanes<float>) {
      const Vec<float> score = load(scores + i * kTile + lane);
      lanes |= static_cast<uint64_t>(lanes_at_most(score, broadcast(limits[i]))) << lane;
    }
    for (; lanes != 0; lanes &= lanes - 1) {
      const int64_t lane = i * kTile + __builtin_ctzll(lanes);
      const int64_t k = begin * kTile + lane;
      const float lower = scores[lane] - screen.codeword_bound(row, k);
      if (lower <= best) {
        if (found < screen.capacity) {
          screen.candidates.data()[row * screen.capacity + found] = k;
          screen.lower.data()[row * screen.capacity + found] = lower;
        }
        ++found;
      }
    }
  }
  screen.found[row] = found;
}
