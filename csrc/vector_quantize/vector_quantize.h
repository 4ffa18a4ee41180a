// SPDX-License-Identifier: Apache-2.0
// Nearest codeword of a codebook under squared L2 distance, and the quantization loss around it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "common/check.h"
#include "common/dispatch.h"

namespace avskernels {

using torch::stable::Tensor;

inline constexpr const char* kNearestCodewordSchema =
    "nearest_codeword(Tensor x, Tensor codebook) -> (Tensor indices, Tensor squared_distance)";
std::tuple<Tensor, Tensor> nearest_codeword_cpu(const Tensor& x,          // [..., D] or [..., G, D]
                                                const Tensor& codebook);  // [K, D] or [G, K, D]

inline constexpr const char* kVectorQuantizeSchema =
    "vector_quantize(Tensor x, Tensor codebook, float commitment_weight, float codebook_weight, "
    "str reduction) -> (Tensor quantized, Tensor indices, Tensor loss)";
std::tuple<Tensor, Tensor, Tensor> vector_quantize_cpu(const Tensor& x,         // [..., (G,) D]
                                                       const Tensor& codebook,  // [(G,) K, D]
                                                       double commitment_weight,
                                                       double codebook_weight,
                                                       const std::string& reduction);

inline constexpr const char* kVectorQuantizeBackwardSchema =
    "_vector_quantize_backward(Tensor? grad_quantized, Tensor grad_loss, Tensor x, "
    "Tensor codebook, Tensor indices, float commitment_weight, float codebook_weight, "
    "str reduction) -> (Tensor grad_x, Tensor grad_codebook)";
std::tuple<Tensor, Tensor> vector_quantize_backward_cpu(
    const std::optional<Tensor>& grad_quantized,  // [..., (G,) D]
    const Tensor& grad_loss,                      // [] or [..., (G)]
    const Tensor& x,                              // [..., (G,) D]
    const Tensor& codebook,                       // [(G,) K, D]
    const Tensor& indices,                        // [..., (G)] int64
    double commitment_weight, double codebook_weight, const std::string& reduction);

// The same on a CUDA device, of rows sorted by codeword: order [M G] holds row numbers, codes [M G]
// the codewords (counted over all groups) of the rows in that order.
inline constexpr const char* kVectorQuantizeBackwardCudaSchema =
    "_vector_quantize_backward_cuda(Tensor? grad_quantized, Tensor grad_loss, Tensor x, "
    "Tensor codebook, Tensor order, Tensor codes, float commitment_weight, "
    "float codebook_weight, str reduction) -> (Tensor grad_x, Tensor grad_codebook)";

// x and codebook as rows: row r of group g is quantized with codebook g.
struct QuantizeShape {
  int64_t rows;       // M, over all leading dimensions of x
  int64_t groups;     // G, 1 for a shared codebook
  int64_t codewords;  // K
  int64_t dim;        // D
};

inline QuantizeShape check_quantize(const char* op, const Tensor& x, const Tensor& codebook) {
  const bool grouped = codebook.dim() == 3;
  if (!grouped && codebook.dim() != 2) {
    fail(op, ": expected codebook [K, D] or [G, K, D], got ", shape(codebook));
  }
  const int64_t dim = codebook.size(codebook.dim() - 1);
  const int64_t codewords = codebook.size(codebook.dim() - 2);
  const int64_t groups = grouped ? codebook.size(0) : 1;
  if (x.dim() < (grouped ? 2 : 1) || x.size(x.dim() - 1) != dim ||
      (grouped && x.size(x.dim() - 2) != groups)) {
    fail(op, ": expected x [...", grouped ? ", " + std::to_string(groups) : "", ", ", dim,
         "] to match codebook ", shape(codebook), ", got ", shape(x));
  }
  if (codewords == 0 || dim == 0) {
    fail(op, ": expected a codebook with at least one codeword and one dimension, got ",
         shape(codebook));
  }
  if (x.scalar_type() != codebook.scalar_type()) {
    fail(op, ": expected x and codebook of one dtype, got ", dtype_name(x.scalar_type()), " and ",
         dtype_name(codebook.scalar_type()));
  }
  return {x.numel() / (groups * dim), groups, codewords, dim};
}

}  // namespace avskernels
