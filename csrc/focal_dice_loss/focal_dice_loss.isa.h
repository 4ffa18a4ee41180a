// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by focal_dice_loss_cpu.cpp.
#include "common/mask_loss.isa.h"

// computes: of one pair, the mean pixel loss, the dice loss, and the three sums dice is made of
// loop order: blocks of pixels, the mask's block as floats first
// traffic and FLOPs: each logit and each mask pixel once; about 60 operations per pixel
// numerics: float32 in blocks of 1024 pixels, float64 across them; log-sigmoid form
// limits: none
template <typename T>
void pair_losses(const MaskPair<T>& pair, accumulate_t<T>* mask_loss, accumulate_t<T>* dice_loss,
                 accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  alignas(64) A truth[kPairBlock];
  double loss = 0, overlap = 0, probability = 0, area = 0;
  for (const auto& [begin, end] : *pair.ranges) {
    for (int64_t at = begin; at < end; at += kPairBlock) {
      const int64_t count = std::min(kPairBlock, end - at);
      read_mask(pair.masks, pair.mask * pair.pixels + at, count, truth);
      MathVec<A> losses = {}, overlaps = {}, probabilities = {}, areas = {};
      for (int64_t i = 0; i < count; i += kMathLanes<A>) {
        const auto terms =
            pixel_terms(load_up_to<MathVec<A>>(pair.logits + at + i, count - i), pair.loss);
        const MathVec<A> t = load<MathVec<A>>(truth + i);
        MathVec<A> pixel = terms.offset + terms.slope * t, p = terms.p;
        if (count - i < kMathLanes<A>) {
          pixel = first_lanes(pixel, count - i);
          p = first_lanes(p, count - i);
        }
        losses += pixel;
        overlaps += p * t;
        probabilities += p;
        areas += t;
      }
      loss += sum(losses);
      overlap += sum(overlaps);
      probability += sum(probabilities);
      area += sum(areas);
    }
  }
  *mask_loss = static_cast<A>(loss / std::max<int64_t>(1, pixel_count(*pair.ranges)));
  *dice_loss = static_cast<A>(1 - (2 * overlap + 1) / (probability + area + 1));
  sums[0] = static_cast<A>(overlap);
  sums[1] = static_cast<A>(probability);
  sums[2] = static_cast<A>(area);
}

// computes: the gradient of one pair's logits, 0 in frames that do not count
// loop order: blocks of pixels, the mask's block as floats first
// traffic and FLOPs: each logit and each mask pixel once, each gradient written once; about 60
//   operations per pixel
// numerics: accumulate_t<T>; the forward pass is recomputed, but for its three sums
// limits: none
template <typename T>
void pair_gradient(const MaskPair<T>& pair, accumulate_t<T> grad_mask_loss,
                   accumulate_t<T> grad_dice_loss, const accumulate_t<T>* sums, T* grad) {
  using A = accumulate_t<T>;
  alignas(64) A truth[kPairBlock];
  const A size = sums[1] + sums[2] + 1;
  const A per_pixel = grad_mask_loss / std::max<int64_t>(1, pixel_count(*pair.ranges));
  const A per_overlap = -2 * grad_dice_loss / size;  // d dice / d sum p t
  const A per_probability = grad_dice_loss * (2 * sums[0] + 1) / (size * size);
  int64_t written = 0;
  for (const auto& [begin, end] : *pair.ranges) {
    std::fill(grad + written, grad + begin, T(0));
    written = end;
    for (int64_t at = begin; at < end; at += kPairBlock) {
      const int64_t count = std::min(kPairBlock, end - at);
      read_mask(pair.masks, pair.mask * pair.pixels + at, count, truth);
      for (int64_t i = 0; i < count; i += kMathLanes<A>) {
        const auto terms =
            pixel_gradients(load_up_to<MathVec<A>>(pair.logits + at + i, count - i), pair.loss);
        const MathVec<A> t = load<MathVec<A>>(truth + i);
        const MathVec<A> value = per_pixel * (terms.offset + terms.slope * t) +
                                 (per_overlap * t + per_probability) * terms.p;
        store_up_to(grad + at + i, value, count - i);
      }
    }
  }
  std::fill(grad + written, grad + pair.pixels, T(0));
}

template <typename T>
constexpr PairKernels<T> kPairKernels = {.losses = &pair_losses<T>, .gradient = &pair_gradient<T>};
