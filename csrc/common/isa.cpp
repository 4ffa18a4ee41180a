// SPDX-License-Identifier: Apache-2.0
#include "common/isa.h"

#include <atomic>

#include "common/check.h"

namespace avskernels {

Isa detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))) {
    return Isa::portable;
  }
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd"))) {
    return Isa::avx2;
  }
  if (!__builtin_cpu_supports("avx512vnni")) {
    return Isa::avx512;
  }
  return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512_vnni;
#else
  return Isa::portable;
#endif
}

namespace {
std::atomic<Isa>& isa_in_use() {
  static std::atomic<Isa> isa = detected_isa();
  return isa;
}
}  // namespace

Isa active_isa() { return isa_in_use().load(std::memory_order_relaxed); }

void set_active_isa(Isa isa) {
  check(isa <= detected_isa(), "set_active_isa: expected at most ",
        kIsaNames[static_cast<int>(detected_isa())], ", got ", kIsaNames[static_cast<int>(isa)]);
  isa_in_use() = isa;
}

}  // namespace avskernels
