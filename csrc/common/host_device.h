// SPDX-License-Identifier: Apache-2.0
// Marks scalar maths that the CPU kernels and the CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif
