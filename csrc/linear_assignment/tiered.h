// SPDX-License-Identifier: Apache-2.0
// The assignment of problems with forbidden (NaN, +Inf) or preferred (-Inf) pairs.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace avskernels {

// A cost in two digits: forbidden and preferred pairs count in `tier`, finite costs in `value`, and
// no sum of values outweighs a tier. Shortest paths need an ordered group and nothing more.
struct TieredCost {
  double tier;
  double value;

  friend TieredCost operator+(TieredCost a, TieredCost b) {
    return {a.tier + b.tier, a.value + b.value};
  }
  friend TieredCost operator-(TieredCost a, TieredCost b) {
    return {a.tier - b.tier, a.value - b.value};
  }
  friend bool operator<(TieredCost a, TieredCost b) {
    return a.tier < b.tier || (a.tier == b.tier && a.value < b.value);
  }
};

// Assigns each of n rows one of m >= n columns; cost(i, j) gives any double. column_of_row[i] is -1
// for a row whose pair is forbidden: the fewest possible.
template <typename Cost>
void assign_tiered(const Cost& cost, int64_t n, int64_t m, int64_t* column_of_row) {
  const TieredCost infinite = {std::numeric_limits<double>::infinity(), 0};
  // Costs near the largest double are scaled down by a power of two: no sum overflows.
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      const double magnitude = std::fabs(cost(i, j));
      largest = std::isfinite(magnitude) && magnitude > largest ? magnitude : largest;
    }
  }
  const double scale = largest > 1e290 ? 0x1p-64 : 1;
  const auto tiered = [&](int64_t i, int64_t j) -> TieredCost {
    const double value = cost(i, j);
    if (std::isfinite(value)) {
      return {0, value * scale};
    }
    return {value < 0 ? -1.0 : static_cast<double>(n + 1), 0};
  };
  std::vector<TieredCost> v(m, TieredCost{0, 0}), distance(m);
  std::vector<int64_t> row_of_column(m, -1), previous(m), scanned;
  std::vector<char> done(m);
  std::fill(column_of_row, column_of_row + n, -1);
  for (int64_t free_row = 0; free_row < n; ++free_row) {
    std::fill(distance.begin(), distance.end(), infinite);
    std::fill(done.begin(), done.end(), 0);
    scanned.clear();
    TieredCost shortest = {0, 0};
    int64_t row = free_row, column = -1;
    for (;;) {
      const TieredCost offset =
          column < 0 ? TieredCost{0, 0} : tiered(row, column) - v[column] - shortest;
      int64_t nearest = -1;
      for (int64_t j = 0; j < m; ++j) {
        if (done[j]) {
          continue;
        }
        const TieredCost through = tiered(row, j) - v[j] - offset;
        if (through < distance[j]) {
          distance[j] = through;
          previous[j] = row;
        }
        if (nearest < 0 || distance[j] < distance[nearest] ||
            (!(distance[nearest] < distance[j]) && row_of_column[j] < 0 &&
             row_of_column[nearest] >= 0)) {
          nearest = j;
        }
      }
      shortest = distance[nearest];
      column = nearest;
      if (row_of_column[column] < 0) {
        break;
      }
      done[column] = 1;
      scanned.push_back(column);
      row = row_of_column[column];
    }
    for (const int64_t j : scanned) {
      v[j] = v[j] + distance[j] - shortest;
    }
    for (int64_t at = -1; at != free_row;) {
      at = previous[column];
      row_of_column[column] = at;
      std::swap(column, column_of_row[at]);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    if (tiered(i, column_of_row[i]).tier > 0) {
      column_of_row[i] = -1;
    }
  }
}

}  // namespace avskernels
