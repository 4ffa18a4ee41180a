// SPDX-License-Identifier: Apache-2.0
#include "common/isa.h"

#include <atomic>
#include <iterator>

#include "common/check.h"

namespace avskernels {

Isa detected_isa() {
  Isa best = Isa::portable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool supported[] = {
#define has(feature) __builtin_cpu_supports(feature)
#define AVSKERNELS_LEVEL_FEATURES(name, features, ...) static_cast<bool>(features),
      AVSKERNELS_FOR_EACH_LEVEL(AVSKERNELS_LEVEL_FEATURES)};
#undef has
  for (int level = 1; level < static_cast<int>(std::size(supported)) && supported[level]; ++level) {
    best = static_cast<Isa>(level);
  }
#endif
  return best;
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
