// SPDX-License-Identifier: Apache-2.0
#include "vector_quantize/vector_quantize_cpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/parallel.h"

#define AVSKERNELS_KERNEL_VNNI
#define AVSKERNELS_KERNEL "vector_quantize/vector_quantize_kernel.h"
#include "common/for_each_isa.h"

namespace avskernels {
namespace {

// Below this many rows, packing the codebook costs more than measuring all distances.
constexpr int64_t kMinScreenRows = 16;

// The functions of one kind of screening.
template <typename T>
struct Screening {
  int64_t (*steps)(int64_t dim);
  void (*centre)(const T* codebook, PackedCodebook& packed);
  void (*pack)(const T* codebook, PackedCodebook& packed, int64_t begin, int64_t end);
  void (*quantize)(const QuantizeJob<T>& job, const PackedCodebook& packed, RowBatch& batch,
                   int64_t begin, int64_t end);
};

// What is tried in turn: int8 where the machine has AVX512_VNNI (sums of up to 2^16 products fit
// its 32 bits), then float32 (whose bound holds up to 2^19).
template <typename T>
std::vector<Screening<T>> screenings(int64_t dim) {
  std::vector<Screening<T>> list;
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx512_vnni && dim <= 1 << 16) {
    list.push_back({&avx512_vnni::Int8Dot::steps, &avx512_vnni::centre_codebook<T>,
                    &avx512_vnni::pack_codebook<T, avx512_vnni::Int8Dot>,
                    &avx512_vnni::quantize_screened<T, avx512_vnni::Int8Dot>});
  }
#endif
  if (dim <= 1 << 19) {
    list.push_back({&portable::FloatDot::steps,
                    select_isa(&portable::centre_codebook<T>, &avx2::centre_codebook<T>,
                               &avx512::centre_codebook<T>),
                    select_isa(&portable::pack_codebook<T, portable::FloatDot>,
                               &avx2::pack_codebook<T, avx2::FloatDot>,
                               &avx512::pack_codebook<T, avx512::FloatDot>),
                    select_isa(&portable::quantize_screened<T, portable::FloatDot>,
                               &avx2::quantize_screened<T, avx2::FloatDot>,
                               &avx512::quantize_screened<T, avx512::FloatDot>)});
  }
  return list;
}

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
  if constexpr (!std::is_same_v<T, double>) {
    for (const Screening<T>& screening : screenings<T>(job.dim)) {
      if (count() >= kMinScreenRows) {
        sum += run_screened(job, screening, list, rows);
      }
    }
  }
  if (count() > 0) {
    const auto exhaustive =
        select_isa(&portable::quantize_exhaustive<T>, &avx2::quantize_exhaustive<T>,
                   &avx512::quantize_exhaustive<T>);
    RowBatch batch(list ? list->data() : nullptr, count());
    parallel_for(batch.blocks, 1,
                 [&](int64_t begin, int64_t end) { exhaustive(job, batch, begin, end); });
    sum += total(batch);
  }
  return sum;
}

// Quantizes all groups. `quantized` and `distances` may be null; returns the sum of distances.
template <typename T>
double quantize(const QuantizeShape& size, const Tensor& x, const Tensor& codebook,
                Tensor* quantized, Tensor& indices, Tensor* distances, double weight) {
  const Tensor books = torch::stable::contiguous(codebook);
  const bool grouped = codebook.dim() == 3;
  double sum = 0;
  for (int64_t group = 0; group < size.groups && size.rows > 0; ++group) {
    const RowView<const T> rows(x.const_data_ptr<T>(), x, grouped, group);
    std::optional<RowView<T>> output;
    if (quantized != nullptr) {
      output.emplace(quantized->mutable_data_ptr<T>(), *quantized, grouped, group);
    }
    const QuantizeJob<T> job = {
        rows,
        books.const_data_ptr<T>() + group * size.codewords * size.dim,
        size.codewords,
        size.dim,
        output ? &*output : nullptr,
        indices.mutable_data_ptr<int64_t>() + group,
        distances ? distances->mutable_data_ptr<accumulate_t<T>>() + group : nullptr,
        size.groups,
        weight};
    sum += quantize_group(job, size.rows);
  }
  return sum;
}

std::vector<int64_t> row_sizes(const Tensor& x) {
  const auto sizes = x.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end() - 1);
}

}  // namespace

std::tuple<Tensor, Tensor> nearest_codeword_cpu(const Tensor& x, const Tensor& codebook) {
  const QuantizeShape size = check_quantize("nearest_codeword", x, codebook);
  Tensor indices = torch::stable::new_empty(x, row_sizes(x), ScalarType::Long);
  Tensor squared_distance =
      torch::stable::new_empty(x, row_sizes(x), accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), "nearest_codeword", [&]<typename T>() {
    quantize<T>(size, x, codebook, nullptr, indices, &squared_distance, 1.0);
  });
  return {indices, squared_distance};
}

std::tuple<Tensor, Tensor, Tensor> vector_quantize_cpu(const Tensor& x, const Tensor& codebook,
                                                       double commitment_weight,
                                                       double codebook_weight,
                                                       const std::string& reduction) {
  const QuantizeShape size = check_quantize("vector_quantize", x, codebook);
  const bool rowwise = reduction == "none";
  Tensor quantized = torch::stable::empty_like(x);
  Tensor indices = torch::stable::new_empty(x, row_sizes(x), ScalarType::Long);
  Tensor loss = torch::stable::new_empty(x, rowwise ? row_sizes(x) : std::vector<int64_t>{},
                                         accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), "vector_quantize", [&]<typename T>() {
    const double weight = commitment_weight + codebook_weight;
    const double sum =
        quantize<T>(size, x, codebook, &quantized, indices, rowwise ? &loss : nullptr, weight);
    if (!rowwise) {
      const double count = reduction == "mean" ? static_cast<double>(x.numel()) : 1.0;
      *loss.mutable_data_ptr<accumulate_t<T>>() =
          static_cast<accumulate_t<T>>(weight * sum / count);
    }
  });
  return {quantized, indices, loss};
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_IMPL(avskernels, CPU, m) {
  m.impl("nearest_codeword", TORCH_BOX(&avskernels::nearest_codeword_cpu));
  m.impl("vector_quantize", TORCH_BOX(&avskernels::vector_quantize_cpu));
}
