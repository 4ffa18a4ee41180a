// SPDX-License-Identifier: Apache-2.0
// The cost of matching every prediction with every target of its image.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "common/check.h"
#include "common/mask_loss.h"

namespace avskernels {

using torch::stable::Tensor;

inline constexpr const char* kMatchingCostSchema =
    "matching_cost(Tensor? class_logits, Tensor? boxes, Tensor? mask_logits, "
    "Tensor? target_labels, Tensor? target_boxes, Tensor? target_masks, Tensor? num_targets, "
    "Tensor? valid, Tensor? labelled, float cls, float l1, float giou, float mask, float dice, "
    "str class_cost, str mask_cost, float alpha, float gamma) -> Tensor";
Tensor matching_cost_cpu(const std::optional<Tensor>& class_logits,   // [B, N, T, K]
                         const std::optional<Tensor>& boxes,          // [B, N, T, 4]
                         const std::optional<Tensor>& mask_logits,    // [B, N, T, ...]
                         const std::optional<Tensor>& target_labels,  // [B', J] int64
                         const std::optional<Tensor>& target_boxes,   // [B', J, T, 4]
                         const std::optional<Tensor>& target_masks,   // [B', J, T, ...]
                         const std::optional<Tensor>& num_targets,    // [B'] int64
                         const std::optional<Tensor>& valid,          // [B', J, T] bool
                         const std::optional<Tensor>& labelled,       // [B', T] bool
                         double cls, double l1, double giou, double mask, double dice,
                         const std::string& class_cost, const std::string& mask_cost, double alpha,
                         double gamma);

struct MatchingShape {
  int64_t images = -1;         // B
  int64_t queries = -1;        // N
  int64_t frames = -1;         // T
  int64_t target_images = -1;  // B', a divisor of B: prediction b meets target b % B'
  int64_t targets = -1;        // J
  ScalarType dtype = ScalarType::Float;
};

inline MatchingShape check_matching(
    const std::optional<Tensor>& class_logits, const std::optional<Tensor>& boxes,
    const std::optional<Tensor>& mask_logits, const std::optional<Tensor>& target_labels,
    const std::optional<Tensor>& target_boxes, const std::optional<Tensor>& target_masks,
    const std::optional<Tensor>& num_targets, const std::optional<Tensor>& valid,
    const std::optional<Tensor>& labelled) {
  constexpr const char* op = "matching_cost";
  MatchingShape size;
  const Tensor* like = nullptr;
  const auto known = [](int64_t count, const char* name) {
    return count < 0 ? Dim(name) : Dim(count);
  };
  const auto prediction = [&](const char* name, const std::optional<Tensor>& tensor, Dim tail) {
    if (tensor) {
      expect(op, name, *tensor,
             {known(size.images, "B"), known(size.queries, "N"), known(size.frames, "T"), tail},
             kFloatingPoint);
      size.images = tensor->size(0);
      size.queries = tensor->size(1);
      size.frames = tensor->size(2);
      if (tensor->scalar_type() == ScalarType::Double) size.dtype = ScalarType::Double;
      like = &*tensor;
    }
  };
  prediction("class_logits", class_logits, "K");
  prediction("boxes", boxes, 4);
  prediction("mask_logits", mask_logits, "...");
  if (like == nullptr) {
    fail(op, ": expected class_logits, boxes or mask_logits, got none of them");
  }
  const auto target = [&](const char* name, const std::optional<Tensor>& tensor,
                          const std::optional<Tensor>& of, std::vector<Dim> tail,
                          std::initializer_list<ScalarType> dtypes) {
    if (tensor.has_value() != of.has_value()) {
      fail(op, ": expected ", name, " with its prediction, got ", tensor ? "it alone" : "none");
    }
    if (tensor) {
      std::vector<Dim> dims = {known(size.target_images, "B"), known(size.targets, "J")};
      dims.insert(dims.end(), tail.begin(), tail.end());
      expect(op, name, *tensor, dims, dtypes);
      size.target_images = tensor->size(0);
      size.targets = tensor->size(1);
    }
  };
  std::vector<Dim> pixels;
  for (int64_t i = 2; mask_logits && i < mask_logits->dim(); ++i) {
    pixels.emplace_back(mask_logits->size(i));
  }
  target("target_labels", target_labels, class_logits, {}, {ScalarType::Long});
  target("target_boxes", target_boxes, boxes, {size.frames, 4}, kFloatingPoint);
  target("target_masks", target_masks, mask_logits, pixels, kMaskTypes);
  check_divides(op, size.target_images, size.images);
  const auto option = [&](const char* name, const std::optional<Tensor>& tensor,
                          std::vector<Dim> dims, ScalarType dtype) {
    if (tensor) expect(op, name, *tensor, dims, {dtype});
  };
  option("num_targets", num_targets, {size.target_images}, ScalarType::Long);
  option("valid", valid, {size.target_images, size.targets, size.frames}, ScalarType::Bool);
  option("labelled", labelled, {size.target_images, size.frames}, ScalarType::Bool);
  return size;
}

}  // namespace avskernels
