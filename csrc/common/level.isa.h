// SPDX-License-Identifier: Apache-2.0
// One level of common/for_each_isa.h: the kernel file in namespace AVSKERNELS_LEVEL, or, where
// AVSKERNELS_ISA is not defined, another name of the level below.

#if defined(AVSKERNELS_ISA)

#if defined(AVSKERNELS_FEATURES)
#define AVSKERNELS_TARGET __attribute__((target(AVSKERNELS_FEATURES)))
#pragma GCC push_options
AVSKERNELS_TARGET_PRAGMA(AVSKERNELS_FEATURES)
#else
#define AVSKERNELS_TARGET
#endif
namespace avskernels::AVSKERNELS_LEVEL {
#include "common/simd.isa.h"
#include AVSKERNELS_KERNEL
}  // namespace avskernels::AVSKERNELS_LEVEL
#if defined(AVSKERNELS_FEATURES)
#pragma GCC pop_options
#endif

#else

namespace avskernels {
namespace AVSKERNELS_LEVEL = AVSKERNELS_LEVEL_BELOW;
}

#endif

#undef AVSKERNELS_ISA
#undef AVSKERNELS_TARGET
#undef AVSKERNELS_FEATURES
#undef AVSKERNELS_LEVEL
#undef AVSKERNELS_LEVEL_BELOW
