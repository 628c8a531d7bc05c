// What the core is asked to compute, and what its parts share: tasks, workspaces, parts of even size.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

struct Rows {  // all P_j in compressed rows: entries pointer[j*(rows+1)+d] .. pointer[j*(rows+1)+d+1] belong to row d
  const int64_t* pointer;
  const int64_t* column;
  const double* value;
  int64_t rows;
};

struct Call {  // mirrored field by field in __init__.py
  int64_t dtype, batch, groups, in_channels, out_channels, taps, kernel_time;  // channels of one group
  int64_t src_rows, src_len, dst_rows, dst_len, stride, spread, dilation, padding;
  const void* src;
  int64_t src_stride[4];  // batch, channel, row, time
  void* dst;              // for grad_weight: the gradient of the output, which is read
  int64_t dst_stride[4];
  void* weight;
  int64_t weight_stride[5];  // group, out, in, tap, time
  void* bias;                // null for none; for grad_weight: its gradient, which is written
  Rows matrix, transposed;
  const int64_t* blend_first;  // per tap: 1 = blend the rows, then convolve; 0 = convolve, then blend
};

namespace {

#if defined(__AVX512F__)
constexpr int kVector = 64;
#elif defined(__AVX2__)
constexpr int kVector = 32;
#else
constexpr int kVector = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;  // 32 vectors, else 16
#else
constexpr bool kManyRegisters = false;
#endif

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

struct Split {  // n things in parts of at most `most`, as even as can be
  int64_t parts, n;
  Split(int64_t n, int64_t most) : parts((n + most - 1) / most), n(n) {}
  int64_t begin(int64_t i) const { return i * n / parts; }
};

template <class T> T* workspace(int slot, size_t count) {  // kept per thread: fresh memory costs page faults
  static thread_local std::array<std::pair<std::unique_ptr<char[]>, size_t>, 4> kept;
  auto& [memory, size] = kept[slot];
  const size_t bytes = count * sizeof(T) + 2 * kVector;
  if (size < bytes) { memory.reset(new char[bytes]); size = bytes; }
  const auto at = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<T*>((at + kVector - 1) / kVector * kVector);
}

template <class F> void run_tasks(int64_t count, const F& task) {  // in any order, on torch's threads
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

inline int64_t wanted_tasks() {  // some more than threads, so that none waits long for the last one
  const int64_t threads = at::get_num_threads();
  return threads == 1 ? 1 : 4 * threads;
}

// Frames of a task: so many that its packed rows stay in the last-level cache, and that there are tasks enough.
inline int64_t frames_of_a_task(const Call& c, int64_t multiple, int64_t bytes_per_frame, int64_t wanted) {
  constexpr int64_t row_bytes = 4 << 20;
  const int64_t len = c.dst_len, others = c.batch * c.groups;
  int64_t most = round_up(std::max<int64_t>(row_bytes / std::max<int64_t>(bytes_per_frame, 1), 1), multiple);
  if (others < wanted) most = std::min(most, round_up((len * others + wanted - 1) / wanted, multiple));
  const int64_t parts = (len + most - 1) / most;
  return (len + parts - 1) / parts;
}

}  // namespace
