// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "focal_dice_loss/focal_dice_loss.h"

namespace avskernels {
namespace {

constexpr int64_t kPairBlock = 1024;  // pixels

// A matched prediction and its target.
template <typename T>
struct MaskPair {
  const T* logits;  // [pixels]
  MaskData masks;   // [B' J, pixels]
  int64_t mask;     // the row of the target
  int64_t pixels;   // of all frames
  const PixelRanges* ranges;
  PixelLoss loss;
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "focal_dice_loss/focal_dice_loss_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// The arguments, checked and dense, and the pairs in them.
class Pairs {
 public:
  Pairs(const Tensor& mask_logits, const Tensor& target_masks, const Tensor& columns,
        const std::optional<Tensor>& labelled, const std::string& mask_loss, double alpha,
        double gamma)
      : loss_(pixel_loss(mask_loss, alpha, gamma)) {
    check_pairs(mask_logits, target_masks, columns, labelled);
    logits_ = torch::stable::contiguous(mask_logits);
    masks_ = torch::stable::contiguous(target_masks);
    columns_ = torch::stable::contiguous(columns);
    queries_ = mask_logits.size(1);
    target_images_ = target_masks.size(0);
    targets_ = target_masks.size(1);
    const int64_t frames = mask_logits.size(2);
    pixels_ = 1;
    for (int64_t i = 2; i < mask_logits.dim(); ++i) pixels_ *= mask_logits.size(i);
    const int64_t* const data = columns_.const_data_ptr<int64_t>();
    for (int64_t row = 0; row < rows(); ++row) {
      if (data[row] >= targets_) {
        fail("focal_dice_loss: expected columns below ", targets_, ", got ", data[row]);
      }
    }
    const Tensor shown = labelled ? torch::stable::contiguous(*labelled) : Tensor();
    for (int64_t k = 0; k < target_images_; ++k) {
      ranges_.push_back(
          labelled_pixels(labelled ? shown.const_data_ptr<bool>() + k * frames : nullptr, frames,
                          pixels_ / std::max<int64_t>(1, frames)));
    }
  }

  int64_t rows() const { return columns_.numel(); }
  int64_t pixels() const { return pixels_; }
  int64_t column(int64_t row) const { return columns_.const_data_ptr<int64_t>()[row]; }

  template <typename T>
  MaskPair<T> pair(int64_t row) const {
    const int64_t k = row / queries_ % target_images_;
    return {logits_.const_data_ptr<T>() + row * pixels_,
            MaskData(masks_),
            k * targets_ + column(row),
            pixels_,
            &ranges_[k],
            loss_};
  }

 private:
  PixelLoss loss_;
  Tensor logits_, masks_, columns_;
  int64_t queries_, target_images_, targets_, pixels_;
  std::vector<PixelRanges> ranges_;  // [B']
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> focal_dice_loss_cpu(const Tensor& mask_logits,
                                                       const Tensor& target_masks,
                                                       const Tensor& columns,
                                                       const std::optional<Tensor>& labelled,
                                                       const std::string& mask_loss, double alpha,
                                                       double gamma) {
  const Pairs pairs(mask_logits, target_masks, columns, labelled, mask_loss, alpha, gamma);
  const int64_t images = columns.size(0), queries = columns.size(1);
  const ScalarType dtype = accumulate_type(mask_logits.scalar_type());
  Tensor losses = torch::stable::new_empty(mask_logits, {images, queries}, dtype);
  Tensor dice = torch::stable::new_empty(mask_logits, {images, queries}, dtype);
  Tensor sums = torch::stable::new_empty(mask_logits, {images, queries, 3}, dtype);
  dispatch_floating(mask_logits.scalar_type(), "focal_dice_loss", [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel =
        select_isa(&portable::pair_losses<T>, &avx2::pair_losses<T>, &avx512::pair_losses<T>);
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

Tensor focal_dice_loss_backward_cpu(const Tensor& grad_mask_loss, const Tensor& grad_dice_loss,
                                    const Tensor& mask_logits, const Tensor& target_masks,
                                    const Tensor& columns, const std::optional<Tensor>& labelled,
                                    const Tensor& sums, const std::string& mask_loss, double alpha,
                                    double gamma) {
  constexpr const char* op = "focal_dice_loss";
  const Pairs pairs(mask_logits, target_masks, columns, labelled, mask_loss, alpha, gamma);
  const ScalarType dtype = accumulate_type(mask_logits.scalar_type());
  const int64_t images = columns.size(0), queries = columns.size(1);
  expect(op, "grad_mask_loss", grad_mask_loss, {images, queries}, {dtype});
  expect(op, "grad_dice_loss", grad_dice_loss, {images, queries}, {dtype});
  expect(op, "sums", sums, {images, queries, 3}, {dtype});
  const Tensor loss_grads = torch::stable::contiguous(grad_mask_loss);
  const Tensor dice_grads = torch::stable::contiguous(grad_dice_loss);
  const Tensor dense_sums = torch::stable::contiguous(sums);
  const auto sizes = mask_logits.sizes();
  Tensor grad =
      torch::stable::new_empty(mask_logits, std::vector<int64_t>(sizes.begin(), sizes.end()));
  dispatch_floating(mask_logits.scalar_type(), op, [&]<typename T>() {
    using A = accumulate_t<T>;
    const auto kernel =
        select_isa(&portable::pair_gradient<T>, &avx2::pair_gradient<T>, &avx512::pair_gradient<T>);
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

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("focal_dice_loss", TORCH_BOX(&avskernels::focal_dice_loss_cpu));
  m.impl("_focal_dice_loss_backward", TORCH_BOX(&avskernels::focal_dice_loss_backward_cpu));
}
