// One row of the source, all channels, copied into the cache as the tiles want to read it: zero-padded, strides and
// spreads in time resolved. Two layouts: series (time runs last) and frames (channels run last).
#pragma once
#include <vector>

#include "vectors.h"

namespace {

// Position v of phase r is source time (first + v*step + r) / spread, and zero where there is none.
struct Packing {
  int64_t channels, channel_stride, time_stride, source_length, first, step, spread, length;
  template <class S> const S* frame(const S* src, int64_t time) const {  // null where there is none
    if (spread == 1) return time >= 0 && time < source_length ? src + time * time_stride : nullptr;
    return time >= 0 && time % spread == 0 && time / spread < source_length ? src + time / spread * time_stride : nullptr;
  }
};

// To series: [channel / pair][phase][length][pair].
template <class T, class S> void pack_series(const Packing& p, const S* src, typename T::Store* dst) {
  using Store = typename T::Store;
  constexpr int pair = T::pair;
  const int64_t units = (p.channels + pair - 1) / pair;
  if (p.step != 1 || p.spread != 1) {
    std::fill_n(dst, units * p.step * p.length * pair, Store(0));
    for (int64_t c = 0; c < p.channels; ++c) for (int64_t r = 0; r < p.step; ++r) for (int64_t v = 0; v < p.length; ++v)
      if (const S* at = p.frame(src, p.first + v * p.step + r))
        dst[((c / pair * p.step + r) * p.length + v) * pair + c % pair] = T::store(at[c * p.channel_stride]);
    return;
  }
  const int64_t begin = std::clamp<int64_t>(-p.first, 0, p.length);
  const int64_t n = std::clamp<int64_t>(p.source_length - p.first, begin, p.length) - begin;
  for (int64_t u = 0; u < units; ++u) {
    std::fill_n(dst + u * p.length * pair, begin * pair, Store(0));
    std::fill_n(dst + (u * p.length + begin + n) * pair, (p.length - begin - n) * pair, Store(0));
  }
  src += (p.first + begin) * p.time_stride;
  dst += begin * pair;
  if (p.time_stride == 1) {
    typedef uint32_t Two __attribute__((may_alias));
    for (int64_t u = 0; u < units; ++u) {
      const S* a = src + u * pair * p.channel_stride;
      Store* to = dst + u * p.length * pair;
      if constexpr (pair == 1) {
        for (int64_t v = 0; v < n; ++v) to[v] = T::store(a[v]);
      } else {
        const S* b = a + p.channel_stride;
        if (2 * u + 1 < p.channels)
          for (int64_t v = 0; v < n; ++v) reinterpret_cast<Two*>(to)[v] = T::store(a[v]) | uint32_t(T::store(b[v])) << 16;
        else
          for (int64_t v = 0; v < n; ++v) reinterpret_cast<Two*>(to)[v] = T::store(a[v]);
      }
    }
    return;
  }
  int64_t fast = 0;  // channels copied by transposing in registers
  if constexpr (sizeof(S) == sizeof(Store)) {
    if (p.channel_stride == 1 && p.time_stride % pair == 0) {
      using Unit = typename T::Unit;
      fast = p.channels / pair;
      frames_to_series(reinterpret_cast<const Unit*>(src), p.time_stride / pair, fast, n, dst, p.length * sizeof(Unit));
      fast *= pair;
    }
  }
  if (p.channels % pair) std::fill_n(dst + (units - 1) * p.length * pair, n * pair, Store(0));
  for (int64_t c = fast; c < p.channels; ++c) for (int64_t v = 0; v < n; ++v)
    dst[(c / pair * p.length + v) * pair + c % pair] = T::store(src[v * p.time_stride + c * p.channel_stride]);
}

// To frames: [length][width], channels beyond the last one zero.
template <class T, class S> void pack_frames(const Packing& p, const S* src, typename T::Store* dst, int64_t width) {
  using Store = typename T::Store;
  if constexpr (sizeof(S) == sizeof(Store)) {
    const int64_t begin = std::clamp<int64_t>(-p.first, 0, p.length);
    const int64_t n = std::clamp<int64_t>(p.source_length - p.first, begin, p.length) - begin;
    const bool whole = p.channel_stride == 1 && p.channels == width && p.time_stride == width;
    if (p.spread == 1 && (whole || (T::pair == 1 && p.time_stride == 1 && p.channel_stride != 1))) {
      using Unit = typename T::Unit;
      std::fill_n(dst, begin * width, Store(0));
      std::fill_n(dst + (begin + n) * width, (p.length - begin - n) * width, Store(0));
      src += (p.first + begin) * p.time_stride;
      dst += begin * width;
      if (whole) {
        std::memcpy(dst, src, n * width * sizeof(S));
      } else {
        if (width > p.channels) std::fill_n(dst, n * width, Store(0));
        series_to_frames(src, p.channel_stride * sizeof(S), p.channels, n, reinterpret_cast<Unit*>(dst), width);
      }
      return;
    }
  }
  for (int64_t v = 0; v < p.length; ++v, dst += width) {
    const S* at = p.frame(src, p.first + v);
    int64_t c = 0;
    if (at && p.channel_stride == 1) for (; c < p.channels; ++c) dst[c] = T::store(at[c]);
    else if (at) for (; c < p.channels; ++c) dst[c] = T::store(at[c * p.channel_stride]);
    std::fill_n(dst + c, width - c, Store(0));
  }
}

// To frames of pairs in time: [length][width] of what is at first + v*every and at `ahead` frames after that.
template <class T, class S>
void pack_pairs(const Packing& p, const S* src, typename T::Store* dst, int64_t width, int64_t every, int64_t ahead) {
  static_assert(T::pair == 2 && sizeof(S) == sizeof(typename T::Store));
  typedef uint32_t Two __attribute__((may_alias));
  Two* to = reinterpret_cast<Two*>(dst);
  int64_t begin = p.length, end = p.length;  // of what is copied by transposing in registers
  if (p.time_stride == 1 && p.channel_stride != 1 && ahead == 1) {
    begin = std::clamp<int64_t>((-p.first + every - 1) / every, 0, p.length);
    end = std::clamp<int64_t>((p.source_length - 1 - p.first + every - 1) / every, begin, p.length);
    if (width > p.channels) std::fill_n(to + begin * width, (end - begin) * width, 0);
    for (int64_t odd = 0; odd < 3 - every; ++odd)  // pairs that overlap are two series of pairs that do not
      series_to_frames(src + p.first + begin * every + odd, p.channel_stride * sizeof(S), p.channels,
                       every == 2 ? end - begin : (end - begin + 1 - odd) / 2, to + (begin + odd) * width,
                       every == 2 ? width : 2 * width);
  }
  for (int64_t v = 0; v < p.length; ++v) {
    if (v >= begin && v < end) continue;
    const S* a = p.frame(src, p.first + v * every);
    const S* b = p.frame(src, p.first + v * every + ahead);
    Two* at = to + v * width;
    const int64_t n = p.channels, s = p.channel_stride;
    const auto bits = [](S x) { return uint32_t(T::store(x)); };
    int64_t c = 0;
    if (a && b && s == 1) for (; c + T::lanes <= n; c += T::lanes) T::interleave(a + c, b + c, at + c);
    for (; c < n; ++c) at[c] = (a ? bits(a[c * s]) : 0) | (b ? bits(b[c * s]) << 16 : 0);
    std::fill_n(at + n, width - n, 0);
  }
}

template <class Store> struct Entry { const Store* row; double value; };

template <class T>  // dst = sum of value * row; rows may be read and written up to the next whole vector
void blend(const std::vector<Entry<typename T::Store>>& entries, int64_t count, typename T::Store* dst) {
  using Acc = typename T::Acc;
  if (entries.size() == 2) {  // nearly always
    const Acc a = static_cast<Acc>(entries[0].value), b = static_cast<Acc>(entries[1].value);
    for (int64_t i = 0; i < count; i += T::lanes)
      T::narrow(dst + i, a * T::widen(entries[0].row + i) + b * T::widen(entries[1].row + i));
    return;
  }
  for (int64_t i = 0; i < count; i += T::lanes) {
    typename T::V sum{};
    for (const auto& e : entries) sum += static_cast<Acc>(e.value) * T::widen(e.row + i);
    T::narrow(dst + i, sum);
  }
}

}  // namespace
