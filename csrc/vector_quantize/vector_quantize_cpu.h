// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels of every instruction set share: rows of a strided tensor, the packed
// codebook, and the description of one run over the rows.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/dispatch.h"
#include "common/scratch.h"
#include "vector_quantize/vector_quantize.h"

namespace avskernels {

// The rows of a strided tensor [..., D], or of one group of [..., G, D], in row-major order.
template <typename T>
class RowView {
 public:
  RowView(T* data, const Tensor& tensor, bool grouped, int64_t group)
      : data_(data), stride_(tensor.stride(tensor.dim() - 1)) {
    const int64_t leading = tensor.dim() - 1 - grouped;
    if (grouped) {
      data_ += group * tensor.stride(leading);
    }
    for (int64_t i = leading - 1; i >= 0; --i) {  // innermost first
      const int64_t size = tensor.size(i);
      const int64_t stride = tensor.stride(i);
      if (!sizes_.empty() && stride == strides_.back() * sizes_.back()) {
        sizes_.back() *= size;
      } else if (size != 1) {
        sizes_.push_back(size);
        strides_.push_back(stride);
      }
    }
  }

  T* row(int64_t index) const {
    int64_t offset = 0;
    for (size_t i = 0; i + 1 < sizes_.size(); ++i) {
      offset += index % sizes_[i] * strides_[i];
      index /= sizes_[i];
    }
    return data_ + offset + (strides_.empty() ? 0 : index * strides_.back());
  }

  int64_t stride() const { return stride_; }  // between the elements of a row

 private:
  T* data_;
  int64_t stride_;
  std::vector<int64_t> sizes_, strides_;
};

// A codebook as the screening reads it: centred, in tiles of kTile codewords, 32 bits per operand
// (one float or four int8) interleaved so that a vector load brings one operand of kLanes
// codewords. Codewords that hold NaN or Inf, and those that fill the last tile, have an infinite
// square, so that no score reaches a minimum.
class PackedCodebook {
 public:
  static constexpr int64_t kTile = 64;

  PackedCodebook(int64_t codewords, int64_t dim, int64_t steps)
      : codewords(codewords), dim(dim), steps(steps), tiles((codewords + kTile - 1) / kTile) {
    const int64_t counts[] = {
        dim,           tiles,         tiles,         tiles,         tiles * kTile,
        tiles * kTile, tiles * kTile, tiles * kTile, tiles * kTile, tiles * kTile * steps};
    float** const arrays[] = {&centre, &tile_norm, &tile_residual, &tile_rounding, &scale,
                              &square, &norm,      &residual,      &rounding,      &operands};
    int64_t lines = 0;
    for (const int64_t count : counts) {
      lines += (count + 15) / 16;
    }
    memory_ = std::make_unique_for_overwrite<CacheLine[]>(lines);
    CacheLine* next = memory_.get();
    for (int i = 0; i < 10; ++i) {
      *arrays[i] = next->values;
      next += (counts[i] + 15) / 16;
    }
  }

  const int64_t codewords;  // K
  const int64_t dim;        // D
  const int64_t steps;      // operands of a codeword
  const int64_t tiles;      // of kTile codewords
  float* centre;            // [D], subtracted from codewords and rows
  float* scale;             // [K] value of one unit of a product, apart from the row's scale
  float* square;            // [K] squared norm of the centred codeword
  float* norm;              // [K] at least twice its norm
  float* residual;          // [K] at least twice the norm of what its operands leave out
  float* rounding;          // [K] what rounding of the square adds to the error of a score
  float* tile_norm;         // [tiles] maxima of these
  float* tile_residual;     // [tiles]
  float* tile_rounding;     // [tiles]
  float* operands;          // [tiles, steps, kTile]
  std::atomic<bool> screenable = true;  // false where the squares would overflow

 private:
  struct alignas(64) CacheLine {
    float values[16];
  };
  std::unique_ptr<CacheLine[]> memory_;
};

// Rows of one group and where their results go.
template <typename T>
struct QuantizeJob {
  RowView<const T> x;
  const T* codebook;  // [K, D]
  int64_t codewords;
  int64_t dim;
  const RowView<T>* quantized;  // or null
  int64_t* indices;             // [M], output_stride apart
  accumulate_t<T>* distances;   // the same, or null
  int64_t output_stride;
  double weight;  // of the distances that are written
};

// A run over `count` rows in blocks; blocks are what threads share out, and their size depends on
// nothing but the count, so sums do not depend on the threads.
struct RowBatch {
  RowBatch(const int64_t* rows, int64_t count)
      : rows(rows),
        count(count),
        block_rows(count >= 8 * kMaxBlockRows ? kMaxBlockRows : (count / 8 + 4) / 4 * 4),
        blocks((count + block_rows - 1) / block_rows),
        sums(blocks),
        uncertified(blocks) {}

  static constexpr int64_t kMaxBlockRows = 48;

  const int64_t* rows;  // their numbers, or null for all from 0
  const int64_t count;
  const int64_t block_rows;
  const int64_t blocks;
  std::vector<double> sums;                       // [blocks] of squared distances
  std::vector<std::vector<int64_t>> uncertified;  // [blocks] rows left to a slower run
};

}  // namespace avskernels
