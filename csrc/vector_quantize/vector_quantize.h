// SPDX-License-Identifier: Apache-2.0
// Nearest codeword of a codebook under squared L2 distance, and the quantization loss around it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "common/check.h"

namespace avskernels {

using torch::stable::Tensor;

// x and codebook as rows: row r of group g is quantized with codebook g.
struct QuantizeShape {
  int64_t rows;       // M, over all leading dimensions of x
  int64_t groups;     // G, 1 for a shared codebook
  int64_t codewords;  // K
  int64_t dim;        // D
};

inline QuantizeShape quantize_shape(const Tensor& x, const Tensor& codebook) {
  const int64_t groups = codebook.dim() == 3 ? codebook.size(0) : 1;
  const int64_t codewords = codebook.size(codebook.dim() - 2);
  const int64_t dim = codebook.size(codebook.dim() - 1);
  return {x.numel() / (groups * dim), groups, codewords, dim};
}

inline void require_codebook(const char* op, const Tensor& x, const Tensor& codebook) {
  if (codebook.numel() == 0) {
    fail(op, ": expected a codebook with at least one codeword and one dimension, got ",
         shape(codebook));
  }
  if (codebook.dim() == 3 && (x.dim() < 2 || x.size(x.dim() - 2) != codebook.size(0))) {
    fail(op, ": expected x [..., ", codebook.size(0), ", ", codebook.size(2), "], got ", shape(x));
  }
}

// The loss has one value per row of x with reduction "none", else one.
inline void require_grad_loss(const char* op, const Tensor& grad_loss, const Tensor& x,
                              const std::string& reduction) {
  const bool per_row = reduction == "none";
  const auto wanted = x.sizes().slice(0, per_row ? x.dim() - 1 : 0);
  if (grad_loss.sizes() != wanted) {
    fail(op, ": expected grad_loss of one value", per_row ? " per row" : "", ", got ",
         shape(grad_loss));
  }
}

struct NearestCodeword {
  static constexpr const char* kSpecification = R"(
    nearest_codeword(
      Tensor x: floating [...rows, D]
      Tensor codebook: as(x) [(G), K, D]
    ) ->
      Tensor indices: int64 [...rows]
      Tensor squared_distance: sums(x) [...rows]
  )";
  Tensor x;
  Tensor codebook;

  void require() const { require_codebook("nearest_codeword", x, codebook); }
};
std::tuple<Tensor, Tensor> nearest_codeword_cpu(const NearestCodeword& in);

// With reduction "none" the loss is [...rows], else a scalar.
struct VectorQuantize {
  static constexpr const char* kSpecification = R"(
    vector_quantize(
      Tensor x: floating [...rows, D]
      Tensor codebook: as(x) [(G), K, D]
      float commitment_weight
      float codebook_weight
      str reduction
    ) ->
      Tensor quantized: like(x)
      Tensor indices: int64 [...rows]
      Tensor loss: sums(x) []
  )";
  Tensor x;
  Tensor codebook;
  double commitment_weight;
  double codebook_weight;
  std::string reduction;

  void require() const { require_codebook("vector_quantize", x, codebook); }
};
std::tuple<Tensor, Tensor, Tensor> vector_quantize_cpu(const VectorQuantize& in);

// Without grad_quantized, the gradients of the loss alone.
struct VectorQuantizeBackward {
  static constexpr const char* kSpecification = R"(
    _vector_quantize_backward(
      Tensor? grad_quantized: as(x) [...rows, D]
      Tensor grad_loss: sums(x) [...loss]
      Tensor x: floating [...rows, D]
      Tensor codebook: as(x) [(G), K, D]
      Tensor indices: int64 [...rows]
      float commitment_weight
      float codebook_weight
      str reduction
    ) ->
      Tensor grad_x: as(x) [...rows, D]
      Tensor grad_codebook: as(x) [(G), K, D]
  )";
  std::optional<Tensor> grad_quantized;
  Tensor grad_loss;
  Tensor x;
  Tensor codebook;
  Tensor indices;
  double commitment_weight;
  double codebook_weight;
  std::string reduction;

  void require() const {
    require_codebook("_vector_quantize_backward", x, codebook);
    require_grad_loss("_vector_quantize_backward", grad_loss, x, reduction);
  }
};
std::tuple<Tensor, Tensor> vector_quantize_backward_cpu(const VectorQuantizeBackward& in);

// The same of rows sorted by codeword: order holds the numbers of the R = M G rows, codes the
// codewords (counted over all groups) of the rows in that order.
struct VectorQuantizeBackwardSorted {
  static constexpr const char* kSpecification = R"(
    _vector_quantize_backward_cuda(
      Tensor? grad_quantized: as(x) [...rows, D]
      Tensor grad_loss: sums(x) [...loss]
      Tensor x: floating [...rows, D]
      Tensor codebook: as(x) [(G), K, D]
      Tensor order: int64 [R]
      Tensor codes: int64 [R]
      float commitment_weight
      float codebook_weight
      str reduction
    ) ->
      Tensor grad_x: as(x) [...rows, D]
      Tensor grad_codebook: as(x) [(G), K, D]
  )";
  std::optional<Tensor> grad_quantized;
  Tensor grad_loss;
  Tensor x;
  Tensor codebook;
  Tensor order;
  Tensor codes;
  double commitment_weight;
  double codebook_weight;
  std::string reduction;

  void require() const {
    const char* const op = "_vector_quantize_backward_cuda";
    require_codebook(op, x, codebook);
    require_grad_loss(op, grad_loss, x, reduction);
    const QuantizeShape size = quantize_shape(x, codebook);
    if (order.numel() != size.rows * size.groups) {
      fail(op, ": expected order [", size.rows * size.groups, "], got ", shape(order));
    }
  }
};
std::tuple<Tensor, Tensor> vector_quantize_backward_cuda(const VectorQuantizeBackwardSorted& in);

}  // namespace avskernels
