// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/dispatch.h"
#include "common/operator.h"
#include "common/parallel.h"
#include "common/tensors.h"
#include "vector_quantize/vector_quantize.h"

namespace avskernels {

// What all segments of one backward pass share; tensors are contiguous.
template <typename T>
struct SegmentJob {
  const T* x;               // [M G, D]
  const T* grad_quantized;  // the same, or null
  const accumulate_t<T>* grad_loss;
  bool grad_loss_per_row;
  double scale;  // of grad_loss
  double commitment_weight;
  int64_t dim;
  T* grad_x;  // [M G, D]
};

template <typename T>
struct QuantizeBackwardKernels {
  void (*segment)(const SegmentJob<T>& job, const int64_t* rows, int64_t count, const T* codeword,
                  accumulate_t<T>* sum);
};

}  // namespace avskernels

#define AVSKERNELS_KERNEL "vector_quantize/vector_quantize_backward.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// Rows of one codeword that one thread adds up; long ones are cut so that a collapsed codebook
// does not leave one thread with everything.
struct Segment {
  static constexpr int64_t kMaxRows = 256;
  int64_t codeword, begin, end;
  int64_t part;  // where its sum waits to be added to others of the codeword, or -1
};

// The rows sorted by codeword, stably.
struct SortedRows {
  std::vector<int64_t> rows;
  std::vector<Segment> segments;
  int64_t parts = 0;
};

SortedRows sort_rows(const int64_t* indices, int64_t count, int64_t groups, int64_t codewords) {
  std::vector<int64_t> ends(groups * codewords + 1);  // first of each codeword, then its end
  const auto codeword = [&](int64_t row) { return row % groups * codewords + indices[row]; };
  for (int64_t row = 0; row < count; ++row) {
    check(indices[row] >= 0 && indices[row] < codewords,
          "_vector_quantize_backward: expected indices in [0, ", codewords, "), got ",
          indices[row]);
    ++ends[codeword(row) + 1];
  }
  SortedRows sorted;
  for (int64_t k = 0; k < groups * codewords; ++k) {
    const int64_t rows = ends[k + 1];
    ends[k + 1] += ends[k];
    for (int64_t begin = 0; begin < rows; begin += Segment::kMaxRows) {
      sorted.segments.push_back({k, ends[k] + begin,
                                 ends[k] + std::min(begin + Segment::kMaxRows, rows),
                                 rows > Segment::kMaxRows ? sorted.parts++ : -1});
    }
  }
  sorted.rows.resize(count);
  for (int64_t row = 0; row < count; ++row) {
    sorted.rows[ends[codeword(row)]++] = row;
  }
  return sorted;
}

template <typename T>
void backward(const SegmentJob<T>& job, const SortedRows& sorted, const T* codebook,
              double codebook_weight, T* grad_codebook) {
  using A = accumulate_t<T>;
  const auto kernel = AVSKERNELS_ACTIVE(kQuantizeBackwardKernels<T>).segment;
  const int64_t dim = job.dim;
  const int64_t count = sorted.segments.size();
  const A weight = static_cast<A>(-codebook_weight);
  const auto write = [&](int64_t codeword, const A* sum) {
    for (int64_t d = 0; d < dim && weight != 0; ++d) {
      grad_codebook[codeword * dim + d] = static_cast<T>(weight * sum[d]);
    }
  };
  std::vector<A> parts(sorted.parts * dim);
  parallel_for(count, 1 + 16384 / dim, [&](int64_t begin, int64_t end) {
    std::vector<A> own(dim);
    for (int64_t i = begin; i < end; ++i) {
      const Segment& segment = sorted.segments[i];
      A* sum = segment.part < 0 ? own.data() : parts.data() + segment.part * dim;
      kernel(job, sorted.rows.data() + segment.begin, segment.end - segment.begin,
             codebook + segment.codeword * dim, sum);
      if (segment.part < 0) {
        write(segment.codeword, sum);
      }
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    const Segment& segment = sorted.segments[i];
    if (segment.part < 0) {
      continue;
    }
    A* sum = parts.data() + segment.part * dim;
    const bool last = i + 1 == count || sorted.segments[i + 1].codeword != segment.codeword;
    if (last) {
      write(segment.codeword, sum);
    } else {
      for (int64_t d = 0; d < dim; ++d) {
        sum[dim + d] += sum[d];
      }
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> vector_quantize_backward_cpu(const VectorQuantizeBackward& in) {
  const QuantizeShape size = quantize_shape(in.x, in.codebook);
  const Tensor rows = dense(in.x);
  const Tensor books = dense(in.codebook);
  const Tensor codewords = dense(in.indices);
  const Tensor losses = dense(in.grad_loss);
  std::optional<Tensor> straight_through;
  if (in.grad_quantized) {
    straight_through = dense(*in.grad_quantized);
  }
  Tensor grad_x = torch::stable::new_empty(in.x, in.x.sizes());
  Tensor grad_codebook = torch::stable::new_zeros(in.codebook, in.codebook.sizes());
  const SortedRows sorted = sort_rows(codewords.const_data_ptr<int64_t>(), size.rows * size.groups,
                                      size.groups, size.codewords);
  dispatch_floating(in.x.scalar_type(), [&]<typename T>() {
    const SegmentJob<T> job = {
        .x = rows.const_data_ptr<T>(),
        .grad_quantized = straight_through ? straight_through->const_data_ptr<T>() : nullptr,
        .grad_loss = losses.const_data_ptr<accumulate_t<T>>(),
        .grad_loss_per_row = in.reduction == "none",
        .scale = in.reduction == "mean" ? 2.0 / static_cast<double>(in.x.numel()) : 2.0,
        .commitment_weight = in.commitment_weight,
        .dim = size.dim,
        .grad_x = grad_x.mutable_data_ptr<T>()};
    backward<T>(job, sorted, books.const_data_ptr<T>(), in.codebook_weight,
                grad_codebook.mutable_data_ptr<T>());
  });
  return {grad_x, grad_codebook};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::VectorQuantizeBackward>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::vector_quantize_backward_cpu>(m);
}
