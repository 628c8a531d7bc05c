// What the computations share: memory, tasks on the caller's threads, parts of even size.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "call.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

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

inline int64_t divide_up(int64_t x, int64_t by) { return x / by + (x % by > 0); }  // by > 0
inline int64_t round_up(int64_t x, int64_t multiple) { return divide_up(x, multiple) * multiple; }

struct Split {  // n things in parts of at most `most`, as even as can be
  int64_t parts, n;
  Split(int64_t n, int64_t most) : parts(divide_up(n, most)), n(n) {}
  int64_t begin(int64_t i) const { return i * n / parts; }
};

// Hands out pieces of one block of memory. With no block it only counts what they take, so the function that
// places things runs twice: once to learn the size, once to place them. A size that overflows becomes one
// nobody has.
class Arena {
 public:
  explicit Arena(char* base = nullptr) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    constexpr int64_t line = 64, most = INT64_MAX / 4;
    char* at = base_ ? base_ + size_ : nullptr;
    const int64_t fits = (most - size_) / static_cast<int64_t>(sizeof(T));
    size_ = count > fits ? most : size_ + round_up(count * static_cast<int64_t>(sizeof(T)), line);
    size_ = std::min(size_, most);
#if defined(__SANITIZE_ADDRESS__)
    if (at)
      ASAN_POISON_MEMORY_REGION(at + count * sizeof(T), base_ + size_ + line - (at + count * sizeof(T)));
    size_ += line;
#endif
    return reinterpret_cast<T*>(at);
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

// Blocks of memory kept between calls, because fresh memory costs a page fault for every few kilobytes. As
// many as threads have worked at once, none larger than kMostKept.
class Pool {
 public:
  struct Block {
    void* memory = nullptr;
    int64_t size = 0;
  };
  Block take(int64_t size) {
    Block block;
    if (lock()) {
      if (count_) block = kept_[--count_];
      unlock();
    }
    if (block.size >= size) return block;
    std::free(block.memory);
    if (static_cast<uint64_t>(size) > SIZE_MAX / 2) return {};
    return {std::malloc(static_cast<size_t>(size)), size};
  }
  void give(Block block) {
    bool kept = false;
    if (block.size <= kMostKept && lock()) {
      kept = count_ < kMostBlocks;
      if (kept) kept_[count_++] = block;
      unlock();
    }
    if (!kept) std::free(block.memory);
  }

 private:
  static constexpr int64_t kMostKept = 16 << 20;
  static constexpr int kMostBlocks = 512;
  // Held for a few instructions. A process forked in between could never take it: then do without.
  bool lock() {
    for (int i = 0; i < 10000; ++i)
      if (!locked_.test_and_set(std::memory_order_acquire)) return true;
    return false;
  }
  void unlock() { locked_.clear(std::memory_order_release); }

  std::atomic_flag locked_ = ATOMIC_FLAG_INIT;
  int count_ = 0;
  Block kept_[kMostBlocks] = {};
};
Pool pool;

// What `Things` places, in memory of the pool: things.place(arena) is called as Arena says.
template <class Things>
class Placed : public Things {
 public:
  explicit Placed(const Things& things) : Things(things) {
    Arena counting;
    Things::place(counting);
    block_ = pool.take(counting.size() + kLine);
    if (!block_.memory) return;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(block_.memory, block_.size);
#endif
    const auto at = reinterpret_cast<uintptr_t>(block_.memory);
    Arena placing(static_cast<char*>(block_.memory) + (kLine - at % kLine) % kLine);
    Things::place(placing);
  }
  ~Placed() {
    if (block_.memory) pool.give(block_);
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;
  bool there() const { return block_.memory; }

 private:
  static constexpr int64_t kLine = 64;
  Pool::Block block_;
};

// Runs work() on at most `wanted` of the caller's threads at once, the calling one among them.
template <class F>
void on_threads(const Call& c, int64_t wanted, const F& work) {
  void* data = const_cast<F*>(&work);
  const int64_t threads = std::min(wanted, c.threads);
  if (threads > 1 && c.parallel_for) {
    c.parallel_for(
        0, threads, 1, [](int64_t, int64_t, void* data) { (*static_cast<const F*>(data))(); }, data);
  } else if (threads > 1) {
    c.gomp_parallel([](void* data) { (*static_cast<const F*>(data))(); }, data,
                    static_cast<unsigned>(threads), 0);
  } else {
    work();
  }
}

// Runs task(i, things) for i in [0, count), in any order, with Things placed once for each thread.
template <class Things, class F>
TapConvStatus run_tasks(const Call& c, int64_t count, const Things& things, const F& task) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    if (next.load(std::memory_order_relaxed) >= count) return;
    Placed<Things> mine(things);
    if (!mine.there()) failed = true;
    for (int64_t i; !failed && (i = next++) < count;) task(i, static_cast<Things&>(mine));
#if defined(__AVX512F__)
    _mm_sfence();  // writes past the cache are ordered by nothing else
#endif
  };
  on_threads(c, count, work);
  work();  // what is left, should the caller's threads have refused
  return failed ? TAP_CONV_NO_MEMORY : TAP_CONV_OK;
}

inline int64_t wanted_tasks(
    const Call& c) {  // some more than threads, so that none waits long for the last one
  return c.threads == 1 ? 1 : 4 * c.threads;
}

// Frames of a task: so many that its packed rows stay in the last-level cache, and that there are tasks
// enough.
inline int64_t frames_of_a_task(const Call& c, int64_t multiple, int64_t bytes_per_frame, int64_t wanted) {
  constexpr int64_t row_bytes = 4 << 20;
  const int64_t len = c.dst_len, others = c.batch * c.groups;
  int64_t most = round_up(std::max<int64_t>(row_bytes / std::max<int64_t>(bytes_per_frame, 1), 1), multiple);
  if (others < wanted) most = std::min(most, round_up(divide_up(len * others, wanted), multiple));
  return divide_up(len, divide_up(len, most));
}

}  // namespace
