// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "common/dispatch.h"
#include "common/operator.h"
#include "common/stream.h"
#include "common/tensors.h"
#include "vector_quantize/vector_quantize.h"

namespace avskernels {
namespace {

constexpr int kChunkRows = 128;  // sorted rows of a block
constexpr int kThreads = 128;

template <typename T>
struct BackwardArguments {
  const T* x;               // [R, D], R = M G
  const T* grad_quantized;  // [R, D] or null
  const accumulate_t<T>* grad_loss;
  const T* codebook;       // [G K, D]
  const int64_t* order;    // [R] row numbers, sorted by codeword
  const int64_t* codes;    // [R] codewords of the sorted rows; out of [0, G K): NaN for the row
  T* grad_x;               // [R, D]
  T* grad_codebook;        // [G K, D]
  accumulate_t<T>* parts;  // [chunks, 2, D] sums of a chunk's first and last codeword
  int64_t rows, codewords, dim;
  bool grad_loss_per_row;
  accumulate_t<T> scale, commitment_weight, codebook_weight;
};

template <typename T>
__device__ void write_codeword(const BackwardArguments<T>& a, int64_t code, int64_t d,
                               accumulate_t<T> sum) {
  if (code >= 0 && code < a.codewords && a.codebook_weight != 0) {
    a.grad_codebook[code * a.dim + d] = static_cast<T>(-a.codebook_weight * sum);
  }
}

// computes: grad_x of a chunk of sorted rows, and the sums scale * (x - c) of its codewords; the
//   first and the last one, which the neighbours may share, go to `parts`
// grid: chunks; threads over D, rows in order
// traffic and FLOPs: x, grad_quantized and grad_x once, codewords from L2; 6 R D
// numerics: sums in accumulate_t<T>, in sorted order: no atomics, deterministic
// limits: none
template <typename T>
__global__ void __launch_bounds__(kThreads) backward_chunk(BackwardArguments<T> a) {
  using A = accumulate_t<T>;
  __shared__ int64_t rows[kChunkRows];
  __shared__ int64_t codes[kChunkRows];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunkRows;
  const int count = static_cast<int>(min(static_cast<int64_t>(kChunkRows), a.rows - begin));
  for (int i = threadIdx.x; i < count; i += kThreads) {
    rows[i] = a.order[begin + i];
    codes[i] = a.codes[begin + i];
  }
  __syncthreads();
  A* part = a.parts + 2 * blockIdx.x * a.dim;
  for (int64_t d = threadIdx.x; d < a.dim; d += kThreads) {
    A sum = 0;
    for (int i = 0; i < count; ++i) {
      const int64_t at = rows[i] * a.dim + d;
      const bool known = codes[i] >= 0 && codes[i] < a.codewords;
      const A codeword = known ? static_cast<A>(a.codebook[codes[i] * a.dim + d])
                               : std::numeric_limits<A>::quiet_NaN();
      const A step = a.scale * a.grad_loss[a.grad_loss_per_row ? rows[i] : 0] *
                     (static_cast<A>(a.x[at]) - codeword);
      const A through = a.grad_quantized == nullptr ? A(0) : static_cast<A>(a.grad_quantized[at]);
      a.grad_x[at] = static_cast<T>(through + a.commitment_weight * step);
      sum += step;
      if (i + 1 == count || codes[i + 1] != codes[i]) {
        if (codes[i] == codes[0]) {
          part[d] = sum;
        } else if (i + 1 == count) {
          part[a.dim + d] = sum;
        } else {
          write_codeword(a, codes[i], d, sum);
        }
        sum = 0;
      }
    }
  }
}

// computes: the codewords that begin at the first or in the last rows of a chunk, from `parts`
// grid: chunks; threads over D
// traffic and FLOPs: parts once
// numerics: sums in the order of the chunks
// limits: a codeword with all rows is added up by one block, R / kChunkRows parts of it
template <typename T>
__global__ void __launch_bounds__(kThreads) join_chunks(BackwardArguments<T> a) {
  const int64_t chunks = gridDim.x;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunkRows;
  const int64_t last = min(begin + kChunkRows, a.rows) - 1;
  const bool begins_here = begin == 0 || a.codes[begin - 1] != a.codes[begin];
  const bool one_codeword = a.codes[begin] == a.codes[last];
  const accumulate_t<T>* part = a.parts + 2 * blockIdx.x * a.dim;
  for (int64_t d = threadIdx.x; d < a.dim; d += kThreads) {
    if (begins_here && !one_codeword) {
      write_codeword(a, a.codes[begin], d, part[d]);
    }
    if (begins_here || !one_codeword) {
      accumulate_t<T> sum = part[(one_codeword ? 0 : a.dim) + d];
      for (int64_t chunk = blockIdx.x + 1;
           chunk < chunks && a.codes[chunk * kChunkRows] == a.codes[last]; ++chunk) {
        sum += a.parts[2 * chunk * a.dim + d];
      }
      write_codeword(a, a.codes[last], d, sum);
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> vector_quantize_backward_cuda(const VectorQuantizeBackwardSorted& in) {
  const Tensor& x = in.x;
  const QuantizeShape size = quantize_shape(x, in.codebook);
  const int64_t count = size.rows * size.groups;
  Tensor grad_x = torch::stable::new_empty(x, x.sizes());
  Tensor grad_codebook = torch::stable::new_zeros(in.codebook, in.codebook.sizes());
  if (count == 0) {
    return {grad_x, grad_codebook};
  }
  const CudaScope scope(x);
  const Tensor rows = dense(x);
  const Tensor books = dense(in.codebook);
  const Tensor losses = dense(in.grad_loss);
  const Tensor order = dense(in.order);
  const Tensor codes = dense(in.codes);
  std::optional<Tensor> through;
  if (in.grad_quantized) {
    through = dense(*in.grad_quantized);
  }
  const int64_t chunks = (count + kChunkRows - 1) / kChunkRows;
  Tensor parts =
      torch::stable::new_empty(x, {chunks, 2, size.dim}, accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    using A = accumulate_t<T>;
    const BackwardArguments<T> arguments = {
        rows.const_data_ptr<T>(),
        through ? through->const_data_ptr<T>() : nullptr,
        losses.const_data_ptr<A>(),
        books.const_data_ptr<T>(),
        order.const_data_ptr<int64_t>(),
        codes.const_data_ptr<int64_t>(),
        grad_x.mutable_data_ptr<T>(),
        grad_codebook.mutable_data_ptr<T>(),
        parts.mutable_data_ptr<A>(),
        count,
        size.groups * size.codewords,
        size.dim,
        in.reduction == "none",
        static_cast<A>(in.reduction == "mean" ? 2.0 / static_cast<double>(x.numel()) : 2.0),
        static_cast<A>(in.commitment_weight),
        static_cast<A>(in.codebook_weight)};
    backward_chunk<T><<<chunks, kThreads, 0, scope.stream()>>>(arguments);
    check_launch("_vector_quantize_backward_cuda");
    join_chunks<T><<<chunks, kThreads, 0, scope.stream()>>>(arguments);
    check_launch("_vector_quantize_backward_cuda");
  });
  return {grad_x, grad_codebook};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::VectorQuantizeBackwardSorted>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CUDA, m) {
  avskernels::implement<&avskernels::vector_quantize_backward_cuda>(m);
}
