// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace avskernels {

// body(begin, end) over [0, count) on torch's own thread pool; at least `grain` iterations per
// thread. Bodies write disjoint outputs and do not throw, so results do not depend on the thread
// count.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count > 0) {
    torch::stable::parallel_for(0, count, grain, body);
  }
}

// For each image of a batch: first(b, i, scratch) for i < firsts, in any order; then finish(b)
// once; then second(b, i, scratch) for i < seconds. Scratch is made once per thread. Threads take
// one piece after another, so that none waits for a slower one. The passes of neighbouring images
// take turns: finish(b) is over when second(b, 0) is reached, and the image is still in the
// third-level cache.
template <typename Scratch, typename First, typename Finish, typename Second>
void parallel_passes(int64_t batch, int64_t firsts, int64_t seconds, int64_t scratch_size,
                     const First& first, const Finish& finish, const Second& second) {
  std::vector<std::atomic<int64_t>> done(batch);  // pieces of the first pass, plus one for finish
  for (int64_t b = 0; b < batch && firsts == 0; ++b) {
    finish(b);
    done[b] = 1;
  }
  const auto run_first = [&](int64_t b, int64_t i, const Scratch& scratch) {
    first(b, i, scratch);
    if (done[b].fetch_add(1, std::memory_order_acq_rel) + 1 == firsts) {
      finish(b);
      done[b].fetch_add(1, std::memory_order_release);
    }
  };
  const auto run_second = [&](int64_t b, int64_t i, const Scratch& scratch) {
    while (done[b].load(std::memory_order_acquire) <= firsts) std::this_thread::yield();
    second(b, i, scratch);
  };
  std::atomic<int64_t> next = 0;
  const int64_t turn = firsts + seconds;
  // No more pieces than these can run at the same time.
  const int64_t widest = batch * std::max(firsts, seconds);
  parallel_for(std::min<int64_t>(torch::stable::get_num_threads(), widest), 1,
               [&](int64_t, int64_t) {
                 const Scratch scratch(scratch_size);
                 for (int64_t piece;
                      (piece = next.fetch_add(1, std::memory_order_relaxed)) < batch * turn;) {
                   // Turn t > 0 is the first pass of image t, if there is one, and the second of
                   // image t - 1.
                   const int64_t t = piece < firsts ? 0 : 1 + (piece - firsts) / turn;
                   const int64_t i = piece < firsts ? piece : (piece - firsts) % turn;
                   if (t < batch && i < firsts) {
                     run_first(t, i, scratch);
                   } else {
                     run_second(t - 1, t < batch ? i - firsts : i, scratch);
                   }
                 }
               });
}

}  // namespace avskernels
