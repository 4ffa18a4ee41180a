// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/operator.h"
#include "common/parallel.h"
#include "common/tensors.h"
#include "linear_assignment/linear_assignment.h"
#include "linear_assignment/tiered.h"

namespace avskernels {
namespace {

// One problem: rows x cols of costs inside a row-major matrix.
template <typename T>
struct AssignmentProblem {
  const T* cost;
  int64_t row_stride;
  int64_t rows;
  int64_t cols;
};

template <typename T>
struct AssignmentKernels {
  void (*solve)(const AssignmentProblem<T>* problems, int64_t count, int64_t max_rows,
                int64_t max_cols, int64_t* columns);
};

}  // namespace
}  // namespace avskernels

#define AVSKERNELS_KERNEL "linear_assignment/linear_assignment.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// The sizes of the problems on the CPU, each within 0..largest.
std::vector<int64_t> problem_sizes(const char* name, const std::optional<Tensor>& sizes,
                                   int64_t problems, int64_t largest) {
  if (!sizes) {
    return std::vector<int64_t>(problems, largest);
  }
  const Tensor counts = dense(*sizes);
  const int64_t* data = counts.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < problems; ++b) {
    if (data[b] < 0 || data[b] > largest) {
      fail("linear_assignment: expected ", name, " in 0..", largest, ", got ", data[b]);
    }
  }
  return std::vector<int64_t>(data, data + problems);
}

}  // namespace

Tensor linear_assignment_cpu(const LinearAssignment& in) {
  const Tensor& cost = in.cost;
  const int64_t problems = cost.size(0), rows = cost.size(1), cols = cost.size(2);
  const std::vector<int64_t> row_counts = problem_sizes("num_rows", in.num_rows, problems, rows);
  const std::vector<int64_t> col_counts = problem_sizes("num_cols", in.num_cols, problems, cols);
  const Tensor costs = dense(cost);
  Tensor columns = torch::stable::new_empty(cost, {problems, rows}, ScalarType::Long);
  int64_t* out = columns.mutable_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, rows * cols));
  dispatch_floating(cost.scalar_type(), [&]<typename T>() {
    const auto solve = AVSKERNELS_ACTIVE(kAssignmentKernels<T>).solve;
    const T* data = costs.const_data_ptr<T>();
    parallel_for(problems, grain, [&](int64_t begin, int64_t end) {
      std::vector<AssignmentProblem<T>> own;
      for (int64_t b = begin; b < end; ++b) {
        own.push_back({.cost = data + b * rows * cols,
                       .row_stride = cols,
                       .rows = row_counts[b],
                       .cols = col_counts[b]});
      }
      solve(own.data(), end - begin, rows, cols, out + begin * rows);
    });
  });
  return columns;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::LinearAssignment>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::linear_assignment_cpu>(m);
}
