// SPDX-License-Identifier: Apache-2.0
// Compiles one kernel file once per instruction set, each time in a namespace of that name, with
// function-level targets: one binary runs everywhere. Usage, in <op>_cpu.cpp:
//
//   #define AVSKERNELS_KERNEL "<op>/<op>_kernel.h"
//   #include "common/for_each_isa.h"
//   ... select_isa(&portable::kernel<T>, &avx2::kernel<T>, &avx512::kernel<T>)(arguments);
//
// Define AVSKERNELS_KERNEL_VNNI or AVSKERNELS_KERNEL_BF16 to get these levels too. The kernel file
// includes nothing (its .cpp does, before), sees common/simd.h of its level, and AVSKERNELS_ISA.
// GCC gives the target to functions and templates of the region but not to lambdas: put
// AVSKERNELS_TARGET behind a lambda's parameter list.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/dispatch.h"
#include "common/isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// GCC 12's own headers trip over their undefined vectors.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#define AVSKERNELS_PORTABLE 0
#define AVSKERNELS_AVX2 1
#define AVSKERNELS_AVX512 2
#define AVSKERNELS_AVX512_VNNI 3
#define AVSKERNELS_AVX512_BF16 4

#define AVSKERNELS_ISA AVSKERNELS_PORTABLE
#define AVSKERNELS_TARGET
namespace avskernels::portable {
#include "common/simd.h"
#include AVSKERNELS_KERNEL
}  // namespace avskernels::portable
#undef AVSKERNELS_ISA
#undef AVSKERNELS_TARGET

#if defined(__x86_64__)

#define AVSKERNELS_ISA AVSKERNELS_AVX2
#define AVSKERNELS_TARGET __attribute__((target("avx2,fma,f16c")))
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avskernels::avx2 {
#include "common/simd.h"
#include AVSKERNELS_KERNEL
}  // namespace avskernels::avx2
#pragma GCC pop_options
#undef AVSKERNELS_ISA
#undef AVSKERNELS_TARGET

#define AVSKERNELS_ISA AVSKERNELS_AVX512
#define AVSKERNELS_TARGET \
  __attribute__((target(  \
      "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512")))
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512")
namespace avskernels::avx512 {
#include "common/simd.h"
#include AVSKERNELS_KERNEL
}  // namespace avskernels::avx512
#pragma GCC pop_options
#undef AVSKERNELS_ISA
#undef AVSKERNELS_TARGET

#if defined(AVSKERNELS_KERNEL_VNNI)
#define AVSKERNELS_ISA AVSKERNELS_AVX512_VNNI
#define AVSKERNELS_TARGET                                                                         \
  __attribute__((                                                                                 \
      target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512," \
             "avx512vnni")))
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni")
namespace avskernels::avx512_vnni {
#include "common/simd.h"
#include AVSKERNELS_KERNEL
}  // namespace avskernels::avx512_vnni
#pragma GCC pop_options
#undef AVSKERNELS_ISA
#undef AVSKERNELS_TARGET
#endif

#if defined(AVSKERNELS_KERNEL_BF16)
#define AVSKERNELS_ISA AVSKERNELS_AVX512_BF16
#define AVSKERNELS_TARGET                                                                         \
  __attribute__((                                                                                 \
      target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512," \
             "avx512vnni,avx512bf16")))
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni,avx512bf16")
namespace avskernels::avx512_bf16 {
#include "common/simd.h"
#include AVSKERNELS_KERNEL
}  // namespace avskernels::avx512_bf16
#pragma GCC pop_options
#undef AVSKERNELS_ISA
#undef AVSKERNELS_TARGET
#endif

#else  // other processors: the compiler's own vectors, under every name

namespace avskernels {
namespace avx2 = portable;
namespace avx512 = portable;
namespace avx512_vnni = portable;
namespace avx512_bf16 = portable;
}  // namespace avskernels

#endif

#pragma GCC diagnostic pop
