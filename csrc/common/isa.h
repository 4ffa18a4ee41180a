// SPDX-License-Identifier: Apache-2.0
// The instruction sets that CPU kernels are compiled for, and which of them is in use, decided at
// run time. To add one: a line here, and a stanza in common/for_each_isa.h.
#pragma once

#include <initializer_list>

namespace avskernels {

// Level(name, what the processor has beyond the levels before it, what the caller adds).
// clang-format off
#define AVSKERNELS_FOR_EACH_LEVEL(Level, ...)                                                \
  Level(portable, true, __VA_ARGS__)                                                         \
  Level(avx2, has("avx2") && has("fma") && has("f16c"), __VA_ARGS__)                         \
  Level(avx512, has("avx512f") && has("avx512bw") && has("avx512dq") && has("avx512vl") &&   \
        has("avx512cd"), __VA_ARGS__)                                                        \
  Level(avx512_vnni, has("avx512vnni"), __VA_ARGS__)                                         \
  Level(avx512_bf16, has("avx512bf16"), __VA_ARGS__)
// clang-format on

#define AVSKERNELS_LEVEL_NAME(name, ...) name,
#define AVSKERNELS_LEVEL_TEXT(name, ...) #name,
enum class Isa { AVSKERNELS_FOR_EACH_LEVEL(AVSKERNELS_LEVEL_NAME) };
inline constexpr const char* kIsaNames[] = {AVSKERNELS_FOR_EACH_LEVEL(AVSKERNELS_LEVEL_TEXT)};
#undef AVSKERNELS_LEVEL_NAME
#undef AVSKERNELS_LEVEL_TEXT

Isa detected_isa();  // the best one of this machine
Isa active_isa();    // the one in use: detected, unless lowered for a test

// Lowers the level for the whole process; fails if the machine does not have it.
void set_active_isa(Isa isa);

// The table of the active level, of those of all levels.
template <typename Table>
const Table& active_table(std::initializer_list<const Table*> tables) {
  return *tables.begin()[static_cast<int>(active_isa())];
}

}  // namespace avskernels
