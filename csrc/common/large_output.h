// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace avskernels {

// Returns a fresh output whose memory the system may map in huge pages: writing it for the first
// time then takes one page fault per 2 MiB instead of one per 4 KiB. Memory that is mapped already
// stays as it is, and so does everything where the system has no huge pages.
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

// Whether the rows of an output, `row` elements each, are better written past the caches (with
// store_past_caches of common/simd.isa.h, which wants the alignment): the output and the map that
// it is made from exceed the usual share of a third-level cache, so that the next reader finds
// little of it there. Measured: with maps of 16 MB a tenth to a sixth less time, and no more time
// where a sum over the output follows; with 8 MB and less, more time.
inline bool past_caches(const torch::stable::Tensor& output, int64_t row) {
  constexpr int64_t kCached = 12 << 20, kLine = 64;
  const int64_t size = output.element_size();
  return output.numel() * size > kCached && row * size % kLine == 0 &&
         reinterpret_cast<uintptr_t>(output.data_ptr()) % kLine == 0;
}

}  // namespace avskernels
