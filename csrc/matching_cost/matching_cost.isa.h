// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by matching_cost_cpu.cpp.
#include "common/mask_loss.isa.h"

namespace {

constexpr int64_t kBlock = 1024;          // pixels
constexpr int64_t kTile = kLanes<float>;  // products, so that their sums make up a vector
constexpr int64_t kTileRows = kTile >= 16 ? 4 : 2;
constexpr int64_t kTileTargets = kTile / kTileRows;

// Writes the two GEMM operands of `count` pixels of one prediction, up to whole vectors, and adds
// up what does not depend on the target.
template <typename T>
void mask_operands(const T* logits, int64_t count, const PixelLoss& loss, accumulate_t<T>* slopes,
                   accumulate_t<T>* probabilities, double& offset_sum, double& probability_sum) {
  using A = accumulate_t<T>;
  MathVec<A> offsets = {}, sums = {};
  for (int64_t i = 0; i < count; i += kMathLanes<A>) {
    PixelTerms<MathVec<A>> terms = pixel_terms(load_up_to<MathVec<A>>(logits + i, count - i), loss);
    if (count - i < kMathLanes<A>) {
      terms = {first_lanes(terms.slope, count - i), first_lanes(terms.offset, count - i),
               first_lanes(terms.p, count - i)};
    }
    if (slopes != nullptr) store(slopes + i, terms.slope);
    if (probabilities != nullptr) store(probabilities + i, terms.p);
    offsets += terms.offset;
    sums += terms.p;
  }
  offset_sum += sum(offsets);
  probability_sum += sum(sums);
}

// totals[r][j] += sum over pixels of rows[r][i] * masks[j][i]; row_count and target_count are
// multiples of the tile.
template <typename A>
void add_products(const A* rows, int64_t row_count, const A* masks, int64_t target_count,
                  int64_t pixels, double* totals) {
  for (int64_t j = 0; j < target_count; j += kTileTargets) {
    for (int64_t r = 0; r < row_count; r += kTileRows) {
      MathVec<A> sums[kTile] = {};
      for (int64_t i = 0; i < pixels; i += kMathLanes<A>) {
        MathVec<A> row[kTileRows], mask[kTileTargets];
#pragma GCC unroll 4
        for (int64_t k = 0; k < kTileRows; ++k)
          row[k] = load<MathVec<A>>(rows + (r + k) * kBlock + i);
#pragma GCC unroll 4
        for (int64_t k = 0; k < kTileTargets; ++k)
          mask[k] = load<MathVec<A>>(masks + (j + k) * kBlock + i);
#pragma GCC unroll 16
        for (int64_t k = 0; k < kTile; ++k)
          sums[k] += row[k / kTileTargets] * mask[k % kTileTargets];
      }
      A flat[kTile];
      if constexpr (std::is_same_v<A, double>) {
        std::copy(sums, sums + kTile, flat);
      } else {
        store(flat, row_sums(sums));
      }
      for (int64_t k = 0; k < kTile; ++k) {
        totals[(r + k / kTileTargets) * target_count + j + k % kTileTargets] += flat[k];
      }
    }
  }
}

}  // namespace

// computes: cost[n][j] += mask and dice terms of `queries` predictions of an image
// loop order: blocks of pixels; operands of the predictions, masks of the targets, then tiles of
//   4 rows x 4 targets (AVX-512), pixels in lanes
// traffic and FLOPs: each logit and each mask pixel once; about 60 operations per logit, and
//   2 x 2 targets for the two products
// numerics: float32 in blocks of 1024 pixels, float64 across them; log-sigmoid form
// limits: a scratch of 8 KiB a prediction and 4 KiB a target has to stay in the L2 cache
template <typename T>
void mask_costs(const MaskCost<T>& task, int64_t first_query, int64_t queries) {
  using A = accumulate_t<T>;
  const auto up = [](int64_t count, int64_t step)
                      AVSKERNELS_TARGET { return (count + step - 1) / step * step; };
  const bool with_mask = task.mask_weight != 0, with_dice = task.dice_weight != 0;
  const int64_t row_count = up(queries * (with_mask + with_dice), kTileRows);
  const int64_t target_count = up(task.targets, kTileTargets);
  std::vector<A> rows(row_count * kBlock), masks(target_count * kBlock);
  std::vector<double> totals(row_count * target_count), offset_sums(queries), sums(queries),
      mask_sums(task.targets);
  A* const slope_rows = with_mask ? rows.data() : nullptr;
  A* const probability_rows = rows.data() + (with_mask ? queries * kBlock : 0);
  for (const auto& [begin, end] : *task.ranges) {
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = std::min(kBlock, end - at);
      for (int64_t n = 0; n < queries; ++n) {
        mask_operands(task.logits + (first_query + n) * task.pixels + at, count, task.loss,
                      with_mask ? slope_rows + n * kBlock : nullptr,
                      with_dice ? probability_rows + n * kBlock : nullptr, offset_sums[n], sums[n]);
      }
      for (int64_t j = 0; j < task.targets; ++j) {
        A* const mask = masks.data() + j * kBlock;
        read_mask(task.masks, (task.first_mask + j) * task.pixels + at, count, mask);
        MathVec<A> total = {};
        for (int64_t i = 0; i < count; i += kMathLanes<A>) total += load<MathVec<A>>(mask + i);
        mask_sums[j] += sum(total);
      }
      add_products(rows.data(), row_count, masks.data(), target_count, up(count, kMathLanes<A>),
                   totals.data());
    }
  }
  const double pixels = std::max<int64_t>(1, pixel_count(*task.ranges));
  const double* const slope_totals = totals.data();
  const double* const overlaps = totals.data() + (with_mask ? queries * target_count : 0);
  for (int64_t n = 0; n < queries; ++n) {
    for (int64_t j = 0; j < task.targets; ++j) {
      double cost = 0;
      if (with_mask) {
        cost += task.mask_weight * (slope_totals[n * target_count + j] + offset_sums[n]) / pixels;
      }
      if (with_dice) {
        const double overlap = 2 * overlaps[n * target_count + j] + 1;
        cost += task.dice_weight * (1 - overlap / (sums[n] + mask_sums[j] + 1));
      }
      A& out = task.cost[(first_query + n) * task.cost_stride + j];
      out = static_cast<A>(out + cost);
    }
  }
}

template <typename T>
constexpr MatchingKernels<T> kMatchingKernels = {.mask_costs = &mask_costs<T>};
