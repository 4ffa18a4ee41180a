// SPDX-License-Identifier: Apache-2.0
// The search's passes over the rows of a problem whose costs are all finite, a vector of columns at
// a time. Included once per instruction set, by linear_assignment.isa.h.

namespace {

constexpr int64_t kBucketVectors = 2;
constexpr int64_t kBuckets =
    kBucketVectors * kLanes<double>;  // columns that a scan of a row tells apart

inline int64_t padded(int64_t columns) { return (columns + kBuckets - 1) / kBuckets * kBuckets; }

// The columns of a row that were the cheapest of their buckets (column modulo kBuckets) at its last
// scan. Prices only fall while rows are reduced, so the other columns still cost `limit` at least:
// a second smallest below it needs no look at them.
struct Shortlist {
  double cost[kBuckets];
  int64_t column[kBuckets];
  double limit;  // NaN before the first scan, -Inf before the second
};

// The memory of one thread: the smaller side of a problem as rows [n][stride], +Inf after the m
// columns, and the state of the search.
template <typename W>
struct AssignmentMemory {
  struct Scanned {
    int64_t column;
    double v;
    double distance;
  };
  std::vector<W> cost;
  std::vector<double> v, distance, occupied;
  std::vector<int64_t> previous, row_of_column, column_of_row, free_rows;
  std::vector<Scanned> scanned;
  std::vector<Shortlist> shortlists;
  int64_t stride = 0;

  AssignmentMemory(int64_t rows, int64_t cols) {
    const int64_t n = std::min(rows, cols), width = padded(std::max(rows, cols));
    cost.resize(n * width);
    for (auto* each : {&v, &distance, &occupied}) each->resize(width);
    for (auto* each : {&previous, &row_of_column}) each->resize(width);
    for (auto* each : {&column_of_row, &free_rows}) each->resize(n);
  }

  AssignmentState<double, int64_t> state(int64_t n, int64_t m) {
    return {n,
            m,
            v.data(),
            distance.data(),
            previous.data(),
            row_of_column.data(),
            column_of_row.data(),
            free_rows.data()};
  }
};

// The two smallest of reduced costs `own` at `columns`, when the others in the row are `rest` at
// least.
inline TwoSmallest<double, int64_t> two_smallest_of(const Vec<double>* own, const int64_t* columns,
                                                    Vec<double> rest) {
  const double first = minimum(minimum(own[0], own[1]));
  uint32_t ties = lanes_where(own[0] == first) | lanes_where(own[1] == first) << kLanes<double>;
  int64_t lane = __builtin_ctz(ties);
  for (ties &= ties - 1; ties != 0; ties &= ties - 1) {
    const int64_t other = __builtin_ctz(ties);
    lane = columns[other] < columns[lane] ? other : lane;
  }
  const Vec<int64_t> lanes = lane_numbers<int64_t>();
  rest = minimum(rest, lanes == lane ? rest : own[0]);
  rest = minimum(rest, lanes == lane - kLanes<double> ? rest : own[1]);
  return {first, minimum(rest), columns[lane], -1};
}

// computes: the passes of the search (see search.isa.h) over padded rows, by vectors of columns
// loop order: columns; two_smallest looks at the row's shortlist first
// traffic and FLOPs: two_smallest 4 m bytes from cache and 8 operations per entry, 200 bytes and 16
//   entries where the shortlist serves; relax 4 m + 40 m bytes and 10 operations per entry
// numerics: float64 duals; ties take the lowest column
// limits: none
template <typename W>
struct VectorScan {
  using Value = double;
  using Index = int64_t;
  AssignmentState<double, int64_t> state;
  MatrixCost<W> cost;
  AssignmentMemory<W>& memory;

  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  bool leads() const { return true; }
  int64_t share(int64_t value) const { return value; }

  void begin() {
    std::fill_n(state.v, memory.stride, 0.0);
    std::fill_n(state.row_of_column, memory.stride, -1);
    std::fill_n(state.column_of_row, state.n, -1);
    memory.shortlists.resize(std::max<size_t>(memory.shortlists.size(), state.n));
    for (int64_t i = 0; i < state.n; ++i) {
      state.free_rows[i] = i;
      memory.shortlists[i].limit = std::numeric_limits<double>::quiet_NaN();
    }
  }

  TwoSmallest<double, int64_t> two_smallest(int64_t row) {
    Shortlist& shortlist = memory.shortlists[row];
    const W* const costs = cost.data + row * memory.stride;
    const auto at_other_column = [&](TwoSmallest<double, int64_t> best) AVSKERNELS_TARGET {
      if (best.first == best.second && state.m > 1) {
        best.other = 0;
        while (best.other == best.column ||
               static_cast<double>(costs[best.other]) - state.v[best.other] != best.second) {
          ++best.other;
        }
      }
      return best;
    };
    Vec<double> first[kBucketVectors], second = broadcast(kInfinity);
    Vec<int64_t> at[kBucketVectors];
    if (shortlist.limit > -kInfinity) {
      for (int64_t k = 0; k < kBucketVectors; ++k) {
        const Vec<int64_t> columns = load(shortlist.column + k * kLanes<double>);
        first[k] = load(shortlist.cost + k * kLanes<double>) - gather(state.v, columns);
      }
      const auto best = two_smallest_of(first, shortlist.column, second);
      if (best.second < shortlist.limit) {
        return at_other_column(best);
      }
    }
    Vec<double> next[kBucketVectors];
    Vec<int64_t> here[kBucketVectors];
    for (int64_t k = 0; k < kBucketVectors; ++k) {
      first[k] = next[k] = second;
      here[k] = at[k] = lane_numbers<int64_t>() + k * kLanes<double>;
    }
    for (int64_t j = 0; j < memory.stride; j += kBuckets) {
      for (int64_t k = 0; k < kBucketVectors; ++k) {
        const Vec<double> reduced = load<Vec<double>>(costs + j + k * kLanes<double>) -
                                    load(state.v + j + k * kLanes<double>);
        next[k] = minimum(next[k], maximum(first[k], reduced));
        at[k] = reduced < first[k] ? here[k] : at[k];
        first[k] = minimum(first[k], reduced);
        here[k] += kBuckets;
      }
    }
    for (int64_t k = 0; k < kBucketVectors; ++k) second = minimum(second, next[k]);
    for (int64_t k = 0; k < kBucketVectors; ++k) {
      store(shortlist.column + k * kLanes<double>, at[k]);
    }
    if (shortlist.limit != shortlist.limit) {
      shortlist.limit = -kInfinity;
    } else {
      shortlist.limit = minimum(second);
      for (int64_t i = 0; i < kBuckets; ++i) {
        shortlist.cost[i] = static_cast<double>(costs[shortlist.column[i]]);
      }
    }
    return at_other_column(two_smallest_of(first, shortlist.column, second));
  }

  void begin_paths() {
    for (int64_t j = 0; j < memory.stride; ++j) {
      memory.occupied[j] = state.row_of_column[j] < 0 ? 0 : kInfinity;
    }
  }

  void begin_path() {
    std::fill_n(state.distance, memory.stride, kInfinity);
    memory.scanned.clear();
  }

  Nearest<double, int64_t> relax(int64_t row, double offset) {
    const W* const costs = cost.data + row * memory.stride;
    const Vec<int64_t> from = Vec<int64_t>{} + row;
    Vec<double> nearest = broadcast(kInfinity), nearest_free = nearest;
    Vec<int64_t> at = {}, here = lane_numbers<int64_t>();
    for (int64_t j = 0; j < memory.stride; j += kLanes<double>) {
      const Vec<double> through = load<Vec<double>>(costs + j) - load(state.v + j) - offset;
      Vec<double> known = load(state.distance + j);
      const Vec<int64_t> by = load(state.previous + j);
      store(state.previous + j, through < known ? from : by);
      known = minimum(through, known);
      store(state.distance + j, known);
      at = known < nearest ? here : at;
      nearest = minimum(nearest, known);
      nearest_free = minimum(nearest_free, known + load(memory.occupied.data() + j));
      here += kLanes<double>;
    }
    const double shortest = minimum(nearest);
    if (minimum(nearest_free) == shortest) {
      int64_t column = 0;
      while (state.distance[column] != shortest || memory.occupied[column] != 0) ++column;
      return {shortest, column, false};
    }
    return {shortest, minimum(nearest == shortest ? at : Vec<int64_t>{} + memory.stride), true};
  }

  // A price of -Inf keeps the column out of every later pass; end_path gives it the true one.
  void close(const Nearest<double, int64_t>& nearest) {
    memory.scanned.push_back({nearest.column, state.v[nearest.column], nearest.distance});
    state.v[nearest.column] = -kInfinity;
    state.distance[nearest.column] = kInfinity;
  }

  void end_path(const Nearest<double, int64_t>& last) {
    for (const auto& each : memory.scanned) {
      state.v[each.column] = each.v + (each.distance - last.distance);
    }
    memory.occupied[last.column] = kInfinity;
  }
};

}  // namespace
