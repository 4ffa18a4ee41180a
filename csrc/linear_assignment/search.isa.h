// SPDX-License-Identifier: Apache-2.0
// The search for one assignment, and plain scans for it. Included once per instruction set by
// linear_assignment.isa.h and once by linear_assignment_cuda.cu: hence no include guard, no
// includes. What a scan returns, and so every step, depends on the values alone: ties take the
// lowest column, which makes all processors find the same matching.
//
// A Scan has the state of its problem, the three passes over a row's costs (two_smallest, relax,
// and the one column `cost`), and says how threads share the work: all of them run the search, the
// one that leads() writes what belongs to no column, share() hands its value on, and both share()
// and the passes are barriers.

// The smaller side of a problem as n rows, the larger as m columns.
template <typename ValueType, typename IndexType>
struct AssignmentState {
  using Value = ValueType;
  using Index = IndexType;
  Index n, m;
  Value* v;              // [m] duals, <= 0, and 0 at columns never taken
  Value* distance;       // [m] from the free row that a path starts at
  Index* previous;       // [m] the row before a column on its shortest path
  Index* row_of_column;  // [m] -1 = free
  Index* column_of_row;  // [n] -1 = free
  Index* free_rows;      // [n]
};

// The smallest reduced cost of a row and the next, at the lowest columns (m where there is none).
template <typename Value, typename Index>
struct TwoSmallest {
  Value first, second;
  Index column, other;
};

// The column that is nearest to a path's free row: a free one before an occupied one, then the
// lowest.
template <typename Value, typename Index>
struct Nearest {
  Value distance;
  Index column;
  bool occupied;
};

// Augmenting row reduction: each free row takes its cheapest column, at a price that makes its next
// cheapest equal, and frees the row that had it. A row that was freed goes next, or, on ties, waits
// for the second round. It stops (leaving rows free) after a number of steps, so that neither slow
// price wars nor rounding can hold it up.
template <typename State>
struct RowReduction {
  using Index = typename State::Index;
  State& state;
  Index count;  // free rows of this round
  Index next = 0, kept = 0;
  int round = 0;
  int64_t budget;

  HOST_DEVICE explicit RowReduction(State& state)
      : state(state), count(state.n), budget(16 * static_cast<int64_t>(state.n) + 64) {}

  // The row to take now; -1 at the end, with `count` rows left free.
  HOST_DEVICE Index next_row() {
    for (; round < 2; ++round) {
      if (next < count && budget > 0) {
        --budget;
        return state.free_rows[next++];
      }
      while (next < count) state.free_rows[kept++] = state.free_rows[next++];
      count = kept;
      next = kept = 0;
    }
    return -1;
  }

  HOST_DEVICE void take(Index row, const TwoSmallest<double, Index>& best) {
    Index column = best.column;
    Index freed = state.row_of_column[column];
    const double lowered = state.v[column] - (best.second - best.first);
    const bool strictly = lowered < state.v[column];
    if (strictly) {
      state.v[column] = state.m == 1 ? 0 : lowered;
    } else if (freed >= 0) {
      column = best.other;
      freed = state.row_of_column[column];
    }
    state.row_of_column[column] = row;
    state.column_of_row[row] = column;
    if (freed >= 0) {
      state.column_of_row[freed] = -1;
      state.free_rows[strictly ? --next : kept++] = freed;
    }
  }
};

// Returns how many rows are left in free_rows.
template <typename Scan>
HOST_DEVICE auto reduce_rows(Scan& scan) {
  RowReduction reduction(scan.state);
  for (;;) {
    const auto row = scan.share(scan.leads() ? reduction.next_row() : 0);
    if (row < 0) {
      return scan.share(reduction.count);
    }
    const auto best = scan.two_smallest(row);
    if (scan.leads()) reduction.take(row, best);
  }
}

// Assigns along the shortest augmenting path from a free row to a free column: at most n passes.
template <typename Scan>
HOST_DEVICE void augment(Scan& scan, typename Scan::Index free_row) {
  auto& state = scan.state;
  scan.begin_path();
  auto nearest = scan.relax(free_row, {});
  while (nearest.occupied) {
    const auto row = state.row_of_column[nearest.column];
    const auto offset = scan.cost(row, nearest.column) - state.v[nearest.column] - nearest.distance;
    scan.close(nearest);
    nearest = scan.relax(row, offset);
  }
  scan.end_path(nearest);
  if (scan.leads()) {
    auto column = nearest.column;
    for (typename Scan::Index row = -1; row != free_row;) {
      row = state.previous[column];
      state.row_of_column[column] = row;
      const auto left = state.column_of_row[row];
      state.column_of_row[row] = column;
      column = left;
    }
  }
  scan.share(0);
}

// Fills column_of_row.
template <typename Scan>
HOST_DEVICE void assign_rows(Scan& scan) {
  scan.begin();
  auto count = scan.state.n;
  if constexpr (std::is_same_v<typename Scan::Value, double>) {
    count = reduce_rows(scan);
  }
  if (count > 0) scan.begin_paths();
  for (decltype(count) k = 0; k < count; ++k) augment(scan, scan.state.free_rows[k]);
}

// The costs of a matrix in memory: the two steps make either side its rows.
template <typename W>
struct MatrixCost {
  const W* data;
  int64_t row_step, column_step;

  HOST_DEVICE double operator()(int64_t i, int64_t j) const {
    return static_cast<double>(data[i * row_step + j * column_step]);
  }
};

// A value and its rank among equal ones.
template <typename Value, typename Index>
struct Ranked {
  Value value;
  Index index;
};

// The only thread of a problem.
struct OneLane {
  int64_t rank() const { return 0; }
  int64_t size() const { return 1; }
  int64_t share(int64_t value) const { return value; }
  template <typename Value>
  Ranked<Value, int64_t> smallest(Value value, int64_t index) const {
    return {value, index};
  }
};

// Scans one column at a time: each of lanes.size() threads has every size()-th column. `closed` [m]
// marks the columns from which a path has been followed.
template <typename Cost, typename ValueType, typename IndexType, typename Lanes>
struct PlainScan {
  using Value = ValueType;
  using Index = IndexType;
  AssignmentState<Value, Index> state;
  Cost cost;
  Value infinite;
  bool* closed;
  Lanes lanes;

  HOST_DEVICE bool leads() const { return lanes.rank() == 0; }
  HOST_DEVICE Index share(Index value) { return lanes.share(value); }

  HOST_DEVICE void begin() {
    for (Index j = lanes.rank(); j < state.m; j += lanes.size()) {
      state.v[j] = {};
      state.row_of_column[j] = -1;
    }
    for (Index i = lanes.rank(); i < state.n; i += lanes.size()) {
      state.column_of_row[i] = -1;
      state.free_rows[i] = i;
    }
    share(0);
  }

  HOST_DEVICE TwoSmallest<Value, Index> two_smallest(Index row) {
    TwoSmallest<Value, Index> own = {infinite, infinite, state.m, state.m};
    for (Index j = lanes.rank(); j < state.m; j += lanes.size()) {
      const Value reduced = cost(row, j) - state.v[j];
      if (reduced < own.first) {
        own = {reduced, own.first, j, own.column};
      } else if (reduced < own.second) {
        own.second = reduced;
        own.other = j;
      }
    }
    const auto first = lanes.smallest(own.first, own.column);
    const bool mine = own.column == first.index;
    const auto second =
        lanes.smallest(mine ? own.second : own.first, mine ? own.other : own.column);
    return {first.value, second.value, first.index, second.index};
  }

  HOST_DEVICE void begin_paths() {}

  HOST_DEVICE void begin_path() {
    for (Index j = lanes.rank(); j < state.m; j += lanes.size()) {
      state.distance[j] = infinite;
      closed[j] = false;
    }
  }

  // Passes through `row`: its columns lie at their reduced costs less `offset`.
  HOST_DEVICE Nearest<Value, Index> relax(Index row, Value offset) {
    Value nearest = infinite;
    Index order = 2 * state.m;  // occupied columns after the free ones
    for (Index j = lanes.rank(); j < state.m; j += lanes.size()) {
      if (closed[j]) {
        continue;
      }
      const Value through = cost(row, j) - state.v[j] - offset;
      if (through < state.distance[j]) {
        state.distance[j] = through;
        state.previous[j] = row;
      }
      const Value distance = state.distance[j];
      const Index own = state.row_of_column[j] < 0 ? j : state.m + j;
      if (distance < nearest || (!(nearest < distance) && own < order)) {
        nearest = distance;
        order = own;
      }
    }
    const auto best = lanes.smallest(nearest, order);
    const bool occupied = best.index >= state.m;
    return {best.value, occupied ? best.index - state.m : best.index, occupied};
  }

  HOST_DEVICE bool owns(Index j) const { return j % lanes.size() == lanes.rank(); }

  HOST_DEVICE void close(const Nearest<Value, Index>& nearest) {
    if (owns(nearest.column)) closed[nearest.column] = true;
  }

  // The closed columns get the prices at which it is as cheap as what they have.
  HOST_DEVICE void end_path(const Nearest<Value, Index>& last) {
    for (Index j = lanes.rank(); j < state.m; j += lanes.size()) {
      if (closed[j]) state.v[j] = state.v[j] + (state.distance[j] - last.distance);
    }
  }
};
