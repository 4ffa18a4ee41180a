// SPDX-License-Identifier: Apache-2.0
// Compiles one kernel file once per instruction set, each time in a namespace of that name, with
// function-level targets: one binary runs everywhere. A kernel file ends in a table of its
// functions. Usage, in <op>_cpu.cpp:
//
//   struct Kernels { ... };  // what the table holds
//   #define AVSKERNELS_KERNEL "<op>/<op>.isa.h"
//   #include "common/for_each_isa.h"
//   ... AVSKERNELS_ACTIVE(kKernels<T>).function(arguments);
//
// Define AVSKERNELS_KERNEL_VNNI or AVSKERNELS_KERNEL_BF16 to get these levels too; a level that is
// not compiled is another name of the one below it. The kernel file includes nothing (its .cpp
// does, before), sees common/simd.isa.h of its level, and AVSKERNELS_ISA. GCC gives the target to
// functions and templates of the region but not to lambdas: put AVSKERNELS_TARGET after a lambda's
// parameter list.
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

// The levels in numbers, for #if, and what the compiler calls their features.
#define AVSKERNELS_PORTABLE 0
#define AVSKERNELS_AVX2 1
#define AVSKERNELS_AVX512 2
#define AVSKERNELS_AVX512_VNNI 3
#define AVSKERNELS_AVX512_BF16 4

#define AVSKERNELS_AVX2_FEATURES "avx2,fma,f16c"
#define AVSKERNELS_AVX512_FEATURES \
  AVSKERNELS_AVX2_FEATURES         \
  ",avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512"
#define AVSKERNELS_AVX512_VNNI_FEATURES AVSKERNELS_AVX512_FEATURES ",avx512vnni"
#define AVSKERNELS_AVX512_BF16_FEATURES AVSKERNELS_AVX512_VNNI_FEATURES ",avx512bf16"

#define AVSKERNELS_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define AVSKERNELS_TARGET_PRAGMA(features) AVSKERNELS_PRAGMA(GCC target(features))

#define AVSKERNELS_LEVEL portable
#define AVSKERNELS_ISA AVSKERNELS_PORTABLE
#include "common/level.isa.h"

#define AVSKERNELS_LEVEL avx2
#define AVSKERNELS_LEVEL_BELOW portable
#if defined(__x86_64__)
#define AVSKERNELS_ISA AVSKERNELS_AVX2
#define AVSKERNELS_FEATURES AVSKERNELS_AVX2_FEATURES
#endif
#include "common/level.isa.h"

#define AVSKERNELS_LEVEL avx512
#define AVSKERNELS_LEVEL_BELOW avx2
#if defined(__x86_64__)
#define AVSKERNELS_ISA AVSKERNELS_AVX512
#define AVSKERNELS_FEATURES AVSKERNELS_AVX512_FEATURES
#endif
#include "common/level.isa.h"

#define AVSKERNELS_LEVEL avx512_vnni
#define AVSKERNELS_LEVEL_BELOW avx512
#if defined(__x86_64__) && defined(AVSKERNELS_KERNEL_VNNI)
#define AVSKERNELS_ISA AVSKERNELS_AVX512_VNNI
#define AVSKERNELS_FEATURES AVSKERNELS_AVX512_VNNI_FEATURES
#endif
#include "common/level.isa.h"

#define AVSKERNELS_LEVEL avx512_bf16
#define AVSKERNELS_LEVEL_BELOW avx512_vnni
#if defined(__x86_64__) && defined(AVSKERNELS_KERNEL_BF16)
#define AVSKERNELS_ISA AVSKERNELS_AVX512_BF16
#define AVSKERNELS_FEATURES AVSKERNELS_AVX512_BF16_FEATURES
#endif
#include "common/level.isa.h"

#define AVSKERNELS_TABLE(level, features, ...) &level::__VA_ARGS__,
#define AVSKERNELS_ACTIVE(...) \
  ::avskernels::active_table({AVSKERNELS_FOR_EACH_LEVEL(AVSKERNELS_TABLE, __VA_ARGS__)})

#pragma GCC diagnostic pop
