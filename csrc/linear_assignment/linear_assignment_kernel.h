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

// The smallest reduced cost of a row, its column (the lowest of equals), and the next smallest.
struct TwoSmallest {
  double first;
  double second;
  int64_t column;
  int64_t second_column;
};

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
    const int64_t width = (std::max(rows, cols) + kLanes - 1) / kLanes * kLanes;
    cost.resize(std::min(rows, cols) * width);
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
  const Vec limit = splat(std::numeric_limits<float>::max());
  IVec outside = {};
  for (int64_t i = 0; i < r; ++i) {
    const T* from = source + i * source_stride;
    float* to = dest + i * stride;
    for (int64_t j = 0; j < c; j += kLanes) {
      const Vec costs = j + kLanes <= c ? load(from + j) : load_partial(from + j, c - j);
      outside |= ~(absolute(costs) <= limit);
      store(to + j, costs);
    }
    std::fill(to + c, to + stride, std::numeric_limits<float>::infinity());
  }
  return !any(outside);
}

// The same with dest [c][stride] transposed, +Inf behind the r columns.
template <typename T>
bool copy_columns(const T* source, int64_t source_stride, int64_t r, int64_t c, float* dest,
                  int64_t stride) {
  const Vec limit = splat(std::numeric_limits<float>::max());
  IVec outside = {};
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
          outside |= ~(absolute(tile[k]) <= limit);
        }
      }
      transpose(tile);
      for (int64_t k = 0; k < width; ++k) store(dest + (j + k) * stride + i, tile[k]);
    }
  }
  return !any(outside);
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

template <typename W>
TwoSmallest two_smallest(const W* cost, const double* v, int64_t stride) {
  const double infinity = std::numeric_limits<double>::infinity();
  DVec first = splat_double(infinity), second = splat_double(infinity);
  LVec at = lane_numbers(), second_at = at, here = at;
  for (int64_t j = 0; j < stride; j += kPairs) {
    const DVec reduced = load_wide(cost + j) - load(v + j);
    const LVec less = reduced < first, next = reduced < second;
    second_at = less ? at : (next ? here : second_at);
    second = less ? first : (next ? reduced : second);
    at = less ? here : at;
    first = less ? reduced : first;
    here += kPairs;
  }
  TwoSmallest best = {infinity, infinity, stride, stride};
  const auto offer = [&](double value, int64_t column) AVSKERNELS_TARGET {
    if (value < best.first || (value == best.first && column < best.column)) {
      best.second = best.first;
      best.second_column = best.column;
      best.first = value;
      best.column = column;
    } else if (value < best.second || (value == best.second && column < best.second_column)) {
      best.second = value;
      best.second_column = column;
    }
  };
  for (int64_t i = 0; i < kPairs; ++i) {
    offer(first[i], at[i]);
    offer(second[i], second_at[i]);
  }
  return best;
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
      const TwoSmallest best =
          two_smallest(state.cost.data() + row * state.stride, state.v.data(), state.stride);
      int64_t column = best.column;
      int64_t freed = state.row_of_column[column];
      const double lowered = state.v[column] - (best.second - best.first);
      const bool strictly = lowered < state.v[column];
      if (strictly) {
        state.v[column] = state.m == 1 ? 0 : lowered;
      } else if (freed >= 0 && best.second_column < state.m) {
        column = best.second_column;
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
    LVec at = lane_numbers(), free_at = at, here = at;
    for (int64_t j = 0; j < state.stride; j += kPairs) {
      const DVec through = load_wide(cost + j) - load(v + j) - offset;
      DVec known = load(distance + j);
      LVec by;
      std::memcpy(&by, previous + j, sizeof(by));
      const LVec shorter = through < known;
      known = shorter ? through : known;
      by = shorter ? from : by;
      store(distance + j, known);
      std::memcpy(previous + j, &by, sizeof(by));
      at = known < nearest ? here : at;
      nearest = known < nearest ? known : nearest;
      const DVec to_free = known + load(occupied + j);
      free_at = to_free < nearest_free ? here : free_at;
      nearest_free = to_free < nearest_free ? to_free : nearest_free;
      here += kPairs;
    }
    column = state.stride;
    shortest = infinity;
    for (int64_t i = 0; i < kPairs; ++i) {
      if (nearest[i] < shortest || (nearest[i] == shortest && at[i] < column)) {
        shortest = nearest[i];
        column = at[i];
      }
    }
    int64_t free_column = state.stride;
    for (int64_t i = 0; i < kPairs; ++i) {
      if (nearest_free[i] == shortest) free_column = std::min<int64_t>(free_column, free_at[i]);
    }
    if (free_column < state.stride) {
      column = free_column;
      break;
    }
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
    state.stride = (state.m + kLanes - 1) / kLanes * kLanes;
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
