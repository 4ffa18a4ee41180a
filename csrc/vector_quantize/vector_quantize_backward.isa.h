// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by vector_quantize_backward_cpu.cpp.

// computes: for the rows of one segment, all of one codeword: their gradient, and their part
//   sum of scale * (x - c) of the codeword's
// loop order: rows in order, dimensions
// traffic and FLOPs: reads x and grad_quantized, writes grad_x, once; 6 per row element
// numerics: sums in accumulate_t<T>, in the order of the rows
// limits: none
template <typename T>
void backward_segment(const SegmentJob<T>& job, const int64_t* rows, int64_t count,
                      const T* __restrict__ codeword, accumulate_t<T>* __restrict__ sum) {
  using A = accumulate_t<T>;
  std::fill_n(sum, job.dim, A(0));
  for (int64_t i = 0; i < count; ++i) {
    const T* x = job.x + rows[i] * job.dim;
    const T* grad_quantized =
        job.grad_quantized == nullptr ? nullptr : job.grad_quantized + rows[i] * job.dim;
    T* grad_x = job.grad_x + rows[i] * job.dim;
    const A scale = static_cast<A>(job.scale * job.grad_loss[job.grad_loss_per_row ? rows[i] : 0]);
    const A commitment = static_cast<A>(job.commitment_weight) * scale;
    constexpr int64_t kStep = kLanes<A>;
    int64_t d = 0;
    for (; d + kStep <= job.dim; d += kStep) {
      const auto difference = load(x + d) - load(codeword + d);
      auto grad = commitment * difference;
      if (grad_quantized != nullptr) {
        grad += load(grad_quantized + d);
      }
      store(grad_x + d, grad);
      store(sum + d, load(sum + d) + scale * difference);
    }
    for (; d < job.dim; ++d) {
      const A difference = static_cast<A>(x[d]) - static_cast<A>(codeword[d]);
      const A straight_through = grad_quantized == nullptr ? A(0) : A(grad_quantized[d]);
      grad_x[d] = static_cast<T>(straight_through + commitment * difference);
      sum[d] += scale * difference;
    }
  }
}

template <typename T>
constexpr QuantizeBackwardKernels<T> kQuantizeBackwardKernels = {.segment = &backward_segment<T>};
