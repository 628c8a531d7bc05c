// The output (the formula is in tap_conv.cpp) and, with transposed matrices and the flipped kernel, the
// input's gradient. Two layouts of rows and register tiles, for the two memory formats of tensors; what
// apply() does with either is the same.
#pragma once
#include "rows.h"

namespace {

template <class T>
struct Live {  // a row to be convolved
  const typename T::Store* row;
  int64_t tap;
};
template <class T>
struct Mix {  // a row already convolved
  const typename T::Acc* row;
  typename T::Acc value;
};

// A row of the result in the caller's tensor.
template <class S>
struct Target {
  S* dst;
  int64_t channel_stride, time_stride;
};

enum class Write { kSums, kResult, kResultPastCache };

// What a tile of registers computes: the sum over taps, channels and kernel columns for a few channels and
// frames.
template <class T>
struct TileArguments {
  struct Tap {
    const typename T::Store* row;
    const typename T::Store* weight;
  };
  const Tap* taps;
  int64_t n_taps;
  const int64_t* offsets;    // into a row: Series, per channel and kernel column; Frames, per kernel column
  int64_t n_offsets, width;  // width: of a packed frame (Frames)
  const Mix<T>* mixes;
  int64_t n_mixes, mix_stride;  // from channel to channel (Series), frame to frame (Frames)
  const typename T::Acc* bias;
  void* dst;
  int64_t dst_stride;
  Write write;
};

// Channels apart, time running last: a tile is M output channels by N vectors of time. Every (channel, kernel
// column) is an offset into a row, and nothing is gathered or unfolded.
template <class T>
struct SeriesTile {
  using Arguments = TileArguments<T>;
  static constexpr int most_channels = kManyRegisters ? 8 : 4, most_frames = 3;  // the latter in vectors

  template <int M, int N>
  static void run(const Arguments& a) {
    using V = typename T::V;
    V acc[M][N];
    UNROLLED_FOR (m, M)
      UNROLLED_FOR (n, N) acc[m][n] = a.bias ? a.bias[m] - V{} : V{};
    for (int64_t i = 0; i < a.n_mixes; ++i)
      UNROLLED_FOR (m, M)
        UNROLLED_FOR (n, N)
          acc[m][n] += a.mixes[i].value * load<V>(a.mixes[i].row + m * a.mix_stride + n * T::lanes);
    for (int64_t j = 0; j < a.n_taps; ++j) {
      const auto* w = a.taps[j].weight;  // [offset][M][pair]
      for (int64_t q = 0; q < a.n_offsets; ++q, w += M * T::pair) {
        const auto* x = a.taps[j].row + a.offsets[q];
        decltype(T::read(x)) xs[N];
        UNROLLED_FOR (n, N) xs[n] = T::read(x + n * T::lanes * T::pair);
        UNROLLED_FOR (m, M) {
          const auto wm = T::broadcast(w + m * T::pair);
          UNROLLED_FOR (n, N) acc[m][n] = T::madd(acc[m][n], wm, xs[n]);
        }
      }
    }
    auto* dst = static_cast<typename T::Acc*>(a.dst);
    UNROLLED_FOR (m, M)
      UNROLLED_FOR (n, N) std::memcpy(dst + m * a.dst_stride + n * T::lanes, &acc[m][n], sizeof(V));
  }
};

// Channels side by side: a tile is N frames by M vectors of output channels, which are written where they
// belong.
template <class T>
struct FramesTile {
  using Arguments = TileArguments<T>;
  static constexpr int most_channels = 2, most_frames = kManyRegisters ? 12 : 5;  // the former in vectors

  template <int M, int N>
  static void run(const Arguments& a) {
    using V = typename T::V;
    V acc[N][M];
    UNROLLED_FOR (n, N)
      UNROLLED_FOR (m, M) acc[n][m] = a.bias ? load<V>(a.bias + m * T::lanes) : V{};
    for (int64_t i = 0; i < a.n_mixes; ++i)
      UNROLLED_FOR (n, N)
        UNROLLED_FOR (m, M)
          acc[n][m] += a.mixes[i].value * load<V>(a.mixes[i].row + n * a.mix_stride + m * T::lanes);
    const int64_t width = a.width, third = 3 * width;
    for (int64_t j = 0; j < a.n_taps; ++j) {
      const auto* w = a.taps[j].weight;  // [kernel column][channel / pair][M vectors][pair]
      for (int64_t k = 0; k < a.n_offsets; ++k) {
        const auto* x = a.taps[j].row + a.offsets[k];
        for (const auto* end = x + width; x != end; x += T::pair, w += M * T::lanes * T::pair) {
          decltype(T::read(w)) ws[M];
          UNROLLED_FOR (m, M) ws[m] = T::read(w + m * T::lanes * T::pair);
          UNROLLED_FOR (n, N) {
            const auto xn = T::broadcast(x + n / 3 * third + n % 3 * width);
            UNROLLED_FOR (m, M) acc[n][m] = T::madd(acc[n][m], ws[m], xn);
          }
        }
      }
    }
    UNROLLED_FOR (n, N)
      UNROLLED_FOR (m, M) {
        const int64_t at = n * a.dst_stride + m * T::lanes;
        auto* result = static_cast<typename T::Store*>(a.dst) + at;
        if (a.write == Write::kSums)
          std::memcpy(static_cast<typename T::Acc*>(a.dst) + at, &acc[n][m], sizeof(V));
        else if (a.write == Write::kResult)
          T::narrow(result, acc[n][m]);
        else
          write_past_cache<T>(result, acc[n][m]);
      }
  }
};

template <class S>
int64_t result_bytes(const Call& c) {
  return c.batch * c.groups * c.out_channels * c.dst_rows * c.dst_len * sizeof(S);
}

// Whether no cache will hold a result until it is read, and it is written in whole lines: `run` elements side
// by side, the next ones `across` further.
template <class S>
bool goes_past_cache(const Call& c, int64_t across, int64_t run) {
  constexpr int64_t most_in_cache = 12 << 20, line = 64 / sizeof(S);
  return result_bytes<S>(c) > most_in_cache && reinterpret_cast<uintptr_t>(c.dst) % 64 == 0 &&
         c.dst_stride[0] % line == 0 && c.dst_stride[2] % line == 0 && across % line == 0 && run % line == 0;
}

// Layouts: the geometry of rows, packing them and the weights, writing the result. Tiles count channels in
// `channel_unit`s and frames in `frame_unit`s; frames lie `row_frame` apart in a row, output channels
// `weight_channel` in the packed weights; at() is where a channel and frame lie in a result whose longer
// stride is given.

template <class T, class S>
struct Series {
  using Scalar = S;
  using Type = T;
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  using Tile = SeriesTile<T>;
  static constexpr int pair = T::pair, lanes = T::lanes;
  static constexpr int channel_unit = 1, frame_unit = lanes;
  const Call& c;
  const int64_t units, block;  // channels in pairs; frames of a task
  const int64_t n_offsets, width = 0, row_frame = pair, weight_channel, sums_stride, sums_size, bias_size;
  int64_t* offsets = nullptr;
  int64_t row_size = 0;
  Columns columns{};

  explicit Series(const Call& c)
      : c(c),
        units(divide_up(c.in_channels, pair)),
        block(round_up(
            frames_of_a_task(c, Tile::most_frames * lanes,
                             units * Columns::phases(c) * pair * sizeof(Store) * c.src_rows, wanted_tasks(c)),
            lanes)),
        n_offsets(units * c.kernel_time),
        weight_channel(n_offsets * pair),
        sums_stride(block),
        sums_size(c.out_channels * block),
        bias_size(c.out_channels) {}
  void place(Arena& arena) {
    columns.place(arena, c);
    offsets = arena.take<int64_t>(n_offsets);
  }
  void find_offsets() {
    columns.find(c, block, lanes);
    row_size = units * columns.length * pair;
    for (int64_t i = 0; i < units; ++i)
      for (int64_t k = 0; k < c.kernel_time; ++k)
        offsets[i * c.kernel_time + k] = (i * columns.length + columns.at[k]) * pair;
  }
  static int64_t at(int64_t channel, int64_t frame, int64_t stride) { return channel * stride + frame; }

  // [channel block][offset][channel][pair], zero before
  void pack_weights(const S* from, Store* to) const {
    const Split channels(c.out_channels, Tile::most_channels);
    for (int64_t ob = 0; ob < channels.parts; ++ob) {
      const int64_t begin = channels.begin(ob), m = channels.begin(ob + 1) - begin;
      for (int64_t i = 0; i < c.in_channels; ++i)
        for (int64_t k = 0; k < c.kernel_time; ++k)
          for (int64_t o = 0; o < m; ++o)
            to[((i / pair * c.kernel_time + k) * m + o) * pair + i % pair] = T::store(
                from[(begin + o) * c.weight_stride[1] + i * c.weight_stride[2] + k * c.weight_stride[4]]);
      to += m * weight_channel;
    }
  }
  void pack(const Source<S>& row, int64_t t0, Store* to) const {
    for (int64_t i = 0; i < columns.n_runs; ++i)
      pack_series<T>(Stretch::of_run(c, columns.runs[i], t0), row, to + columns.runs[i].begin * pair,
                     columns.length);
  }
  bool writes_results() const {
    return false;
  }  // tiles write sums, which write() takes to the caller's tensor
  bool past_cache() const { return c.dst_stride[3] == 1 && goes_past_cache<S>(c, c.dst_stride[1], block); }
  void write(const Acc* sums, int64_t here, bool past_cache, const Target<S>& to) const {
    if (to.time_stride == 1) {
      for (int64_t o = 0; o < c.out_channels; ++o, sums += block) {
        S* at = to.dst + o * to.channel_stride;
        int64_t t = 0;
        if constexpr (sizeof(S) == sizeof(Store))
          for (; t + lanes <= here; t += lanes) {
            const auto v = load<typename T::V>(sums + t);
            if (past_cache)
              write_past_cache<T>(reinterpret_cast<Store*>(at + t), v);
            else
              T::narrow(reinterpret_cast<Store*>(at + t), v);
          }
        for (; t < here; ++t) at[t] = static_cast<S>(sums[t]);
      }
      return;
    }
    if constexpr (std::is_same_v<S, Acc>) {
      if (to.channel_stride == 1)
        return series_to_frames(sums, block * sizeof(Acc), c.out_channels, here,
                                reinterpret_cast<typename T::Unit*>(to.dst), to.time_stride);
    }
    for (int64_t t = 0; t < here; ++t)
      for (int64_t o = 0; o < c.out_channels; ++o)
        to.dst[t * to.time_stride + o * to.channel_stride] = static_cast<S>(sums[o * block + t]);
  }
};

template <class T, class S>
struct Frames {
  using Scalar = S;
  using Type = T;
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  using Tile = FramesTile<T>;
  static constexpr int pair = T::pair, lanes = T::lanes;
  static constexpr int channel_unit = lanes, frame_unit = 1;
  const Call& c;
  const int64_t width, padded;  // of a packed frame; output channels in whole vectors
  const int64_t block, n_offsets, row_frame, weight_channel, sums_stride, sums_size, bias_size;
  int64_t* offsets = nullptr;
  int64_t row_size = 0;
  Columns columns{};

  static bool fits(const Call& c) {
    return (c.src_stride[1] == 1 || c.in_channels == 1) && c.dst_stride[1] == 1 && 2 * c.out_channels > lanes;
  }
  explicit Frames(const Call& c)
      : c(c),
        width(round_up(c.in_channels, pair)),
        padded(round_up(c.out_channels, lanes)),
        block(frames_of_a_task(c, 2 * Tile::most_frames,
                               width * sizeof(Store) * c.src_rows * Columns::phases(c), wanted_tasks(c))),
        n_offsets(c.kernel_time),
        row_frame(width),
        weight_channel(c.kernel_time * width),
        sums_stride(padded),
        sums_size(padded * block),
        bias_size(padded) {}
  void place(Arena& arena) {
    columns.place(arena, c);
    offsets = arena.take<int64_t>(n_offsets);
  }
  void find_offsets() {
    columns.find(c, block, 1);
    row_size = round_up(columns.length * width, kVector / sizeof(Store));
    for (int64_t k = 0; k < c.kernel_time; ++k) offsets[k] = columns.at[k] * width;
  }
  static int64_t at(int64_t channel, int64_t frame, int64_t stride) { return frame * stride + channel; }

  // [channel block][kernel column][channel / pair][output channel][pair], zero before
  void pack_weights(const S* from, Store* to) const {
    const Split vectors(padded / lanes, Tile::most_channels);
    for (int64_t ob = 0; ob < vectors.parts; ++ob) {
      const int64_t begin = vectors.begin(ob) * lanes, m = vectors.begin(ob + 1) * lanes - begin;
      for (int64_t k = 0; k < c.kernel_time; ++k)
        for (int64_t i = 0; i < c.in_channels; ++i)
          for (int64_t o = 0; o < std::min(m, c.out_channels - begin); ++o)
            to[((k * width + i / pair * pair) * m) + o * pair + i % pair] = T::store(
                from[(begin + o) * c.weight_stride[1] + i * c.weight_stride[2] + k * c.weight_stride[4]]);
      to += m * weight_channel;
    }
  }
  void pack(const Source<S>& row, int64_t t0, Store* to) const {
    for (int64_t i = 0; i < columns.n_runs; ++i)
      pack_frames<T>(Stretch::of_run(c, columns.runs[i], t0), row, to + columns.runs[i].begin * width, width);
  }
  bool writes_results() const { return sizeof(S) == sizeof(Store) && c.out_channels == padded; }
  bool past_cache() const { return goes_past_cache<S>(c, c.dst_stride[3], c.out_channels); }
  void write(const Acc* sums, int64_t here, bool, const Target<S>& to) const {
    for (int64_t t = 0; t < here; ++t)
      for (int64_t o = 0; o < c.out_channels; ++o)
        to.dst[t * to.time_stride + o] = static_cast<S>(sums[t * padded + o]);
  }
};

// What one call computes with, and what one thread does. Memory is placed as Arena says.

template <class Layout>
struct CallMemory {
  Layout layout;
  typename Layout::Store* weights;

  void place(Arena& arena) {
    const Call& c = layout.c;
    layout.place(arena);
    weights = arena.take<typename Layout::Store>(c.groups * c.taps * tap_size());
  }
  // In units of whole channel blocks.
  int64_t tap_size() const {
    return round_up(layout.c.out_channels, Layout::channel_unit) * layout.weight_channel;
  }
  void pack_weights() {
    using S = typename Layout::Scalar;
    const Call& c = layout.c;
    std::fill_n(weights, c.groups * c.taps * tap_size(), typename Layout::Store(0));
    for (int64_t g = 0; g < c.groups; ++g)
      for (int64_t j = 0; j < c.taps; ++j)
        layout.pack_weights(static_cast<const S*>(c.weight) + g * c.weight_stride[0] + j * c.weight_stride[3],
                            weights + (g * c.taps + j) * tap_size());
  }
};

// One thread's computing of one task after another: a batch item, a group and a stretch of time.
template <class Layout>
class Worker {
 public:
  using S = typename Layout::Scalar;
  using T = typename Layout::Type;
  using Store = typename T::Store;
  using Acc = typename T::Acc;

  explicit Worker(const CallMemory<Layout>& call)
      : c(call.layout.c),
        layout(call.layout),
        weights(call.weights),
        tap_size(call.tap_size()),
        entries_size(most_entries(c.matrix, c.taps)) {
    for (int64_t j = 0; j < c.taps; ++j)
      for (int64_t d = 0; d < c.matrix.rows && !c.blend_first[j]; ++d) {
        const Span span(c.matrix, j, d);
        if (span.size())
          slots = std::max(slots, c.matrix.column[span.end - 1] - c.matrix.column[span.begin] + 1);
      }
    past_cache = layout.past_cache();
  }
  void place(Arena& arena) {
    rows = arena.take<Store>(c.src_rows * layout.row_size + slack);
    packed = arena.take<char>(c.src_rows);
    blended = arena.take<Store>(c.taps * layout.row_size + slack);
    convolved = arena.take<Acc>(c.taps * slots * layout.sums_size);
    convolved_row = arena.take<int64_t>(c.taps * slots);
    sums = arena.take<Acc>(layout.sums_size);
    bias = arena.take<Acc>(layout.bias_size);
    entries = arena.take<Entry<Store>>(entries_size);
    live = arena.take<Live<T>>(c.taps);
    mixes = arena.take<Mix<T>>(c.taps * entries_size);
    tile_taps = arena.take<typename TileArguments<T>::Tap>(c.taps);
    tile_mixes = arena.take<Mix<T>>(c.taps * entries_size);
  }
  void run(int64_t task) {
    const int64_t blocks = divide_up(c.dst_len, layout.block), g = task / blocks % c.groups;
    start(task / (c.groups * blocks), g, task % blocks * layout.block);
    S* dst = static_cast<S*>(c.dst) + task / (c.groups * blocks) * c.dst_stride[0] +
             g * c.out_channels * c.dst_stride[1] + t0 * c.dst_stride[3];
    for (int64_t d = 0; d < c.dst_rows; ++d) {
      read(d);
      finish({dst + d * c.dst_stride[2], c.dst_stride[1], c.dst_stride[3]});
    }
  }

 private:
  static constexpr int64_t slack =
      SeriesTile<T>::most_frames * T::lanes * T::pair;  // tiles read whole vectors
  const Call& c;
  const Layout& layout;
  const Store* weights;
  const int64_t tap_size, entries_size;
  int64_t slots = 1;  // rows that a convolve-first tap keeps: the most that one bin reads
  bool past_cache;

  Store *rows, *blended;
  char* packed;
  Acc *convolved, *sums, *bias;
  int64_t* convolved_row;
  Entry<Store>* entries;
  Live<T>* live;
  Mix<T>*mixes, *tile_mixes;
  typename TileArguments<T>::Tap* tile_taps;

  const S* src;  // of the task
  const Store* weight;
  int64_t t0, here, n_live, n_mixes;

  void start(int64_t b, int64_t g, int64_t first) {
    t0 = first;
    here = std::min(layout.block, c.dst_len - t0);
    src = static_cast<const S*>(c.src) + b * c.src_stride[0] + g * c.in_channels * c.src_stride[1];
    weight = weights + g * c.taps * tap_size;
    std::fill_n(bias, layout.bias_size, Acc(0));
    if (c.bias)
      for (int64_t o = 0; o < c.out_channels; ++o)
        bias[o] = static_cast<Acc>(static_cast<const S*>(c.bias)[g * c.out_channels + o]);
    std::fill_n(packed, c.src_rows, 0);
    std::fill_n(convolved_row, c.taps * slots, -1);
  }
  const Store* row(int64_t s) {
    Store* at = rows + s * layout.row_size;
    if (!std::exchange(packed[s], 1))
      layout.pack(Source<S>{src + s * c.src_stride[2], c.in_channels, c.src_stride[1], c.src_stride[3]}, t0,
                  at);
    return at;
  }
  // Row s convolved with the kernel row of tap j.
  const Acc* convolved_with(int64_t s, int64_t j) {
    const int64_t slot = j * slots + s % slots;
    Acc* to = convolved + slot * layout.sums_size;
    if (convolved_row[slot] != s) {
      const Live<T> one{row(s), j};
      convolve(&one, 1, nullptr, 0, nullptr, to, layout.sums_stride, Write::kSums);
      convolved_row[slot] = s;
    }
    return to;
  }
  // Gathers what bin d is the sum of.
  void read(int64_t d) {
    n_live = n_mixes = 0;
    for (int64_t j = 0; j < c.taps; ++j) {
      const Span span(c.matrix, j, d);
      if (!span.size()) continue;
      if (!c.blend_first[j]) {
        for (int64_t e = span.begin; e < span.end; ++e)
          mixes[n_mixes++] = {convolved_with(c.matrix.column[e], j), static_cast<Acc>(c.matrix.value[e])};
      } else if (span.is_copy(c.matrix)) {
        live[n_live++] = {row(c.matrix.column[span.begin]), j};
      } else {
        for (int64_t e = span.begin; e < span.end; ++e)
          entries[e - span.begin] = {row(c.matrix.column[e]), c.matrix.value[e]};
        Store* to = blended + j * layout.row_size;
        blend<T>(entries, span.size(), layout.row_size, to);
        live[n_live++] = {to, j};
      }
    }
  }
  void finish(const Target<S>& to) {
    if (layout.writes_results())
      return convolve(live, n_live, mixes, n_mixes, bias, to.dst, to.time_stride,
                      past_cache ? Write::kResultPastCache : Write::kResult);
    convolve(live, n_live, mixes, n_mixes, bias, sums, layout.sums_stride, Write::kSums);
    layout.write(sums, here, past_cache, to);
  }
  // dst = the bias, the mixes, and the live rows convolved with the kernel rows of their taps, tile by tile.
  void convolve(const Live<T>* live, int64_t n_live, const Mix<T>* mixes, int64_t n_mixes, const Acc* bias,
                void* dst, int64_t dst_stride, Write write) {
    using Tile = typename Layout::Tile;
    constexpr int channel_unit = Layout::channel_unit, frame_unit = Layout::frame_unit;
    TileArguments<T> a{tile_taps,    n_live,     layout.offsets, layout.n_offsets,
                       layout.width, tile_mixes, n_mixes,        layout.sums_stride,
                       nullptr,      nullptr,    dst_stride,     write};
    const int64_t element = write == Write::kSums ? sizeof(Acc) : sizeof(Store);
    const Split frames(divide_up(here, frame_unit), Tile::most_frames);
    const Split channels(divide_up(c.out_channels, channel_unit), Tile::most_channels);
    for (int64_t nb = 0; nb < frames.parts; ++nb) {
      const int64_t t = frames.begin(nb) * frame_unit, n = frames.begin(nb + 1) - frames.begin(nb);
      for (int64_t ob = 0; ob < channels.parts; ++ob) {
        const int64_t o = channels.begin(ob) * channel_unit, m = channels.begin(ob + 1) - channels.begin(ob);
        for (int64_t i = 0; i < n_live; ++i)
          tile_taps[i] = {live[i].row + t * layout.row_frame,
                          weight + live[i].tap * tap_size + o * layout.weight_channel};
        for (int64_t i = 0; i < n_mixes; ++i)
          tile_mixes[i] = {mixes[i].row + Layout::at(o, t, layout.sums_stride), mixes[i].value};
        a.bias = bias ? bias + o : nullptr;
        a.dst = static_cast<char*>(dst) + Layout::at(o, t, dst_stride) * element;
        tile_of<Tile, Tile::most_channels, Tile::most_frames>(m, n)(a);
      }
    }
  }
};

template <class Layout>
TapConvStatus apply_in(const Call& c) {
  Placed<CallMemory<Layout>> call(CallMemory<Layout>{Layout(c), nullptr});
  if (!call.there()) return TAP_CONV_NO_MEMORY;
  call.layout.find_offsets();
  call.pack_weights();
  expect_large_pages(c.dst, result_bytes<typename Layout::Scalar>(c));
  const int64_t tasks = c.batch * c.groups * divide_up(c.dst_len, call.layout.block);
  return run_tasks(c, tasks, Worker<Layout>(call),
                   [](int64_t task, Worker<Layout>& worker) { worker.run(task); });
}

template <class S>
TapConvStatus apply(const Call& c) {
  using T = typename Compute<S>::type;
  return Frames<T, S>::fits(c) ? apply_in<Frames<T, S>>(c) : apply_in<Series<T, S>>(c);
}

}  // namespace
