// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/ops.h>

namespace avskernels {

// body(begin, end) over [0, count) on torch's own thread pool; at least `grain` iterations a
// thread. Bodies write disjoint outputs and do not throw, so results do not depend on the thread
// count.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count > 0) {
    torch::stable::parallel_for(0, count, grain, body);
  }
}

}  // namespace avskernels
