// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by vector_quantize.isa.h: exact distances, and blocks of
// rows.

// |x - c|^2 in float32, for any T but double: relative error below (D / kLanes<float> + 16) 2^-24.
template <typename T>
inline float squared_difference(const float* x, const T* c, int64_t dim) {
  Vec<float> sums[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes<float> <= dim; d += 4 * kLanes<float>) {
    for (int64_t i = 0; i < 4; ++i) {
      const Vec<float> difference =
          load(x + d + i * kLanes<float>) - load(c + d + i * kLanes<float>);
      sums[i] += difference * difference;
    }
  }
  for (; d + kLanes<float> <= dim; d += kLanes<float>) {
    const Vec<float> difference = load(x + d) - load(c + d);
    sums[0] += difference * difference;
  }
  if (d < dim) {
    const Vec<float> difference = load_partial(x + d, dim - d) - load_partial(c + d, dim - d);
    sums[1] += difference * difference;
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The same in float64: relative error below (D + 4) 2^-53.
template <typename T>
inline double squared_difference_double(const accumulate_t<T>* x, const T* c, int64_t dim) {
  Vec<double> sums = {};
  int64_t d = 0;
  for (; d + kLanes<double> <= dim; d += kLanes<double>) {
    const Vec<double> difference = load<Vec<double>>(x + d) - load<Vec<double>>(c + d);
    sums += difference * difference;
  }
  double sum = 0;
  for (; d < dim; ++d) {
    const double difference = static_cast<double>(x[d]) - static_cast<double>(c[d]);
    sum += difference * difference;
  }
  for (int64_t i = 0; i < kLanes<double>; ++i) {
    sum += sums[i];
  }
  return sum;
}

template <typename T>
inline bool all_finite(const T* x, int64_t dim) {
  using A = accumulate_t<T>;
  constexpr int64_t kStep = kLanes<A>;
  Vec<A> zeros = {};
  int64_t d = 0;
  for (; d + kStep <= dim; d += kStep) zeros += load(x + d) * 0;
  A zero = 0;
  for (; d < dim; ++d) zero += static_cast<A>(x[d]) * 0;
  for (int64_t i = 0; i < kStep; ++i) zero += zeros[i];
  return zero == 0;
}

template <typename T>
struct Nearest {
  int64_t index;
  accumulate_t<T> distance;  // squared; NaN where every codeword holds NaN or Inf
};

// Sets to NaN those float32 distances that cannot be the least in float64; distances near the
// limits of float32 rule nothing out. Returns whether one is left, so that float64 is not needed.
inline bool rule_out(double* distances, int64_t count, int64_t dim) {
  double best = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < count; ++i) best = distances[i] < best ? distances[i] : best;
  const bool safe = best > 1e-25 && best < 1e25;
  const double limit = safe ? best * (1 + (dim / kLanes<float> + 16) * 0x1.02p-23)
                            : std::numeric_limits<double>::infinity();
  int64_t left = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool near = distances[i] <= limit;
    distances[i] = near ? distances[i] : std::numeric_limits<double>::quiet_NaN();
    left += near;
  }
  return safe && left == 1;
}

// The nearest of `count` candidates (ascending codeword numbers, or null for all from 0) whose
// float32 distances are given; what these leave open is measured in float64. There, distances that
// agree within rounding count as equal, and the lowest codeword of equal ones wins.
template <typename T>
Nearest<T> decide(const accumulate_t<T>* x, const T* codebook, int64_t dim,
                  const int32_t* candidates, int64_t count, double* distances) {
  const bool decided = !std::is_same_v<T, double> && rule_out(distances, count, dim);
  double best = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    if (!decided && distances[i] == distances[i]) {
      const int64_t codeword = candidates == nullptr ? i : candidates[i];
      distances[i] = squared_difference_double(x, codebook + codeword * dim, dim);
    }
    best = distances[i] < best ? distances[i] : best;
  }
  const double limit = best * (1 + (dim + 4) * 0x1p-52);
  for (int64_t i = 0; i < count; ++i) {
    if (distances[i] <= limit && best < std::numeric_limits<double>::infinity()) {
      return {candidates == nullptr ? i : candidates[i], static_cast<accumulate_t<T>>(best)};
    }
  }
  return {0, std::numeric_limits<accumulate_t<T>>::quiet_NaN()};
}

// The nearest of all codewords.
template <typename T>
Nearest<T> nearest_of_all(const accumulate_t<T>* x, const T* codebook, int64_t codewords,
                          int64_t dim, double* distances) {
  for (int64_t k = 0; k < codewords; ++k) {
    if constexpr (std::is_same_v<T, double>) {
      distances[k] = 0;
    } else {
      distances[k] = squared_difference(x, codebook + k * dim, dim);
    }
  }
  return decide(x, codebook, dim, nullptr, codewords, distances);
}

// One block of rows: readable as contiguous accumulate_t<T>, and what is found for them.
template <typename T>
struct RowBlock {
  using A = accumulate_t<T>;

  RowBlock(const QuantizeJob<T>& job, const RowBatch& batch)
      : job(job),
        direct(std::is_same_v<T, A> && job.x.stride() == 1),
        values(direct ? 0 : batch.block_rows * job.dim) {}

  // Takes rows [block * block_rows, ...) of the batch.
  void load(const RowBatch& batch, int64_t block) {
    const int64_t begin = block * batch.block_rows;
    count = std::min(batch.block_rows, batch.count - begin);
    for (int64_t r = 0; r < count; ++r) {
      number[r] = batch.rows == nullptr ? begin + r : batch.rows[begin + r];
      source[r] = job.x.row(number[r]);
      if constexpr (std::is_same_v<T, A>) {
        row[r] = source[r];
      }
    }
    if (!direct) {
      // By strips of 16 elements, so that neither side jumps far whichever one is contiguous.
      for (int64_t d0 = 0; d0 < job.dim; d0 += 16) {
        const int64_t d1 = std::min(d0 + 16, job.dim);
        for (int64_t r = 0; r < count; ++r) {
          for (int64_t d = d0; d < d1; ++d) {
            values.data()[r * job.dim + d] = static_cast<A>(source[r][d * job.x.stride()]);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) row[r] = values.data() + r * job.dim;
    }
  }

  // Prefetches, while this block is computed, the memory that its rows are written to and the rows
  // of the next block.
  void prefetch(const RowBatch& batch, int64_t next) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    if (job.quantized != nullptr && job.quantized->stride() == 1) {
      for (int64_t r = 0; r < count; ++r) {
        const T* target = job.quantized->row(number[r]);
        for (int64_t d = 0; d < job.dim; d += kLine) __builtin_prefetch(target + d, 1, 2);
      }
    }
    if (direct && batch.rows == nullptr) {
      const int64_t begin = next * batch.block_rows;
      for (int64_t i = begin; i < std::min(begin + batch.block_rows, batch.count); ++i) {
        const T* source = job.x.row(i);
        for (int64_t d = 0; d < job.dim; d += kLine) __builtin_prefetch(source + d, 0, 2);
      }
    }
  }

  // Writes the results of the rows whose index is not negative; returns their sum of distances.
  double store() const {
    double sum = 0;
    for (int64_t r = 0; r < count; ++r) {
      if (nearest[r].index < 0) continue;
      const int64_t output = number[r] * job.output_stride;
      job.indices[output] = nearest[r].index;
      if (job.distances != nullptr) {
        job.distances[output] = static_cast<A>(job.weight * nearest[r].distance);
      }
      sum += nearest[r].distance;
    }
    if (job.quantized != nullptr) store_quantized();
    return sum;
  }

  void store_quantized() const {
    const int64_t stride = job.quantized->stride();
    T* target[RowBatch::kMaxBlockRows];
    for (int64_t r = 0; r < count; ++r) target[r] = job.quantized->row(number[r]);
    const int64_t strip = stride == 1 ? job.dim : 16;
    for (int64_t d0 = 0; d0 < job.dim; d0 += strip) {
      const int64_t d1 = std::min(d0 + strip, job.dim);
      for (int64_t r = 0; r < count; ++r) {
        if (nearest[r].index < 0) continue;
        const T* codeword = job.codebook + nearest[r].index * job.dim;
        if (stride == 1) {
          std::memcpy(target[r], codeword, job.dim * sizeof(T));
        } else {
          for (int64_t d = d0; d < d1; ++d) target[r][d * stride] = codeword[d];
        }
      }
    }
  }

  const QuantizeJob<T>& job;
  const bool direct;  // rows are read where they are
  Scratch<A> values;  // [rows, D] otherwise
  int64_t count = 0;
  int64_t number[RowBatch::kMaxBlockRows];
  const T* source[RowBatch::kMaxBlockRows];
  const A* row[RowBatch::kMaxBlockRows];
  Nearest<T> nearest[RowBatch::kMaxBlockRows];
};
