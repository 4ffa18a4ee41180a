// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU kernels use, decided at run time.
#pragma once

namespace avskernels {

// Each level includes those before it. avx512: F, BW, DQ, VL, CD. avx512_bf16 machines have VNNI
// too.
enum class Isa { portable, avx2, avx512, avx512_vnni, avx512_bf16 };

inline constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512_vnni",
                                            "avx512_bf16"};

Isa detected_isa();  // the best one of this machine
Isa active_isa();    // the one in use: detected, unless lowered for a test

// Lowers the level for the whole process; fails if the machine does not have it.
void set_active_isa(Isa isa);

// Picks the kernel compiled for the active level; a level left out takes the best one below it.
template <typename Kernel>
Kernel* select_isa(Kernel* portable, Kernel* avx2, Kernel* avx512, Kernel* avx512_vnni = nullptr,
                   Kernel* avx512_bf16 = nullptr) {
  Kernel* const kernels[] = {portable, avx2, avx512, avx512_vnni, avx512_bf16};
  int level = static_cast<int>(active_isa());
  while (kernels[level] == nullptr) {
    --level;
  }
  return kernels[level];
}

}  // namespace avskernels
