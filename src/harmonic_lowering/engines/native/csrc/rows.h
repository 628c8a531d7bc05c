// One row of the source, all channels, copied into the cache as the tiles want to read it: zero-padded,
// strides and dilations in time resolved. Two layouts: series (time runs last) and frames (channels run
// last).
#pragma once
#include "vectors.h"

namespace {

// What a packed row holds: the frames that `block` frames of the result read, and no others. Kernel column k
// reads time t*stride + k*dilation - padding for frame t of the result: position t + k*dilation/stride of the
// phase k*dilation%stride. Columns of one phase share a run of positions where they read the same ones; a
// long dilation gives each column a run of its own, and of a long stride only the phases that are read are
// packed.
struct Columns {
  struct Run {
    int64_t time, position, begin,
        length;  // time and position of its first frame for t = 0; place in the packed row
  };
  Run* runs;
  int64_t* at;             // per kernel column: the place that frame 0 reads
  int64_t n_runs, length;  // of the packed row

  static int64_t period(const Call& c) {  // kernel columns k and k + period are of one phase
    int64_t a = c.stride, b = c.dilation;
    while (b) a = std::exchange(b, a % b);
    return c.stride / a;
  }
  static int64_t phases(const Call& c) { return std::min(c.kernel_time, period(c)); }

  void place(Arena& arena, const Call& c) {
    runs = arena.take<Run>(c.kernel_time);
    at = arena.take<int64_t>(c.kernel_time);
  }
  void find(const Call& c, int64_t block, int64_t multiple) {
    const int64_t step = period(c);
    const auto position = [&](int64_t k) { return k * c.dilation / c.stride; };
    n_runs = length = 0;
    for (int64_t k = 0; k < c.kernel_time; ++k) {  // `at` is the number of the run at first
      if (k >= step && position(k) <= position(k - step) + block) {
        at[k] = at[k - step];
        runs[at[k]].length += position(k) - position(k - step);
      } else {
        at[k] = n_runs;
        runs[n_runs++] = {k * c.dilation, position(k), 0, block};
      }
    }
    for (int64_t i = 0; i < n_runs; ++i) {
      runs[i].begin = length;
      length += round_up(runs[i].length, multiple);
    }
    for (int64_t k = 0; k < c.kernel_time; ++k)
      at[k] = runs[at[k]].begin + position(k) - runs[at[k]].position;
  }
};

// Frames of a source to copy: `count` of them, the first one at `from`, lie `step` apart there and `gap`
// apart, from `to` on, in a stretch of `length` which is zero elsewhere.
struct Stretch {
  int64_t from, step, to, gap, count, length;

  static Stretch of_run(const Call& c, const Columns::Run& run, int64_t t0) {
    const int64_t time =
        t0 * c.stride - c.padding + run.time;  // of position 0; the next ones are `stride` apart
    Stretch s{0, c.stride, 0, c.input_dilation, 0, run.length};
    if (c.input_dilation == 1) {
      s.to = std::min(time < 0 ? divide_up(-time, c.stride) : 0, run.length);
      s.from = time + s.to * c.stride;
      if (s.from < c.src_len) s.count = std::min(divide_up(c.src_len - s.from, c.stride), run.length - s.to);
    } else {  // and stride is 1
      s.from = time > 0 ? divide_up(time, c.input_dilation) : 0;
      s.to = s.from * c.input_dilation - time;
      const int64_t fit = s.to < run.length ? divide_up(run.length - s.to, c.input_dilation) : 0;
      s.count = std::clamp<int64_t>(c.src_len - s.from, 0, fit);
    }
    return s;
  }
};

template <class S>
struct Source {  // a row of the caller's tensor
  const S* data;
  int64_t channels, channel_stride, time_stride;

  const S* frame(int64_t i) const { return data + i * time_stride; }
  Source from(const Stretch& s) const {
    return {frame(s.count ? s.from : 0), channels, channel_stride, time_stride * s.step};
  }
};

// To series: [channel / pair][time][pair], channels `pitch` frames apart.
template <class T, class S>
void pack_series(const Stretch& s, const Source<S>& row, typename T::Store* dst, int64_t pitch) {
  using Store = typename T::Store;
  constexpr int pair = T::pair;
  const Source<S> source = row.from(s);
  const int64_t units = divide_up(source.channels, pair), n = s.count;
  const int64_t end = s.gap == 1 ? s.to + n : s.length, begin = s.gap == 1 ? s.to : s.length;
  for (int64_t u = 0; u < units; ++u) {
    std::fill_n(dst + u * pitch * pair, begin * pair, Store(0));
    std::fill_n(dst + (u * pitch + end) * pair, (s.length - end) * pair, Store(0));
  }
  if (!n) return;
  dst += s.to * pair;
  const auto copy = [&](int64_t c, int64_t gap) {
    const S* at = source.data + c * source.channel_stride;
    Store* to = dst + c / pair * pitch * pair + c % pair;
    for (int64_t v = 0; v < n; ++v) to[v * gap * pair] = T::store(at[v * source.time_stride]);
  };
  if (s.gap != 1) {
    for (int64_t c = 0; c < source.channels; ++c) copy(c, s.gap);
    return;
  }
  if (source.time_stride == 1) {
    typedef uint32_t Two __attribute__((may_alias));
    for (int64_t u = 0; u < units; ++u) {
      const S* a = source.data + u * pair * source.channel_stride;
      Store* to = dst + u * pitch * pair;
      if constexpr (pair == 1) {
        for (int64_t v = 0; v < n; ++v) to[v] = T::store(a[v]);
      } else {
        const S* b = a + source.channel_stride;
        if (2 * u + 1 < source.channels)
          for (int64_t v = 0; v < n; ++v)
            reinterpret_cast<Two*>(to)[v] = T::store(a[v]) | uint32_t(T::store(b[v])) << 16;
        else
          for (int64_t v = 0; v < n; ++v) reinterpret_cast<Two*>(to)[v] = T::store(a[v]);
      }
    }
    return;
  }
  int64_t fast = 0;  // channels copied by transposing in registers
  if constexpr (sizeof(S) == sizeof(Store)) {
    if (source.channel_stride == 1 && source.time_stride % pair == 0) {
      using Unit = typename T::Unit;
      fast = source.channels / pair;
      frames_to_series(reinterpret_cast<const Unit*>(source.data), source.time_stride / pair, fast, n, dst,
                       pitch * sizeof(Unit));
      fast *= pair;
    }
  }
  if (source.channels % pair) std::fill_n(dst + (units - 1) * pitch * pair, n * pair, Store(0));
  for (int64_t c = fast; c < source.channels; ++c) copy(c, 1);
}

// To frames: [time][width], channels beyond the last one zero.
template <class T, class S>
void pack_frames(const Stretch& s, const Source<S>& row, typename T::Store* dst, int64_t width) {
  using Store = typename T::Store;
  const Source<S> source = row.from(s);
  const int64_t n = s.count, channels = source.channels;
  if (s.gap != 1) {
    std::fill_n(dst, s.length * width, Store(0));
  } else {
    std::fill_n(dst, s.to * width, Store(0));
    std::fill_n(dst + (s.to + n) * width, (s.length - s.to - n) * width, Store(0));
  }
  dst += s.to * width;
  if constexpr (sizeof(S) == sizeof(Store)) {
    if (s.gap == 1 && source.channel_stride == 1 && channels == width && source.time_stride == width) {
      std::memcpy(dst, source.data, n * width * sizeof(S));
      return;
    }
    if (s.gap == 1 && T::pair == 1 && source.time_stride == 1 && source.channel_stride != 1) {
      if (width > channels) std::fill_n(dst, n * width, Store(0));
      series_to_frames(source.data, source.channel_stride * sizeof(S), channels, n,
                       reinterpret_cast<typename T::Unit*>(dst), width);
      return;
    }
  }
  for (int64_t v = 0; v < n; ++v, dst += s.gap * width) {
    const S* at = source.frame(v);
    if (source.channel_stride == 1)
      for (int64_t c = 0; c < channels; ++c) dst[c] = T::store(at[c]);
    else
      for (int64_t c = 0; c < channels; ++c) dst[c] = T::store(at[c * source.channel_stride]);
    std::fill_n(dst + channels, width - channels, Store(0));
  }
}

// To frames of pairs in time: [place][width] of what lies at place*every and right after it.
template <class T, class S>
void pack_pairs(const Stretch& s, const Source<S>& row, typename T::Store* dst, int64_t width,
                int64_t every) {
  static_assert(T::pair == 2 && sizeof(S) == sizeof(typename T::Store));
  typedef uint32_t Two __attribute__((may_alias));
  Two* to = reinterpret_cast<Two*>(dst);
  const Source<S> source = row.from(s);
  const int64_t channels = source.channels, stride = source.channel_stride,
                length = divide_up(s.length, every);
  int64_t begin = length, end = length;  // of what is copied by transposing in registers
  if (source.time_stride == 1 && stride != 1) {
    begin = std::min(divide_up(s.to, every), length);
    end = std::clamp(divide_up(s.to + s.count - 1, every), begin, length);
    if (width > channels) std::fill_n(to + begin * width, (end - begin) * width, 0);
    for (int64_t odd = 0; odd < 3 - every; ++odd)  // pairs that overlap are two series of pairs that do not
      series_to_frames(source.data + begin * every - s.to + odd, stride * sizeof(S), channels,
                       every == 2 ? end - begin : (end - begin + 1 - odd) / 2, to + (begin + odd) * width,
                       every == 2 ? width : 2 * width);
  }
  const auto frame = [&](int64_t place) {  // null where there is none
    return place >= s.to && place < s.to + s.count ? source.frame(place - s.to) : nullptr;
  };
  const auto bits = [](S x) { return uint32_t(T::store(x)); };
  for (int64_t v = 0; v < length; ++v) {
    if (v >= begin && v < end) continue;
    const S* a = frame(v * every);
    const S* b = frame(v * every + 1);
    Two* at = to + v * width;
    int64_t c = 0;
    if (a && b && stride == 1)
      for (; c + T::lanes <= channels; c += T::lanes) T::interleave(a + c, b + c, at + c);
    for (; c < channels; ++c) at[c] = (a ? bits(a[c * stride]) : 0) | (b ? bits(b[c * stride]) << 16 : 0);
    std::fill_n(at + channels, width - channels, 0);
  }
}

template <class Store>
struct Entry {
  const Store* row;
  double value;
};

template <class T>  // dst = sum of value * row; rows may be read and written up to the next whole vector
void blend(const Entry<typename T::Store>* entries, int64_t n, int64_t count, typename T::Store* dst) {
  using Acc = typename T::Acc;
  if (n == 2) {  // nearly always
    const Acc a = static_cast<Acc>(entries[0].value), b = static_cast<Acc>(entries[1].value);
    for (int64_t i = 0; i < count; i += T::lanes)
      T::narrow(dst + i, a * T::widen(entries[0].row + i) + b * T::widen(entries[1].row + i));
    return;
  }
  for (int64_t i = 0; i < count; i += T::lanes) {
    typename T::V sum{};
    for (int64_t e = 0; e < n; ++e) sum += static_cast<Acc>(entries[e].value) * T::widen(entries[e].row + i);
    T::narrow(dst + i, sum);
  }
}

// The entries of one row of one matrix.
struct Span {
  int64_t begin, end;
  Span(const Rows& m, int64_t tap, int64_t row)
      : begin(m.pointer[tap * (m.rows + 1) + row]), end(m.pointer[tap * (m.rows + 1) + row + 1]) {}
  int64_t size() const { return end - begin; }
  bool is_copy(const Rows& m) const { return size() == 1 && m.value[begin] == 1; }  // needs no blending
};
inline int64_t most_entries(const Rows& m, int64_t taps) {
  int64_t most = 0;
  for (int64_t j = 0; j < taps; ++j)
    for (int64_t row = 0; row < m.rows; ++row) most = std::max(most, Span(m, j, row).size());
  return most;
}

}  // namespace
