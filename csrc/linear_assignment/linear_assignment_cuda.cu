// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "common/dispatch.h"
#include "common/operator.h"
#include "common/stream.h"
#include "common/tensors.h"
#include "linear_assignment/linear_assignment.h"
#include "linear_assignment/tiered.h"

namespace avskernels {
namespace {

#include "linear_assignment/search.isa.h"

constexpr int kWarp = 32;
constexpr int kMostWarps = 16;
constexpr unsigned kAllLanes = 0xffffffff;

// Values as 32-bit words, the most significant first, whose order as integers is that of the
// values; -0 and 0 are one.
template <int kCount>
struct Words {
  uint32_t word[kCount];
};

__device__ inline Words<2> ordered_words(double value) {
  const uint64_t bits = __double_as_longlong(value + 0.0), sign = bits >> 63;
  const uint64_t key = bits ^ (sign != 0 ? ~uint64_t{0} : uint64_t{1} << 63);
  return {static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(key)};
}

__device__ inline double value_of(const uint32_t* word) {
  const uint64_t key = static_cast<uint64_t>(word[0]) << 32 | word[1], positive = key >> 63;
  return __longlong_as_double(key ^ (positive != 0 ? uint64_t{1} << 63 : ~uint64_t{0}));
}

__device__ inline Words<3> ordered_words(double value, int32_t index) {
  const Words<2> key = ordered_words(value);
  return {key.word[0], key.word[1], static_cast<uint32_t>(index)};
}

__device__ inline Words<5> ordered_words(TieredCost cost, int32_t index) {
  const Words<2> tier = ordered_words(cost.tier), value = ordered_words(cost.value);
  return {tier.word[0], tier.word[1], value.word[0], value.word[1], static_cast<uint32_t>(index)};
}

__device__ inline Ranked<double, int32_t> ranked(const Words<3>& words) {
  return {value_of(words.word), static_cast<int32_t>(words.word[2])};
}

__device__ inline Ranked<TieredCost, int32_t> ranked(const Words<5>& words) {
  return {{value_of(words.word), value_of(words.word + 2)}, static_cast<int32_t>(words.word[4])};
}

// The smallest of a warp's words.
template <int kCount>
__device__ Words<kCount> warp_smallest(Words<kCount> own) {
  bool leading = true;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint32_t least = __reduce_min_sync(kAllLanes, leading ? own.word[i] : ~0u);
    leading = leading && own.word[i] == least;
    own.word[i] = least;
  }
  return own;
}

// What the warps of a block tell each other: two of each, used in turn, so that one barrier an
// exchange is enough.
struct Exchange {
  uint32_t words[2][5][kMostWarps];
  int32_t shared[2];
};

// The threads of a block.
struct BlockLanes {
  Exchange* exchange;
  int turn = 0;

  __device__ int32_t rank() const { return threadIdx.x; }
  __device__ int32_t size() const { return blockDim.x; }

  __device__ int32_t share(int32_t value) {
    if (blockDim.x == kWarp) {
      __syncwarp();
      return __shfl_sync(kAllLanes, value, 0);
    }
    turn ^= 1;
    if (threadIdx.x == 0) exchange->shared[turn] = value;
    __syncthreads();
    return exchange->shared[turn];
  }

  template <typename Value>
  __device__ Ranked<Value, int32_t> smallest(Value value, int32_t index) {
    auto words = warp_smallest(ordered_words(value, index));
    __syncwarp();
    if (blockDim.x > kWarp) {
      constexpr int kCount = sizeof(words) / sizeof(uint32_t);
      const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
      turn ^= 1;
      if (lane == 0) {
        for (int i = 0; i < kCount; ++i) exchange->words[turn][i][warp] = words.word[i];
      }
      __syncthreads();
      const int other = min(lane, static_cast<int>(blockDim.x) / kWarp - 1);
      for (int i = 0; i < kCount; ++i) words.word[i] = exchange->words[turn][i][other];
      words = warp_smallest(words);
    }
    return ranked(words);
  }
};

// Where a block keeps the state of its search and its copy of the costs.
enum class Placement { shared, costs_global, global };

struct AssignmentSizes {
  int64_t rows, cols;                // of the largest problem
  int64_t state_bytes, costs_bytes;  // for it
};

HOST_DEVICE inline int64_t round_up(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Odd, so that a column's costs lie in different banks of shared memory.
HOST_DEVICE inline int64_t cost_stride(int64_t m) { return m | 1; }

HOST_DEVICE inline int64_t state_bytes(int64_t n, int64_t m) {
  return round_up(2 * sizeof(TieredCost) * m + sizeof(int32_t) * 2 * (n + m) + sizeof(bool) * m);
}

template <typename Value>
__device__ AssignmentState<Value, int32_t> carve_state(unsigned char* memory, int32_t n, int32_t m,
                                                       bool** closed) {
  Value* const values = reinterpret_cast<Value*>(memory);
  int32_t* const indices = reinterpret_cast<int32_t*>(values + 2 * m);
  *closed = reinterpret_cast<bool*>(indices + 2 * (n + m));
  return {n, m, values, values + m, indices, indices + m, indices + 2 * m, indices + 2 * m + n};
}

template <typename Value, typename Cost>
__device__ void assign_in_block(unsigned char* memory, const Cost& cost, int32_t n, int32_t m,
                                Value infinite, Exchange* exchange, bool transposed,
                                int64_t* columns) {
  bool* closed;
  const auto state = carve_state<Value>(memory, n, m, &closed);
  PlainScan<Cost, Value, int32_t, BlockLanes> scan = {state, cost, infinite, closed, {exchange}};
  assign_rows(scan);
  for (int32_t i = threadIdx.x; i < n; i += blockDim.x) {
    const int32_t j = state.column_of_row[i];
    if constexpr (std::is_same_v<Value, TieredCost>) {
      if (cost(i, j).tier > 0) continue;
    }
    columns[transposed ? j : i] = transposed ? i : j;
  }
}

// computes: the assignment of one problem (see search.isa.h), in the CPU's steps
// grid: a block a problem; its threads share the columns of a row
// traffic and FLOPs: the costs once, and once more where their copy lies in global memory; then
// from
//   shared memory or L2 12 m bytes a pass over a row and about 10 operations an entry
// numerics: float64 duals; ties as the CPU takes them, so the same matching
// limits: N and J below 2^30; sizes beyond the matrix are cut to it
template <typename T, Placement kPlacement>
__global__ void __launch_bounds__(kWarp* kMostWarps, 1)
    solve_assignments(const T* cost,             // [B, N, J]
                      const int64_t* num_rows,   // [B] or null
                      const int64_t* num_cols,   // [B] or null
                      unsigned char* workspace,  // [B, what lies in global memory]
                      int64_t* columns,          // [B, N]
                      AssignmentSizes sizes) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Exchange exchange;
  const int64_t b = blockIdx.x;
  const auto count = [&](const int64_t* given, int64_t most) {
    return static_cast<int32_t>(given == nullptr ? most : min(max(given[b], int64_t{0}), most));
  };
  const int32_t rows = count(num_rows, sizes.rows), cols = count(num_cols, sizes.cols);
  const bool transposed = rows > cols;
  const int32_t n = min(rows, cols), m = max(rows, cols);
  cost += b * sizes.rows * sizes.cols;
  columns += b * sizes.rows;
  for (int32_t i = threadIdx.x; i < sizes.rows; i += blockDim.x) columns[i] = -1;
  if (n == 0) {
    return;
  }
  unsigned char *state, *copy;
  if constexpr (kPlacement == Placement::shared) {
    state = shared;
    copy = shared + sizes.state_bytes;
  } else if constexpr (kPlacement == Placement::costs_global) {
    state = shared;
    copy = workspace + b * sizes.costs_bytes;
  } else {
    state = workspace + b * (sizes.state_bytes + sizes.costs_bytes);
    copy = state + sizes.state_bytes;
  }
  T* const costs = reinterpret_cast<T*>(copy);
  const int64_t stride = cost_stride(m);
  const int64_t row_step = transposed ? 1 : stride, column_step = transposed ? stride : 1;
  bool huge = false, finite = true;
  for (int64_t at = threadIdx.x; at < static_cast<int64_t>(rows) * cols; at += blockDim.x) {
    const int64_t i = at / cols, j = at % cols;
    const T value = cost[i * sizes.cols + j];
    costs[i * row_step + j * column_step] = value;
    finite = finite && is_finite(static_cast<double>(value));
    huge = huge || is_huge(static_cast<double>(value));
  }
  // Both are barriers, and everybody's vote.
  huge = __syncthreads_or(huge);
  finite = __syncthreads_and(finite);
  const MatrixCost<T> matrix = {costs, stride, 1};
  const double infinity = __longlong_as_double(0x7ff0000000000000);
  if (finite && !huge) {
    assign_in_block<double>(state, matrix, n, m, infinity, &exchange, transposed, columns);
  } else {
    assign_in_block<TieredCost>(state, Tiers<MatrixCost<T>>(matrix, n, huge), n, m, {infinity, 0},
                                &exchange, transposed, columns);
  }
}

// Bytes of shared memory that a block may have beside its Exchange.
int64_t largest_shared(int device) {
  int bytes = 0;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes - round_up(sizeof(Exchange));
}

}  // namespace

Tensor linear_assignment_cuda(const LinearAssignment& in) {
  const Tensor& cost = in.cost;
  const int64_t problems = cost.size(0), rows = cost.size(1), cols = cost.size(2);
  const auto row_counts = dense(in.num_rows);
  const auto col_counts = dense(in.num_cols);
  const int64_t n = std::min(rows, cols), m = std::max(rows, cols);
  if (m >= int64_t{1} << 30) {
    fail("linear_assignment: expected fewer than 2^30 rows and columns, got ", m);
  }
  const Tensor costs = dense(cost);
  Tensor columns = torch::stable::new_empty(cost, {problems, rows}, ScalarType::Long);
  if (columns.numel() == 0) {
    return columns;
  }
  const CudaScope scope(cost);
  dispatch_floating(cost.scalar_type(), [&]<typename T>() {
    const AssignmentSizes sizes = {rows, cols, state_bytes(n, m),
                                   round_up(static_cast<int64_t>(sizeof(T)) * n * cost_stride(m))};
    const int64_t limit = largest_shared(cost.get_device_index());
    const auto launch = [&]<Placement kPlacement>(int64_t in_shared, int64_t in_global) {
      const auto kernel = solve_assignments<T, kPlacement>;
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(in_shared));
      Tensor workspace = torch::stable::new_empty(cost, {problems * in_global}, ScalarType::Byte);
      const int threads = kWarp * (m <= 2 * kWarp ? 1 : m <= 512 ? 4 : kMostWarps);
      kernel<<<static_cast<unsigned>(problems), threads, in_shared, scope.stream()>>>(
          costs.const_data_ptr<T>(), row_counts ? row_counts->const_data_ptr<int64_t>() : nullptr,
          col_counts ? col_counts->const_data_ptr<int64_t>() : nullptr,
          workspace.mutable_data_ptr<uint8_t>(), columns.mutable_data_ptr<int64_t>(), sizes);
    };
    if (sizes.state_bytes + sizes.costs_bytes <= limit) {
      launch.template operator()<Placement::shared>(sizes.state_bytes + sizes.costs_bytes, 0);
    } else if (sizes.state_bytes <= limit) {
      launch.template operator()<Placement::costs_global>(sizes.state_bytes, sizes.costs_bytes);
    } else {
      launch.template operator()<Placement::global>(0, sizes.state_bytes + sizes.costs_bytes);
    }
  });
  check_launch("linear_assignment");
  return columns;
}

}  // namespace avskernels

STABLE_TORCH_LIBRARY_FRAGMENT(avskernels, m) {
  avskernels::define_as<avskernels::LinearAssignment>(m, "_linear_assignment_cuda");
}

STABLE_TORCH_LIBRARY_IMPL(avskernels, CUDA, m) {
  avskernels::implement<&avskernels::linear_assignment_cuda>(m, "_linear_assignment_cuda");
}
