// SPDX-License-Identifier: Apache-2.0
#include "vector_quantize/vector_quantize_cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/operator.h"
#include "common/parallel.h"
#include "common/tensors.h"

namespace avskernels {

// The functions of one kind of screening.
template <typename T>
struct Screening {
  int64_t most_dims = -1;  // up to which it serves
  int64_t (*steps)(int64_t dim);
  void (*centre)(const T* codebook, PackedCodebook& packed);
  void (*pack)(const T* codebook, PackedCodebook& packed, int64_t begin, int64_t end);
  void (*quantize)(const QuantizeJob<T>& job, const PackedCodebook& packed, RowBatch& batch,
                   int64_t begin, int64_t end);
};

template <typename T>
struct QuantizeKernels {
  Screening<T> screenings[2];  // to be tried in turn: int8 where the machine has it, then float32
  void (*exhaustive)(const QuantizeJob<T>& job, RowBatch& batch, int64_t begin, int64_t end);
};

}  // namespace avskernels

#define AVSKERNELS_KERNEL_VNNI
#define AVSKERNELS_KERNEL "vector_quantize/vector_quantize.isa.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// Below this many rows, packing the codebook costs more than measuring all distances.
constexpr int64_t kMinScreenRows = 16;

double total(const RowBatch& batch) {
  double sum = 0;
  for (const double part : batch.sums) sum += part;
  return sum;
}

// Screens `list` (or, where it is null, all rows), leaves in it what is uncertified, and returns
// the sum of the distances found.
template <typename T>
double run_screened(const QuantizeJob<T>& job, const Screening<T>& screening,
                    std::optional<std::vector<int64_t>>& list, int64_t rows) {
  PackedCodebook packed(job.codewords, job.dim, screening.steps(job.dim));
  screening.centre(job.codebook, packed);
  parallel_for(
      packed.tiles, 1 + 32768 / (job.dim * PackedCodebook::kTile),
      [&](int64_t begin, int64_t end) { screening.pack(job.codebook, packed, begin, end); });
  if (!packed.screenable) {
    return 0;
  }
  RowBatch batch(list ? list->data() : nullptr, list ? list->size() : rows);
  parallel_for(batch.blocks, 1, [&](int64_t begin, int64_t end) {
    screening.quantize(job, packed, batch, begin, end);
  });
  std::vector<int64_t> left;
  for (const auto& block : batch.uncertified) left.insert(left.end(), block.begin(), block.end());
  list = std::move(left);
  return total(batch);
}

// Quantizes one group's rows; returns the sum of their squared distances.
template <typename T>
double quantize_group(const QuantizeJob<T>& job, int64_t rows) {
  std::optional<std::vector<int64_t>> list;  // rows still to do, if not all
  const auto count = [&] { return list ? static_cast<int64_t>(list->size()) : rows; };
  double sum = 0;
  const QuantizeKernels<T>& kernels = AVSKERNELS_ACTIVE(kQuantizeKernels<T>);
  for (const Screening<T>& screening : kernels.screenings) {
    if (job.dim <= screening.most_dims && count() >= kMinScreenRows) {
      sum += run_screened(job, screening, list, rows);
    }
  }
  if (count() > 0) {
    RowBatch batch(list ? list->data() : nullptr, count());
    parallel_for(batch.blocks, 1,
                 [&](int64_t begin, int64_t end) { kernels.exhaustive(job, batch, begin, end); });
    sum += total(batch);
  }
  return sum;
}

// Quantizes all groups. `quantized` and `distances` may be null; returns the sum of distances.
template <typename T>
double quantize(const QuantizeShape& size, const Tensor& x, const Tensor& codebook,
                Tensor* quantized, Tensor& indices, Tensor* distances, double weight) {
  const Tensor books = dense(codebook);
  const bool grouped = codebook.dim() == 3;
  double sum = 0;
  for (int64_t group = 0; group < size.groups && size.rows > 0; ++group) {
    const RowView<const T> rows(x.const_data_ptr<T>(), x, grouped, group);
    std::optional<RowView<T>> output;
    if (quantized != nullptr) {
      output.emplace(quantized->mutable_data_ptr<T>(), *quantized, grouped, group);
    }
    const QuantizeJob<T> job = {
        .x = rows,
        .codebook = books.const_data_ptr<T>() + group * size.codewords * size.dim,
        .codewords = size.codewords,
        .dim = size.dim,
        .quantized = output ? &*output : nullptr,
        .indices = indices.mutable_data_ptr<int64_t>() + group,
        .distances = distances ? distances->mutable_data_ptr<accumulate_t<T>>() + group : nullptr,
        .output_stride = size.groups,
        .weight = weight};
    sum += quantize_group(job, size.rows);
  }
  return sum;
}

std::vector<int64_t> row_sizes(const Tensor& x) {
  const auto sizes = x.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end() - 1);
}

}  // namespace

std::tuple<Tensor, Tensor> nearest_codeword_cpu(const NearestCodeword& in) {
  const Tensor& x = in.x;
  const QuantizeShape size = quantize_shape(x, in.codebook);
  Tensor indices = torch::stable::new_empty(x, row_sizes(x), ScalarType::Long);
  Tensor squared_distance =
      torch::stable::new_empty(x, row_sizes(x), accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    quantize<T>(size, x, in.codebook, nullptr, indices, &squared_distance, 1.0);
  });
  return {indices, squared_distance};
}

std::tuple<Tensor, Tensor, Tensor> vector_quantize_cpu(const VectorQuantize& in) {
  const Tensor& x = in.x;
  const QuantizeShape size = quantize_shape(x, in.codebook);
  const bool rowwise = in.reduction == "none";
  Tensor quantized = torch::stable::empty_like(x);
  Tensor indices = torch::stable::new_empty(x, row_sizes(x), ScalarType::Long);
  Tensor loss = torch::stable::new_empty(x, rowwise ? row_sizes(x) : std::vector<int64_t>{},
                                         accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    const double weight = in.commitment_weight + in.codebook_weight;
    const double sum =
        quantize<T>(size, x, in.codebook, &quantized, indices, rowwise ? &loss : nullptr, weight);
    if (!rowwise) {
      const double count = in.reduction == "mean" ? static_cast<double>(x.numel()) : 1.0;
      *loss.mutable_data_ptr<accumulate_t<T>>() =
          static_cast<accumulate_t<T>>(weight * sum / count);
    }
  });
  return {quantized, indices, loss};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define<avskernels::NearestCodeword>(m);
  avskernels::define<avskernels::VectorQuantize>(m);
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  avskernels::implement<&avskernels::nearest_codeword_cpu>(m);
  avskernels::implement<&avskernels::vector_quantize_cpu>(m);
}
