// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by linear_assignment_cpu.cpp.

namespace {

constexpr int64_t kPairs = kLanes / 2;  // doubles in a vector

typedef float FloatHalf __attribute__((vector_size(kPairs * 4)));
typedef int64_t LVec __attribute__((vector_size(kLanes * 4)));

inline DVec load_wide(const float* data) {
  FloatHalf half;
  std::memcpy(&half, data, sizeof(half));
  return __builtin_convertvector(half, DVec);
}

inline DVec load_wide(const double* data) { return load(data); }

inline LVec lane_numbers() {
  LVec lanes;
  for (int64_t i = 0; i < kPairs; ++i) lanes[i] = i;
  return lanes;
}

// The smallest reduced cost of a row, the next smallest, and the lowest column of the first.
struct TwoSmallest {
  double first;
  double second;
  int64_t column;
};

inline int64_t padded(int64_t columns) { return (columns + kPairs - 1) / kPairs * kPairs; }

// The working matrix of a problem whose costs are all finite: the smaller side as rows [n][stride],
// +Inf behind the m columns, and the state of the search.
template <typename W>
struct AssignmentState {
  std::vector<W> cost;
  std::vector<double> v, distance, occupied;
  std::vector<int64_t> previous, row_of_column, column_of_row, free_rows;
  struct Scanned {
    int64_t column;
    double v;
    double distance;
  };
  std::vector<Scanned> scanned;
  int64_t n, m, stride;

  AssignmentState(int64_t rows, int64_t cols) {
    const int64_t width = padded(std::max(rows, cols));
    cost.resize(std::min(rows, cols) * width + kLanes);  // the last store may reach over the end
    for (auto* each : {&v, &distance, &occupied}) each->resize(width);
    for (auto* each : {&previous, &row_of_column}) each->resize(width);
    for (auto* each : {&column_of_row, &free_rows}) each->resize(std::min(rows, cols));
    scanned.reserve(std::min(rows, cols));
  }
};

// Copies rows [r][c] of a source into dest [r][stride], +Inf behind the c columns; false if some
// cost is not finite (or, as a double, so large that sums overflow).
template <typename T>
bool copy_rows(const T* source, int64_t source_stride, int64_t r, int64_t c, float* dest,
               int64_t stride) {
  Vec poison = {};  // 0 times a cost that is not finite is NaN
  for (int64_t i = 0; i < r; ++i) {
    const T* from = source + i * source_stride;
    float* to = dest + i * stride;
    for (int64_t j = 0; j < c; j += kLanes) {
      const Vec costs = j + kLanes <= c ? load(from + j) : load_partial(from + j, c - j);
      poison += costs * 0.0f;
      store(to + j, costs);
    }
    std::fill(to + c, to + stride, std::numeric_limits<float>::infinity());
  }
  return reduce_add(poison) == 0;
}

// The same with dest [c][stride] transposed, +Inf behind the r columns.
template <typename T>
bool copy_columns(const T* source, int64_t source_stride, int64_t r, int64_t c, float* dest,
                  int64_t stride) {
  Vec poison = {};  // 0 times a cost that is not finite is NaN
  for (int64_t i = 0; i < r; i += kLanes) {
    const int64_t height = std::min(kLanes, r - i);
    for (int64_t j = 0; j < c; j += kLanes) {
      const int64_t width = std::min(kLanes, c - j);
      const T* from = source + i * source_stride + j;
      Vec tile[kLanes];
      for (int64_t k = 0; k < kLanes; ++k) {
        tile[k] = splat(std::numeric_limits<float>::infinity());
        if (k < height) {
          tile[k] = width == kLanes ? load(from + k * source_stride)
                                    : load_partial(from + k * source_stride, width);
          poison += tile[k] * 0.0f;
        }
      }
      transpose(tile);
      for (int64_t k = 0; k < width; ++k) {
        float* const to = dest + (j + k) * stride + i;
        if (stride - i < kLanes) {
          store_partial(to, tile[k], stride - i);
        } else {
          store(to, tile[k]);
        }
      }
    }
  }
  return reduce_add(poison) == 0;
}

inline bool copy_rows(const double* source, int64_t source_stride, int64_t r, int64_t c,
                      double* dest, int64_t stride) {
  bool within = true;
  for (int64_t i = 0; i < r; ++i) {
    for (int64_t j = 0; j < stride; ++j) {
      const double value =
          j < c ? source[i * source_stride + j] : std::numeric_limits<double>::infinity();
      within &= j >= c || std::fabs(value) <= 1e290;
      dest[i * stride + j] = value;
    }
  }
  return within;
}

inline bool copy_columns(const double* source, int64_t source_stride, int64_t r, int64_t c,
                         double* dest, int64_t stride) {
  bool within = true;
  for (int64_t j = 0; j < c; ++j) {
    for (int64_t i = 0; i < stride; ++i) {
      const double value =
          i < r ? source[i * source_stride + j] : std::numeric_limits<double>::infinity();
      within &= i >= r || std::fabs(value) <= 1e290;
      dest[j * stride + i] = value;
    }
  }
  return within;
}

inline double reduce_minimum(DVec vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_reduce_min_pd((__m512d)vec);
#else
  double smallest = vec[0];
  for (int64_t i = 1; i < kPairs; ++i) smallest = vec[i] < smallest ? vec[i] : smallest;
  return smallest;
#endif
}

inline int64_t reduce_minimum(LVec vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_reduce_min_epi64((__m512i)vec);
#else
  int64_t smallest = vec[0];
  for (int64_t i = 1; i < kPairs; ++i) smallest = vec[i] < smallest ? vec[i] : smallest;
  return smallest;
#endif
}

template <typename W>
TwoSmallest two_smallest(const W* cost, const double* v, int64_t stride) {
  const double infinity = std::numeric_limits<double>::infinity();
  DVec first = splat_double(infinity), second = first;
  LVec at = {}, here = lane_numbers();
  for (int64_t j = 0; j < stride; j += kPairs) {
    const DVec reduced = load_wide(cost + j) - load(v + j);
    second = minimum(second, maximum(first, reduced));
    at = reduced < first ? here : at;
    first = minimum(first, reduced);
    here += kPairs;
  }
  const double smallest = reduce_minimum(first);
  const int64_t column = reduce_minimum(first == smallest ? at : LVec{} + stride);
  return {smallest, reduce_minimum(at == column ? second : first), column};
}

// The lowest column other than `except` whose reduced cost is `value`; stride where there is none.
template <typename W>
int64_t column_of(double value, const W* cost, const double* v, int64_t stride, int64_t except) {
  int64_t j = 0;
  while (j < stride && (j == except || static_cast<double>(cost[j]) - v[j] != value)) ++j;
  return j;
}

// computes: a partial assignment and its duals v <= 0 (0 at free columns): each free row takes its
//   cheapest column, at a price that makes its next cheapest equal, and frees the row that had it
// loop order: free rows; a row that was freed goes next, or, on ties, waits for the second round
// traffic and FLOPs: 4 m bytes from cache and about 8 operations an entry for each row taken
// numerics: float64 duals; ties take the lowest column
// limits: gives up (leaving rows free) after a number of steps, so that rounding cannot loop
template <typename W>
int64_t reduce_rows(AssignmentState<W>& state) {
  int64_t free_count = state.n;
  for (int64_t i = 0; i < free_count; ++i) state.free_rows[i] = i;
  int64_t budget = 16 * state.n + 64;
  for (int round = 0; round < 2 && free_count > 0; ++round) {
    int64_t next = 0, kept = 0;
    while (next < free_count) {
      const int64_t row = state.free_rows[next++];
      if (--budget < 0) {
        state.free_rows[kept++] = row;
        continue;
      }
      const W* const cost = state.cost.data() + row * state.stride;
      const TwoSmallest best = two_smallest(cost, state.v.data(), state.stride);
      int64_t column = best.column;
      int64_t freed = state.row_of_column[column];
      const double lowered = state.v[column] - (best.second - best.first);
      const bool strictly = lowered < state.v[column];
      if (strictly) {
        state.v[column] = state.m == 1 ? 0 : lowered;
      } else if (freed >= 0) {
        column = column_of(best.second, cost, state.v.data(), state.stride, column);
        freed = state.row_of_column[column];
      }
      state.row_of_column[column] = row;
      state.column_of_row[row] = column;
      if (freed >= 0) {
        state.column_of_row[freed] = -1;
        state.free_rows[strictly ? --next : kept++] = freed;
      }
    }
    free_count = kept;
  }
  return free_count;
}

// computes: the shortest augmenting path from a free row to a free column; assigns along it
// loop order: scanned columns in order of distance, each with one pass over its row
// traffic and FLOPs: 4 m + 32 m bytes from cache and about 10 operations an entry for each pass
// numerics: float64; of equal distances a free column, then the lowest column
// limits: at most n passes
template <typename W>
void augment(AssignmentState<W>& state, int64_t free_row) {
  const double infinity = std::numeric_limits<double>::infinity();
  double* v = state.v.data();
  double* distance = state.distance.data();
  const double* occupied = state.occupied.data();
  int64_t* previous = state.previous.data();
  std::fill(distance, distance + state.stride, infinity);
  state.scanned.clear();
  int64_t row = free_row, column = -1;
  double offset = 0, shortest = 0;
  for (;;) {
    const W* cost = state.cost.data() + row * state.stride;
    const LVec from = LVec{} + row;
    DVec nearest = splat_double(infinity), nearest_free = nearest;
    LVec at = {}, here = lane_numbers();
    for (int64_t j = 0; j < state.stride; j += kPairs) {
      const DVec through = load_wide(cost + j) - load(v + j) - offset;
      DVec known = load(distance + j);
      LVec by;
      std::memcpy(&by, previous + j, sizeof(by));
      by = through < known ? from : by;
      known = minimum(through, known);
      store(distance + j, known);
      std::memcpy(previous + j, &by, sizeof(by));
      at = known < nearest ? here : at;
      nearest = minimum(nearest, known);
      nearest_free = minimum(nearest_free, known + load(occupied + j));
      here += kPairs;
    }
    shortest = reduce_minimum(nearest);
    if (reduce_minimum(nearest_free) == shortest) {
      column = 0;
      while (distance[column] != shortest || occupied[column] != 0) ++column;
      break;
    }
    column = reduce_minimum(nearest == shortest ? at : LVec{} + state.stride);
    row = state.row_of_column[column];
    offset = static_cast<double>(state.cost[row * state.stride + column]) - v[column] - shortest;
    // A price of -Inf keeps the column out of every later pass; the true one comes back below.
    state.scanned.push_back({column, v[column], shortest});
    v[column] = -infinity;
    distance[column] = infinity;
  }
  for (const auto& each : state.scanned) v[each.column] = each.v + (each.distance - shortest);
  state.occupied[column] = infinity;
  for (int64_t at = -1; at != free_row;) {
    at = previous[column];
    state.row_of_column[column] = at;
    std::swap(column, state.column_of_row[at]);
  }
}

template <typename W>
void assign_finite(AssignmentState<W>& state) {
  std::fill_n(state.v.data(), state.stride, 0.0);
  std::fill_n(state.row_of_column.data(), state.stride, -1);
  std::fill_n(state.column_of_row.data(), state.n, -1);
  const int64_t free_count = reduce_rows(state);
  if (free_count == 0) {
    return;
  }
  for (int64_t j = 0; j < state.stride; ++j) {
    state.occupied[j] = state.row_of_column[j] < 0 ? 0 : std::numeric_limits<double>::infinity();
  }
  for (int64_t k = 0; k < free_count; ++k) augment(state, state.free_rows[k]);
}

}  // namespace

// Solves `count` problems inside matrices [max_rows][max_cols] into columns [count][max_rows].
template <typename T>
void solve_assignments(const AssignmentProblem<T>* problems, int64_t count, int64_t max_rows,
                       int64_t max_cols, int64_t* columns) {
  using W = accumulate_t<T>;
  AssignmentState<W> state(max_rows, max_cols);
  for (int64_t b = 0; b < count; ++b, columns += max_rows) {
    const AssignmentProblem<T>& problem = problems[b];
    std::fill_n(columns, max_rows, -1);
    if (problem.rows == 0 || problem.cols == 0) {
      continue;
    }
    const bool transposed = problem.rows > problem.cols;
    state.n = std::min(problem.rows, problem.cols);
    state.m = std::max(problem.rows, problem.cols);
    state.stride = padded(state.m);
    W* const working = state.cost.data();
    const bool finite = transposed ? copy_columns(problem.cost, problem.row_stride, problem.rows,
                                                  problem.cols, working, state.stride)
                                   : copy_rows(problem.cost, problem.row_stride, problem.rows,
                                               problem.cols, working, state.stride);
    if (finite) {
      assign_finite(state);
    } else {
      const int64_t row_step = transposed ? 1 : problem.row_stride;
      const int64_t column_step = transposed ? problem.row_stride : 1;
      assign_tiered(
          [&](int64_t i, int64_t j) {
            return static_cast<double>(problem.cost[i * row_step + j * column_step]);
          },
          state.n, state.m, state.column_of_row.data());
    }
    for (int64_t i = 0; i < state.n; ++i) {
      const int64_t j = state.column_of_row[i];
      if (transposed && j >= 0) {
        columns[j] = i;
      } else if (!transposed) {
        columns[i] = j;
      }
    }
  }
}
