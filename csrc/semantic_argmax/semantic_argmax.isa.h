// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by semantic_argmax_cpu.cpp.
//
// Pixels are processed in tiles of kArgmaxTile vectors. A screen finds the best and the second best
// score of each pixel; where their distance does not prove the winner, the pixel is evaluated again
// in float64.

constexpr int64_t kArgmaxTile = 3;  // vectors
constexpr int64_t kArgmaxPixels = kArgmaxTile * kLanes<float>;
constexpr int kArgmaxClasses = kVectorRegisters >= 32 ? 8 : 4;  // of a register block

// The two best scores of a tile's pixels, and the class of the best; of equal scores the first.
template <typename V>
struct ArgmaxBest {
  V best[kArgmaxTile];
  V second[kArgmaxTile];
  Vec<int32_t> label[kArgmaxTile];

  explicit ArgmaxBest(V lowest) {
    for (int64_t v = 0; v < kArgmaxTile; ++v) {
      best[v] = second[v] = lowest;
      label[v] = Vec<int32_t>{};
    }
  }

  void add(int64_t v, V score, int32_t k) {
    const V lower = score < best[v] ? score : best[v];
    second[v] = lower > second[v] ? lower : second[v];
    label[v] = score > best[v] ? broadcast(k) : label[v];
    best[v] = score > best[v] ? score : best[v];
  }
};

// sum + the products of two pairs of 16-bit integers in each lane.
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512_VNNI
inline Vec<int32_t> add_products(Vec<int32_t> sum, Vec<int32_t> pairs, int32_t pair) {
  return (Vec<int32_t>)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)pairs, _mm512_set1_epi32(pair));
}
#endif
inline Vec<float> add_products(Vec<float> sum, Vec<float> values, float factor) {
  return sum + values * factor;
}

// computes: the best and second best of the classes' scores for a tile, scores = classes x masks
// loop order: register blocks of classes, rows
// traffic and FLOPs: the class table once per tile, from L2; 2 K N per pixel
// numerics: float32, or exact sums of products of 16-bit integers
// limits: the integers' sums must fit 32 bits
template <typename V, typename Element>
ArgmaxBest<V> argmax_screen(const Element* table, int64_t padded_classes, int64_t classes,
                            const Element* masks, int64_t rows, V lowest) {
  ArgmaxBest<V> result(lowest);
  for (int64_t k = 0; k < classes; k += kArgmaxClasses) {
    V sum[kArgmaxClasses][kArgmaxTile] = {};
    for (int64_t n = 0; n < rows; ++n) {
      V mask[kArgmaxTile];
#pragma GCC unroll 3
      for (int64_t v = 0; v < kArgmaxTile; ++v) {
        mask[v] = load(masks + n * kArgmaxPixels + v * kLanes<float>);
      }
#pragma GCC unroll 8
      for (int c = 0; c < kArgmaxClasses; ++c) {
        const Element factor = table[n * padded_classes + k + c];
#pragma GCC unroll 3
        for (int64_t v = 0; v < kArgmaxTile; ++v)
          sum[c][v] = add_products(sum[c][v], mask[v], factor);
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kArgmaxClasses; ++c) {
      if (k + c >= classes) break;
#pragma GCC unroll 3
      for (int64_t v = 0; v < kArgmaxTile; ++v) result.add(v, sum[c][v], k + c);
    }
  }
  return result;
}

// A row of the resized masks: where the pixels of one vector come from.
inline Vec<float> argmax_sample(const ArgmaxColumns& columns, const float* row, int64_t x) {
  if (!columns.resized) return load(row + x);
  const Vec<float> share = load(columns.share.data() + x);
  const Vec<int32_t> low = load(columns.low.data() + x);
  const Vec<int32_t> high = load(columns.high.data() + x);
  Vec<float> left, right;
  const int32_t base = columns.low[x];
  if (columns.high[x + kLanes<float> - 1] - base < kLanes<float>) {
    const Vec<float> window = load(row + base);
    left = __builtin_shuffle(window, low - base);
    right = __builtin_shuffle(window, high - base);
  } else {
    for (int64_t i = 0; i < kLanes<float>; ++i) {
      left[i] = row[low[i]];
      right[i] = row[high[i]];
    }
  }
  return (1.0f - share) * left + share * right;
}

// One row of one mask as float32, its two source rows already mixed; returns the largest magnitude.
template <typename T>
inline float argmax_row(const T* low, const T* high, float share, bool mixed, int64_t step,
                        int64_t count, float* out) {
  Vec<float> largest = {};
  for (int64_t x = 0; x < count; x += kLanes<float>) {
    const int64_t lanes = std::min(kLanes<float>, count - x);
    const auto read = [&](const T* data) AVSKERNELS_TARGET {
      if constexpr (!std::is_same_v<T, double>) {
        if (step == 1) return load_up_to(data + x, lanes);
      }
      float values[kLanes<float>] = {};
      for (int64_t i = 0; i < lanes; ++i) values[i] = static_cast<float>(data[(x + i) * step]);
      return load(values);
    };
    Vec<float> value = read(low);
    if (mixed) {
      const Vec<float> other = read(high);
      largest = maximum(absolute(value), maximum(absolute(other), largest));
      value = (1.0f - share) * value + share * other;
    }
    store(out + x, value);
  }
  float values[kLanes<float>];
  store(values, largest);
  return *std::max_element(values, values + kLanes<float>);
}

// A pixel in float64: its label and score.
template <typename T>
std::pair<int64_t, double> argmax_exact(const ArgmaxProblem<T>& problem, const ArgmaxClasses& table,
                                        int64_t image, int64_t row, int64_t column,
                                        double* scores) {
  std::fill_n(scores, problem.classes, 0.0);
  for (int64_t n = 0; n < problem.queries; ++n) {
    if (!table.used[n]) continue;
    const double value = problem.mask_value(image, n, row, column);
    const double mask = problem.sigmoid ? 1.0 / (1.0 + std::exp(-value)) : value;
    if (!(mask > problem.mask_threshold) || mask == 0) continue;
    const double* probs = table.exact.data() + n * problem.classes;
    for (int64_t k = 0; k < problem.classes; ++k) {
      if (probs[k] != 0) scores[k] += probs[k] * mask;
    }
  }
  int64_t best = 0;
  for (int64_t k = 1; k < problem.classes; ++k) {
    if (scores[k] > scores[best]) best = k;
  }
  return {best, scores[best]};
}

// computes: labels (and scores) of the segments [begin, end) of all images' rows
// loop order: segments, tiles; queries, then classes
// traffic and FLOPs: masks and labels once, the class table once per tile, from L2; 2 N K per pixel
// numerics: see argmax_screen; an error bound decides which pixels are evaluated again in float64
// limits: classes fit 32 bits
template <typename T>
void semantic_argmax_segments(const ArgmaxProblem<T>& problem, int64_t begin, int64_t end) {
  const int64_t rows = problem.queries + problem.queries % 2;
  const int64_t row_step = problem.row_room + kArgmaxPixels;
  const Scratch<float> masks(problem.queries * row_step);
  const Scratch<float> values(rows * kArgmaxPixels);
  const Scratch<int32_t> pairs(rows / 2 * kArgmaxPixels);
  const Scratch<double> scores(problem.classes);
  for (int64_t index = begin; index < end; ++index) {
    const ArgmaxSegment segment = problem.segment(index);
    const ArgmaxClasses& table = problem.tables[segment.image];
    if (table.empty) {
      problem.write_nothing(segment);
      continue;
    }
    float largest = 0;
    for (int64_t n = 0; n < problem.queries && !table.only_exact; ++n) {
      if (!table.used[n]) continue;
      const auto [low, high, share, mixed] = problem.source_rows(segment, n);
      largest = std::max(largest,
                         argmax_row(low, high, share, mixed, problem.mask_steps[3],
                                    problem.source_length(segment), masks.data() + n * row_step));
    }
    // What resizing in float32 may add to the error of a mask value.
    const float resize_error = largest * 6e-7f;
    const float near_threshold = resize_error + problem.threshold_error;
    for (int64_t x = 0; x < segment.count; x += kArgmaxPixels) {
      const int64_t count = std::min(kArgmaxPixels, segment.count - x);
      const auto evaluate = [&](int64_t i) AVSKERNELS_TARGET {
        const auto [label, score] = argmax_exact(problem, table, segment.image, segment.row,
                                                 segment.first + x + i, scores.data());
        problem.write(segment, x + i, label, score);
      };
      if (table.only_exact) {
        for (int64_t i = 0; i < count; ++i) evaluate(i);
        continue;
      }
      Vec<float> doubt[kArgmaxTile] = {};
      Vec<int32_t> kept[kArgmaxTile] = {}, unclear[kArgmaxTile] = {};
      for (int64_t n = 0; n < problem.queries; ++n) {
        for (int64_t v = 0; v < kArgmaxTile; ++v) {
          float* out = values.data() + n * kArgmaxPixels + v * kLanes<float>;
          if (!table.used[n]) {
            store(out, Vec<float>{});
            continue;
          }
          const Vec<float> mask =
              argmax_sample(problem.columns, masks.data() + n * row_step, x + v * kLanes<float>);
          const Vec<int32_t> keep = mask > problem.value_threshold;
          unclear[v] |= absolute(mask - problem.value_threshold) <= near_threshold;
          kept[v] |= keep;
          const Vec<float> value = keep ? (problem.sigmoid ? sigmoid(mask) : mask) : Vec<float>{};
          store(out, value);
          doubt[v] += absolute(value) * table.row_doubt[n];
        }
      }
      Vec<int32_t> label[kArgmaxTile];
      Vec<float> best[kArgmaxTile], distance[kArgmaxTile];
      float doubt_slope = table.doubt_slope, doubt_floor = table.doubt_floor;
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512_VNNI
      if (table.integers()) {
        doubt_floor += table.resize_floor * resize_error;
        for (int64_t n = problem.queries; n < rows; ++n) {
          std::fill_n(values.data() + n * kArgmaxPixels, kArgmaxPixels, 0.0f);
        }
        for (int64_t i = 0; i < rows * kArgmaxPixels; i += 2 * kArgmaxPixels) {
          for (int64_t at = 0; at < kArgmaxPixels; at += kLanes<float>) {
            const float* pair = values.data() + i + at;
            const Vec<float> even = round_to_integer(load(pair) * table.mask_scale);
            const Vec<float> odd = round_to_integer(load(pair + kArgmaxPixels) * table.mask_scale);
            const Vec<int32_t> both = __builtin_convertvector(even, Vec<int32_t>) |
                                      (__builtin_convertvector(odd, Vec<int32_t>) << 16);
            store(pairs.data() + i / 2 + at, both);
          }
        }
        const auto found =
            argmax_screen(table.pairs.data(), problem.padded_classes, problem.classes, pairs.data(),
                          rows / 2, broadcast(std::numeric_limits<int32_t>::min()));
        for (int64_t v = 0; v < kArgmaxTile; ++v) {
          label[v] = found.label[v];
          best[v] = __builtin_convertvector(found.best[v], Vec<float>);
          distance[v] = best[v] - __builtin_convertvector(found.second[v], Vec<float>);
        }
      } else
#endif
      {
        doubt_slope += resize_error;
        const auto found = argmax_screen(table.screen.data(), problem.padded_classes,
                                         problem.classes, values.data(), problem.queries,
                                         broadcast(-std::numeric_limits<float>::infinity()));
        for (int64_t v = 0; v < kArgmaxTile; ++v) {
          label[v] = found.label[v];
          best[v] = found.best[v];
          distance[v] = best[v] - found.second[v];
        }
      }
      for (int64_t v = 0; v < kArgmaxTile; ++v) {
        const Vec<int32_t> proven = distance[v] > 2.0f * (doubt[v] * doubt_slope + doubt_floor);
        const Vec<int32_t> nothing =
            kept[v] == 0;  // all scores are 0, and the first class has the label
        const Vec<int32_t> certain = (proven | nothing) & ~unclear[v];
        for (int64_t i = 0; i < std::min(kLanes<float>, count - v * kLanes<float>); ++i) {
          if (certain[i]) {
            problem.write(segment, x + v * kLanes<float> + i, label[v][i], best[v][i] * table.unit);
          } else {
            evaluate(v * kLanes<float> + i);
          }
        }
      }
    }
  }
}

template <typename T>
constexpr ArgmaxKernels<T> kArgmaxKernels = {
    .integers = AVSKERNELS_ISA >= AVSKERNELS_AVX512_VNNI,
    .segments = &semantic_argmax_segments<T>,
};
