// SPDX-License-Identifier: Apache-2.0
// CUDA side: the current stream of a tensor's device, and the check behind a launch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "common/check.h"

namespace avskernels {

// Makes the tensor's device current for its lifetime, and names the stream to launch on.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    const auto status = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
    check(status == AOTI_TORCH_SUCCESS, "avskernels: expected a current CUDA stream, got error ",
          status);
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    fail(op, ": expected the kernel to launch, got ", cudaGetErrorString(error));
  }
}

}  // namespace avskernels
