// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by linear_assignment_cpu.cpp.
#include "linear_assignment/search.isa.h"
#include "linear_assignment/vector_scan.isa.h"

namespace {

constexpr int64_t kPlainColumns = 6;  // fewer than a vector is worth

// Copies n rows of m costs at any steps into dest [n][stride], +Inf after them; false if some cost
// is not finite (or, as a double, so large that sums overflow).
template <typename T, typename W>
bool copy_strided(const T* source, int64_t row_step, int64_t column_step, int64_t n, int64_t m,
                  W* dest, int64_t stride) {
  constexpr double largest =
      std::is_same_v<W, double> ? kLargestCost : std::numeric_limits<float>::max();
  bool within = true;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      const W value = static_cast<W>(source[i * row_step + j * column_step]);
      within &= std::fabs(value) <= largest;
      dest[i * stride + j] = value;
    }
    std::fill(dest + i * stride + m, dest + (i + 1) * stride, std::numeric_limits<W>::infinity());
  }
  return within;
}

// The same for r contiguous rows of c costs.
template <typename T>
bool copy_rows(const T* source, int64_t source_stride, int64_t r, int64_t c, float* dest,
               int64_t stride) {
  Vec<float> poison = {};  // 0 times a cost that is not finite is NaN
  for (int64_t i = 0; i < r; ++i) {
    const T* from = source + i * source_stride;
    float* to = dest + i * stride;
    for (int64_t j = 0; j < c; j += kLanes<float>) {
      const Vec<float> costs = load_up_to(from + j, c - j);
      poison += costs * 0.0f;
      store(to + j, costs);
    }
    std::fill(to + c, to + stride, std::numeric_limits<float>::infinity());
  }
  return sum(poison) == 0;
}

// The same with dest [c][stride] transposed, +Inf after its r columns.
template <typename T>
bool copy_columns(const T* source, int64_t source_stride, int64_t r, int64_t c, float* dest,
                  int64_t stride) {
  Vec<float> poison = {};  // 0 times a cost that is not finite is NaN
  for (int64_t i = 0; i < r; i += kLanes<float>) {
    const int64_t height = std::min(kLanes<float>, r - i);
    for (int64_t j = 0; j < c; j += kLanes<float>) {
      const int64_t width = std::min(kLanes<float>, c - j);
      const T* from = source + i * source_stride + j;
      Vec<float> tile[kLanes<float>];
      for (int64_t k = 0; k < kLanes<float>; ++k) {
        tile[k] = broadcast(std::numeric_limits<float>::infinity());
        if (k < height) {
          tile[k] = load_up_to(from + k * source_stride, width);
          poison += tile[k] * 0.0f;
        }
      }
      transpose(tile);
      for (int64_t k = 0; k < width; ++k) store(dest + (j + k) * stride + i, tile[k]);
    }
  }
  return sum(poison) == 0;
}

// A problem with forbidden, preferred or huge costs: column_of_row is -1 where the pair is
// forbidden.
template <typename T>
void assign_tiered(const MatrixCost<T>& cost, int64_t n, int64_t m, int64_t* column_of_row) {
  bool huge = false;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) huge |= is_huge(cost(i, j));
  }
  std::vector<TieredCost> values(2 * m);
  std::vector<int64_t> indices(2 * m + n);
  const std::unique_ptr<bool[]> closed(new bool[m]);
  PlainScan<Tiers<MatrixCost<T>>, TieredCost, int64_t, OneLane> scan = {
      {n, m, values.data(), values.data() + m, indices.data(), indices.data() + m, column_of_row,
       indices.data() + 2 * m},
      {cost, n, huge},
      {std::numeric_limits<double>::infinity(), 0},
      closed.get(),
      {}};
  assign_rows(scan);
  for (int64_t i = 0; i < n; ++i) {
    if (scan.cost(i, column_of_row[i]).tier > 0) column_of_row[i] = -1;
  }
}

}  // namespace

// Solves `count` problems inside matrices [max_rows][max_cols] into columns [count][max_rows].
template <typename T>
void solve_assignments(const AssignmentProblem<T>* problems, int64_t count, int64_t max_rows,
                       int64_t max_cols, int64_t* columns) {
  using W = accumulate_t<T>;
  AssignmentMemory<W> memory(max_rows, max_cols);
  bool closed[kPlainColumns];
  for (int64_t b = 0; b < count; ++b, columns += max_rows) {
    const auto [source, row_stride, rows, cols] = problems[b];
    std::fill_n(columns, max_rows, -1);
    if (rows == 0 || cols == 0) {
      continue;
    }
    const bool transposed = rows > cols;
    const int64_t n = std::min(rows, cols), m = std::max(rows, cols);
    const int64_t row_step = transposed ? 1 : row_stride, column_step = transposed ? row_stride : 1;
    const bool plain = m <= kPlainColumns;
    memory.stride = plain ? m : padded(m);
    W* const working = memory.cost.data();
    bool finite;
    if (plain || std::is_same_v<W, double>) {
      finite = copy_strided(source, row_step, column_step, n, m, working, memory.stride);
    } else if constexpr (std::is_same_v<W, float>) {
      finite = (transposed ? copy_columns<T> : copy_rows<T>)(source, row_stride, rows, cols,
                                                             working, memory.stride);
    }
    const auto state = memory.state(n, m);
    const MatrixCost<W> cost = {working, memory.stride, 1};
    if (!finite) {
      assign_tiered<T>({source, row_step, column_step}, n, m, state.column_of_row);
    } else if (plain) {
      PlainScan<MatrixCost<W>, double, int64_t, OneLane> scan = {
          state, cost, std::numeric_limits<double>::infinity(), closed, {}};
      assign_rows(scan);
    } else {
      VectorScan<W> scan = {state, cost, memory};
      assign_rows(scan);
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t j = state.column_of_row[i];
      if (transposed && j >= 0) {
        columns[j] = i;
      } else if (!transposed) {
        columns[i] = j;
      }
    }
  }
}

template <typename T>
constexpr AssignmentKernels<T> kAssignmentKernels = {.solve = &solve_assignments<T>};
