// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace avskernels {

// Returns a fresh output behind which the system may put huge pages: writing it for the first time
// then takes a page fault every 2 MiB instead of every 4 KiB. Where pages are there already, or the
// system has none of that size to give, nothing changes.
inline torch::stable::Tensor in_huge_pages(torch::stable::Tensor output) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const auto start = reinterpret_cast<uintptr_t>(output.data_ptr());
  const uintptr_t begin = (start + kPage - 1) / kPage * kPage;
  const uintptr_t end = (start + output.numel() * output.element_size()) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return output;
}

}  // namespace avskernels
