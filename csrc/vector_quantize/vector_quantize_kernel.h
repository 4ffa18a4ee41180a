// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by vector_quantize_cpu.cpp.

// computes: for rows [begin, end), the nearest codeword and its squared distance
// loop order: rows, codewords, dimensions
// traffic and FLOPs: the codebook once a row from cache; 3 M K D
// numerics: difference form, summed in accumulate_t<T>; the first of equal distances wins
// limits: none
template <typename T>
void nearest_codeword_rows(const T* x, const T* codebook, int64_t groups, int64_t codewords,
                           int64_t dim, int64_t begin, int64_t end, int64_t* indices,
                           accumulate_t<T>* squared_distance) {
  using Accumulate = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* group = codebook + (row % groups) * codewords * dim;
    Accumulate best = std::numeric_limits<Accumulate>::infinity();
    int64_t best_index = 0;
    for (int64_t k = 0; k < codewords; ++k) {
      Accumulate distance = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const Accumulate difference =
            static_cast<Accumulate>(x[row * dim + d]) - static_cast<Accumulate>(group[k * dim + d]);
        distance += difference * difference;
      }
      if (distance < best) {
        best = distance;
        best_index = k;
      }
    }
    indices[row] = best_index;
    squared_distance[row] = best == std::numeric_limits<Accumulate>::infinity()
                                ? std::numeric_limits<Accumulate>::quiet_NaN()
                                : best;
  }
}
