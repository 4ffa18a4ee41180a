// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/operator.h"
#include "common/parallel.h"
#include "common/tensors.h"
#include "focal_dice_loss/focal_dice_loss.h"

namespace avskernels {
namespace {

constexpr int64_t kPairBlock = 1024;  // pixels

// A matched prediction and its target.
template <typename T>
struct MaskPair {
  const T* logits;  // [pixels]
  MaskData masks;   // [target_images J, pixels]
  int64_t mask;     // the row of the target
  int64_t pixels;   // of all frames
  const PixelRanges* ranges;
  PixelLoss loss;
};

template <typename T, typename A = accumulate_t<T>>
struct PairKernels {
  void (*losses)(const MaskPair<T>& pair, A* mask_loss, A* dice_loss, A* sums);
  void (*gradient)(const MaskPair<T>& pair, A grad_mask_loss, A grad_dice_loss, const A* sums,
                   T* grad);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "focal_dice_loss/focal_dice_loss.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// The dense arguments and the pairs in them. In: FocalDiceLoss or FocalDiceLossBackward.
class Pairs {
 public:
  template <typename In>
  explicit Pairs(const In& in) : loss_(pixel_loss(in.mask_loss, in.alpha, in.gamma)) {
    logits_ = dense(in.mask_logits);
    masks_ = dense(in.target_masks);
    columns_ = dense(in.columns);
    queries_ = logits_.size(1);
    target_images_ = masks_.size(0);
    targets_ = masks_.size(1);
    const int64_t frames = logits_.size(2);
    pixels_ = 1;
    for (int64_t i = 2; i < logits_.dim(); ++i) pixels_ *= logits_.size(i);
    const int64_t* const data = columns_.const_data_ptr<int64_t>();
    for (int64_t row = 0; row < rows(); ++row) {
      if (data[row] >= targets_) {
        fail("focal_dice_loss: expected columns below ", targets_, ", got ", data[row]);
      }
    }
    const Tensor shown = in.labelled ? dense(*in.labelled) : Tensor();
    for (int64_t k = 0; k < target_images_; ++k) {
      ranges_.push_back(
          labelled_pixels(in.labelled ? shown.const_data_ptr<bool>() + k * frames : nullptr, frames,
                          pixels_ / std::max<int64_t>(1, frames)));
    }
  }

  int64_t rows() const { return columns_.numel(); }
  int64_t pixels() const { return pixels_; }
  int64_t column(int64_t row) const { return columns_.const_data_ptr<int64_t>()[row]; }

  template <typename T>
  MaskPair<T> pair(int64_t row) const {
    const int64_t k = row / queries_ % target_images_;
    return {.logits = logits_.const_data_ptr<T>() + row * pixels_,
            .masks = MaskData(masks_),
            .mask = k * targets_ + column(row),
            .pixels = pixels_,
            .ranges = &ranges_[k],
            .loss = loss_};
  }

 private:
  PixelLoss loss_;
  Tensor logits_, masks_, columns_;
  int64_t queries_, target_images_, targets_, pixels_;
  std::vector<PixelRanges> ranges_;  // [target_images]
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> focal_dice_loss_cpu(const FocalDiceLoss& in) {
  const Pairs pairs(in);
  const int64_t images = in.columns.size(0), queries = in.columns.size(1);
  const ScalarType dtype = accumulate_type(in.mask_logits.scalar_type());
  Tensor losses = torch::stable::new_empty(in.mask_logits, {images, queries}, dtype);
  Tensor dice = torch::stable::new_empty(in.mask_logits, {images, queries}, dtype);
  Tensor sums = torch::stable::new_empty(in.mask_logits, {images, queries, 3}, dtype);
  dispatch_floating(in.mask_logits.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kPairKernels<T>).losses;
    A* const loss_data = losses.mutable_data_ptr<A>();
    A* const dice_data = dice.mutable_data_ptr<A>();
    A* const sum_data = sums.mutable_data_ptr<A>();
    parallel_for(pairs.rows(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (pairs.column(row) < 0) {
          loss_data[row] = dice_data[row] = 0;
          std::fill_n(sum_data + row * 3, 3, A(0));
        } else {
          kernel(pairs.pair<T>(row), loss_data + row, dice_data + row, sum_data + row * 3);
        }
      }
    });
  });
  return {losses, dice, sums};
}

Tensor focal_dice_loss_backward_cpu(const FocalDiceLossBackward& in) {
  const Pairs pairs(in);
  const Tensor loss_grads = dense(in.grad_mask_loss);
  const Tensor dice_grads = dense(in.grad_dice_loss);
  const Tensor dense_sums = dense(in.sums);
  const auto sizes = in.mask_logits.sizes();
  Tensor grad =
      torch::stable::new_empty(in.mask_logits, std::vector<int64_t>(sizes.begin(), sizes.end()));
  dispatch_floating(in.mask_logits.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel = AVSKERNELS_ACTIVE(kPairKernels<T>).gradient;
    T* const data = grad.mutable_data_ptr<T>();
    parallel_for(pairs.rows(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* const out = data + row * pairs.pixels();
        if (pairs.column(row) < 0) {
          std::fill_n(out, pairs.pixels(), T(0));
        } else {
          kernel(pairs.pair<T>(row), loss_grads.const_data_ptr<A>()[row],
                 dice_grads.const_data_ptr<A>()[row], dense_sums.const_data_ptr<A>() + row * 3,
                 out);
        }
      }
    });
  });
  return grad;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::FocalDiceLoss>(m);
  avskernels::define<avskernels::FocalDiceLossBackward>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::focal_dice_loss_cpu>(m);
  avskernels::implement<&avskernels::focal_dice_loss_backward_cpu>(m);
}
