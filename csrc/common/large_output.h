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

// Whether the rows of an output, `row` elements each, are better written past the caches
// (store_past_caches in common/simd.h, which wants the alignment): together with the map that it is
// made from it is more than a third-level cache's usual share, so that what reads it next finds
// little of it there. Measured with maps of 16 MB: a tenth to a sixth less time, and no more where
// a sum over the output follows; with 8 MB and less, more.
inline bool past_caches(const torch::stable::Tensor& output, int64_t row) {
  constexpr int64_t kCached = 12 << 20, kLine = 64;
  const int64_t size = output.element_size();
  return output.numel() * size > kCached && row * size % kLine == 0 &&
         reinterpret_cast<uintptr_t>(output.data_ptr()) % kLine == 0;
}

}  // namespace avskernels
