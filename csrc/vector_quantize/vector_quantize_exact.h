// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by vector_quantize_kernel.h: exact distances, and blocks of
// rows.

template <typename T>
inline DVec load_double(const T* data) {  // kLanes / 2 elements
  DVec vec;
  for (int64_t i = 0; i < kLanes / 2; ++i) vec[i] = static_cast<double>(data[i]);
  return vec;
}

inline DVec load_double(const double* data) { return load(data); }

inline DVec load_double(const float* data) {
  typedef float HalfVec __attribute__((vector_size(kLanes * 2)));
  HalfVec vec;
  std::memcpy(&vec, data, sizeof(vec));
  return __builtin_convertvector(vec, DVec);
}

// |x - c|^2 in float32, for any T but double: relative error below (D / kLanes + 16) 2^-24.
template <typename T>
inline float squared_difference(const float* x, const T* c, int64_t dim) {
  Vec sums[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    for (int64_t i = 0; i < 4; ++i) {
      const Vec difference = load(x + d + i * kLanes) - load(c + d + i * kLanes);
      sums[i] += difference * difference;
    }
  }
  for (; d + kLanes <= dim; d += kLanes) {
    const Vec difference = load(x + d) - load(c + d);
    sums[0] += difference * difference;
  }
  if (d < dim) {
    const Vec difference = load_partial(x + d, dim - d) - load_partial(c + d, dim - d);
    sums[1] += difference * difference;
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The same in float64: relative error below (D + 4) 2^-53.
template <typename T>
inline double squared_difference_double(const accumulate_t<T>* x, const T* c, int64_t dim) {
  DVec sums = {};
  int64_t d = 0;
  for (; d + kLanes / 2 <= dim; d += kLanes / 2) {
    const DVec difference = load_double(x + d) - load_double(c + d);
    sums += difference * difference;
  }
  double sum = 0;
  for (; d < dim; ++d) {
    const double difference = static_cast<double>(x[d]) - static_cast<double>(c[d]);
    sum += difference * difference;
  }
  for (int64_t i = 0; i < kLanes / 2; ++i) {
    sum += sums[i];
  }
  return sum;
}

template <typename T>
struct Nearest {
  int64_t index;
  accumulate_t<T> distance;  // squared; NaN where every codeword holds NaN or Inf
};

// Measures `count` candidates (ascending codeword numbers, or null for all from 0) in float32, and
// sets those to NaN that float64 could not make the nearest. Distances near the limits of float32
// rule nothing out. Tells whether that decides, so that float64 is not needed.
template <typename T>
bool measure_in_float(const float* x, const T* codebook, int64_t dim, const int32_t* candidates,
                      int64_t count, double* distances) {
  float best = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t codeword = candidates == nullptr ? i : candidates[i];
    const float distance = squared_difference(x, codebook + codeword * dim, dim);
    distances[i] = distance;
    best = distance < best ? distance : best;
  }
  const bool safe = best > 1e-25f && best < 1e25f;
  const double limit = safe ? best * (1 + (dim / kLanes + 16) * 0x1.02p-23)
                            : std::numeric_limits<double>::infinity();
  int64_t left = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool near = distances[i] <= limit;
    distances[i] = near ? distances[i] : std::numeric_limits<double>::quiet_NaN();
    left += near;
  }
  return safe && left == 1;
}

// The nearest of the candidates, the lowest of equal ones: distances that agree within the
// rounding of float64 count as equal.
template <typename T>
Nearest<T> nearest_of(const accumulate_t<T>* x, const T* codebook, int64_t dim,
                      const int32_t* candidates, int64_t count, double* distances) {
  bool decided = false;
  if constexpr (std::is_same_v<T, double>) {
    std::memset(distances, 0, count * sizeof(double));
  } else {
    decided = measure_in_float(x, codebook, dim, candidates, count, distances);
  }
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

template <typename A>
inline bool all_finite(const A* x, int64_t dim) {
  A sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += x[d] * 0;
  return sum == 0;
}

// One block of rows: readable as contiguous accumulate_t<T>, and what is found for them.
template <typename T>
struct RowBlock {
  using A = accumulate_t<T>;

  explicit RowBlock(const QuantizeJob<T>& job)
      : job(job),
        direct(std::is_same_v<T, A> && job.x.stride() == 1),
        values(direct ? 0 : RowBatch::kMaxBlockRows * job.dim) {}

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
            values[r * job.dim + d] = static_cast<A>(source[r][d * job.x.stride()]);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) row[r] = values.data() + r * job.dim;
    }
  }

  // Brings the rows of a block into the cache while another one is at work.
  void prefetch(const RowBatch& batch, int64_t block) const {
    if (!direct || batch.rows != nullptr) return;
    const int64_t begin = block * batch.block_rows;
    for (int64_t i = begin; i < std::min(begin + batch.block_rows, batch.count); ++i) {
      const T* values = job.x.row(i);
      for (int64_t d = 0; d < job.dim; d += 16) __builtin_prefetch(values + d, 0, 2);
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
  const bool direct;      // rows are read where they are
  std::vector<A> values;  // [rows, D] otherwise
  int64_t count = 0;
  int64_t number[RowBatch::kMaxBlockRows];
  const T* source[RowBatch::kMaxBlockRows];
  const A* row[RowBatch::kMaxBlockRows];
  Nearest<T> nearest[RowBatch::kMaxBlockRows];
};
