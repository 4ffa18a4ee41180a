// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by vector_quantize_cpu.cpp.

#include "vector_quantize/vector_quantize_exact.isa.h"
#include "vector_quantize/vector_quantize_pack.isa.h"
#include "vector_quantize/vector_quantize_screen.isa.h"

// Packs the rows of a block. A row that is not finite, or too large, is marked as having too many
// candidates.
template <typename T, typename Dot>
void start_block(Screen& screen, const RowBlock<T>& block) {
  const PackedCodebook& packed = screen.packed;
  for (int64_t r = 0; r < block.count; ++r) {
    float* centred = screen.centred.data();
    const Centred size = centre_vector(block.row[r], packed.centre, packed.dim, centred);
    const bool usable = size.square < 1e30f;
    const Operand operand = Dot::pack(centred, usable ? size.largest : 0.0f, packed.dim,
                                      screen.operands.data() + r * packed.steps, false);
    // The centred row is off by its rounding, and so is the residual.
    const float norm = norm_bound(size.square, packed.dim);
    screen.scale[r] = usable ? 2 * operand.scale : 0.0f;
    screen.residual[r] = usable ? operand.residual + kUlp * norm : 0.0f;
    screen.reach[r] = usable ? norm + operand.residual : 0.0f;
    screen.start[r] = operand.start;
    screen.found[r] = usable ? 0 : screen.capacity + 1;
    screen.best[r] = std::numeric_limits<float>::infinity();
    screen.square[r] = size.square;
  }
}

// Finds the candidates of a block's rows.
template <typename Dot>
void screen_block(Screen& screen, int64_t rows) {
  constexpr int64_t kTile = PackedCodebook::kTile;
  for (int64_t begin = 0; begin < screen.packed.tiles; begin += kChunkTiles) {
    const int64_t end = std::min(begin + kChunkTiles, screen.packed.tiles);
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t row = 0; row < rows; row += kScreenRows) {
        score_tile<Dot>(screen, row, tile, screen.scores.data() + (tile - begin) * kTile,
                        screen.minima.data() + (tile - begin) * kLanes<float>);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      collect_chunk(screen, row, begin, end);
    }
  }
}

// The nearest of a row's candidates. The one with the least possible score is measured first,
// because its distance rules out most of the others.
template <typename T>
Nearest<T> nearest_candidate(Screen& screen, int64_t r, const float* x, const T* codebook,
                             double* distances) {
  const int64_t dim = screen.packed.dim;
  int32_t* candidates = screen.candidates.data() + r * screen.capacity;
  const float* lower = screen.lower.data() + r * screen.capacity;
  const int64_t found = screen.found[r];
  const int64_t first = std::min_element(lower, lower + found) - lower;
  float best = screen.best[r];
  float distance = 0;
  if (found > 0) {
    distance = squared_difference(x, codebook + candidates[first] * dim, dim);
    const float square = screen.square[r];
    best = std::min(best, distance - square + (distance + square) * sum_error(dim));
  }
  int64_t left = 0;
  for (int64_t i = 0; i < found; ++i) {
    if (lower[i] <= best) {
      distances[left] =
          i == first ? distance : squared_difference(x, codebook + candidates[i] * dim, dim);
      candidates[left++] = candidates[i];
    }
  }
  return decide(x, codebook, dim, candidates, left, distances);
}

// computes: nearest codewords of the rows of blocks [begin, end), but for the uncertified ones
// loop order: blocks of 48 rows; chunks of 16 tiles; tiles of 64 codewords (in L1); 4 rows x 64
//   codewords in registers over all dimensions; then candidates row by row
// traffic and FLOPs: the packed codebook once per block from L2, 4 bytes per score to L2 and
//   back; 2 M K D in int8 or float32, 3 D per exact distance
// numerics: int8 sums are exact; every codeword whose score is within the bound of the least one
//   is measured exactly, so the result is that of measuring all
// limits: rows with more candidates than the capacity are left, as uncertified
template <typename T, typename Dot>
void quantize_screened(const QuantizeJob<T>& job, const PackedCodebook& packed, RowBatch& batch,
                       int64_t begin, int64_t end) {
  Screen screen(packed, batch.block_rows);
  RowBlock<T> rows(job, batch);
  Scratch<double> distances(screen.capacity);
  for (int64_t block = begin; block < end; ++block) {
    rows.load(batch, block);
    start_block<T, Dot>(screen, rows);
    rows.prefetch(batch, block + 1);
    screen_block<Dot>(screen, rows.count);
    for (int64_t r = 0; r < rows.count; ++r) {
      if (screen.found[r] > screen.capacity) {
        batch.uncertified[block].push_back(rows.number[r]);
        rows.nearest[r].index = -1;
        continue;
      }
      rows.nearest[r] = nearest_candidate(screen, r, rows.row[r], job.codebook, distances.data());
    }
    batch.sums[block] = rows.store();
  }
}

// computes: nearest codewords of the rows of blocks [begin, end), all codewords measured
// loop order: rows, codewords, dimensions
// traffic and FLOPs: the codebook once per row from cache; 3 M K D
// numerics: difference form; float32 rules out, float64 decides
// limits: none
template <typename T>
void quantize_exhaustive(const QuantizeJob<T>& job, RowBatch& batch, int64_t begin, int64_t end) {
  RowBlock<T> rows(job, batch);
  Scratch<double> distances(job.codewords);
  for (int64_t block = begin; block < end; ++block) {
    rows.load(batch, block);
    for (int64_t r = 0; r < rows.count; ++r) {
      rows.nearest[r] =
          all_finite(rows.row[r], job.dim)
              ? nearest_of_all(rows.row[r], job.codebook, job.codewords, job.dim, distances.data())
              : Nearest<T>{0, std::numeric_limits<accumulate_t<T>>::quiet_NaN()};
    }
    batch.sums[block] = rows.store();
  }
}

template <typename T, typename Dot>
constexpr Screening<T> kScreening = {
    .most_dims = Dot::kMostDims,
    .steps = &Dot::steps,
    .centre = &centre_codebook<T>,
    .pack = &pack_codebook<T, Dot>,
    .quantize = &quantize_screened<T, Dot>,
};

template <typename T>
constexpr QuantizeKernels<T> kQuantizeKernels = {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512_VNNI
    .screenings = {kScreening<T, Int8Dot>, kScreening<T, FloatDot>},
#else
    .screenings = {kScreening<T, FloatDot>},
#endif
    .exhaustive = &quantize_exhaustive<T>,
};

// For doubles all distances are measured: no screening.
template <>
constexpr QuantizeKernels<double> kQuantizeKernels<double> = {
    .screenings = {},
    .exhaustive = &quantize_exhaustive<double>,
};
