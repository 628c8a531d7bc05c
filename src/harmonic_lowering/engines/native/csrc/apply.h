// dst[b,o,d,t] = bias[o] + sum_j sum_s P_j[d,s] sum_c sum_k weight[o,c,j,k] src[b,c,s, t*stride + k*dilation - padding]
//
// The output's and, with transposed matrices and the kernel turned round, the input's gradient. Two layouts of rows and
// register tiles, for the two memory formats of tensors; what apply() does with either is the same.
#pragma once
#include "rows.h"

namespace {

template <class T> struct Live { const typename T::Store* row; int64_t tap; };        // a row to be convolved
template <class T> struct Mix { const typename T::Acc* row; typename T::Acc value; };  // a row already convolved

// A row of the result on its way to the caller's tensor.
template <class S> struct Target { S* dst; int64_t channel_stride, time_stride; };

// Channels apart, time running last: a tile is M output channels by N vectors of time. Every (channel, kernel column)
// is an offset into a row, and nothing is gathered or unfolded.
template <class T> struct SeriesTile {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  struct Tap { const Store* row; const Store* weight; };  // weight: [offset][M][pair]
  const Tap* taps; int64_t n_taps;
  const int64_t* offsets; int64_t n_offsets;
  const Mix<T>* mixes; int64_t n_mixes;
  const Acc* bias;
  Acc* dst; int64_t stride;  // of dst and of the mixes, from channel to channel
  static constexpr int most_channels = kManyRegisters ? 8 : 4, most_vectors = 3;

  template <int M, int N> static void run(const SeriesTile& a) {
    using V = typename T::V;
    V acc[M][N];
    for (int m = 0; m < M; ++m) for (int n = 0; n < N; ++n) acc[m][n] = a.bias ? a.bias[m] - V{} : V{};
    for (int64_t i = 0; i < a.n_mixes; ++i)
      for (int m = 0; m < M; ++m) for (int n = 0; n < N; ++n)
        acc[m][n] += a.mixes[i].value * load<V>(a.mixes[i].row + m * a.stride + n * T::lanes);
    for (int64_t j = 0; j < a.n_taps; ++j) {
      const Store* w = a.taps[j].weight;
      for (int64_t q = 0; q < a.n_offsets; ++q, w += M * T::pair) {
        const Store* x = a.taps[j].row + a.offsets[q];
        decltype(T::read(x)) xs[N];
        for (int n = 0; n < N; ++n) xs[n] = T::read(x + n * T::lanes * T::pair);
        for (int m = 0; m < M; ++m) {
          const auto wm = T::spread(w + m * T::pair);
          for (int n = 0; n < N; ++n) acc[m][n] = T::madd(acc[m][n], wm, xs[n]);
        }
      }
    }
    for (int m = 0; m < M; ++m) for (int n = 0; n < N; ++n)
      std::memcpy(a.dst + m * a.stride + n * T::lanes, &acc[m][n], sizeof(V));
  }
};

// Channels side by side: a tile is N frames by M vectors of output channels, which are written where they belong.
template <class T> struct FramesTile {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  struct Tap { const Store* row; const Store* weight; };  // weight: [kernel column][channel / pair][M vectors][pair]
  const Tap* taps; int64_t n_taps;
  int64_t kernel_time, width, column, frame;  // width of a packed frame; from kernel column, frame to the next
  const Mix<T>* mixes; int64_t n_mixes, mix_stride;
  const Acc* bias;
  void* dst; int64_t dst_stride;  // from frame to frame
  enum { sums, stored, stored_past_cache } kind;  // what is written
  static constexpr int most_vectors = 2, most_frames = kManyRegisters ? 12 : 5;

  template <int N, int M> static void run(const FramesTile& a) {
    using V = typename T::V;
    V acc[N][M];
    for (int n = 0; n < N; ++n) for (int m = 0; m < M; ++m) acc[n][m] = a.bias ? load<V>(a.bias + m * T::lanes) : V{};
    for (int64_t i = 0; i < a.n_mixes; ++i)
      for (int n = 0; n < N; ++n) for (int m = 0; m < M; ++m)
        acc[n][m] += a.mixes[i].value * load<V>(a.mixes[i].row + n * a.mix_stride + m * T::lanes);
    const int64_t frame = a.frame, third = 3 * frame;
    for (int64_t j = 0; j < a.n_taps; ++j) {
      const Store* w = a.taps[j].weight;
      for (int64_t k = 0; k < a.kernel_time; ++k) {
        const Store* x = a.taps[j].row + k * a.column;
        for (const Store* end = x + a.width; x != end; x += T::pair, w += M * T::lanes * T::pair) {
          decltype(T::read(w)) ws[M];
          for (int m = 0; m < M; ++m) ws[m] = T::read(w + m * T::lanes * T::pair);
          for (int n = 0; n < N; ++n) {
            const auto xn = T::spread(x + n / 3 * third + n % 3 * frame);
            for (int m = 0; m < M; ++m) acc[n][m] = T::madd(acc[n][m], ws[m], xn);
          }
        }
      }
    }
    for (int n = 0; n < N; ++n) for (int m = 0; m < M; ++m) {
      const int64_t at = n * a.dst_stride + m * T::lanes;
      if (a.kind == sums) std::memcpy(static_cast<Acc*>(a.dst) + at, &acc[n][m], sizeof(V));
      else if (a.kind == stored) T::narrow(static_cast<Store*>(a.dst) + at, acc[n][m]);
      else write_past_cache<T>(static_cast<Store*>(a.dst) + at, acc[n][m]);
    }
  }
};

template <class S> int64_t result_bytes(const Call& c) {
  return c.batch * c.groups * c.out_channels * c.dst_rows * c.dst_len * sizeof(S);
}

// Whether no cache will hold a result until it is read, and it is written in whole lines: `run` elements side by side,
// the next ones `across` further.
template <class S> bool goes_past_cache(const Call& c, int64_t across, int64_t run) {
  constexpr int64_t most_in_cache = 12 << 20, line = 64 / sizeof(S);
  return result_bytes<S>(c) > most_in_cache && reinterpret_cast<uintptr_t>(c.dst) % 64 == 0 &&
         c.dst_stride[0] % line == 0 && c.dst_stride[2] % line == 0 && across % line == 0 && run % line == 0;
}

// Layouts: the geometry of rows, weights as the tiles read them, packing, convolving.

template <class T, class S> struct Series {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  using Tile = SeriesTile<T>;
  static constexpr int pair = T::pair, lanes = T::lanes;
  const Call& c;
  const int64_t units, block, length;  // padded rows of one source row; frames of a task, and packed for them
  const int64_t row_size, slack, result_size, bias_size, tap_size;
  std::vector<int64_t> offsets;
  Split channels;
  bool past_cache;

  explicit Series(const Call& c)
      : c(c), units((c.in_channels + pair - 1) / pair * c.stride),
        block(round_up(frames_of_a_task(c, Tile::most_vectors * lanes, units * pair * sizeof(Store) * c.src_rows,
                                        wanted_tasks()), lanes)),
        length(round_up(block + (c.kernel_time - 1) * c.dilation / c.stride + 1, lanes)),
        row_size(units * length * pair), slack(Tile::most_vectors * lanes * pair), result_size(c.out_channels * block),
        bias_size(c.out_channels), tap_size(c.out_channels * units / c.stride * c.kernel_time * pair),
        channels(c.out_channels, Tile::most_channels) {
    for (int64_t i = 0; i < units / c.stride; ++i) for (int64_t k = 0; k < c.kernel_time; ++k) {
      const int64_t at = k * c.dilation;
      offsets.push_back(((i * c.stride + at % c.stride) * length + at / c.stride) * pair);
    }
    past_cache = sizeof(S) == sizeof(Store) && c.dst_stride[3] == 1 && goes_past_cache<S>(c, c.dst_stride[1], block);
  }
  // [channel block][offset][channel][pair], zero before
  void pack_weights(const S* from, Store* to) const {
    for (int64_t ob = 0; ob < channels.parts; ++ob) {
      const int64_t begin = channels.begin(ob), m = channels.begin(ob + 1) - begin;
      for (int64_t i = 0; i < c.in_channels; ++i) for (int64_t k = 0; k < c.kernel_time; ++k)
        for (int64_t o = 0; o < m; ++o)
          to[(((i / pair) * c.kernel_time + k) * m + o) * pair + i % pair] = T::store(
              from[(begin + o) * c.weight_stride[1] + i * c.weight_stride[2] + k * c.weight_stride[4]]);
      to += m * (int64_t)offsets.size() * pair;
    }
  }
  void pack(const S* src, int64_t t0, Store* to) const {
    pack_series<T>({c.in_channels, c.src_stride[1], c.src_stride[3], c.src_len, t0 * c.stride - c.padding, c.stride,
                    c.spread, length}, src, to);
  }
  void convolve(const std::vector<Live<T>>& live, const std::vector<Mix<T>>& mixes, const Store* weight, const Acc* bias,
                int64_t here, Acc* to) const {
    static thread_local std::vector<typename Tile::Tap> taps;
    static thread_local std::vector<Mix<T>> mixed;
    taps.resize(live.size());
    mixed.resize(mixes.size());
    const Split vectors(block / lanes, Tile::most_vectors);
    const int64_t n_offsets = offsets.size();
    for (int64_t nb = 0; nb < vectors.parts; ++nb) {
      const int64_t v = vectors.begin(nb), n = vectors.begin(nb + 1) - v, t = v * lanes;
      if (t >= here) break;
      for (int64_t ob = 0; ob < channels.parts; ++ob) {
        const int64_t o = channels.begin(ob), m = channels.begin(ob + 1) - o;
        for (size_t i = 0; i < live.size(); ++i)
          taps[i] = {live[i].row + t * pair, weight + live[i].tap * tap_size + o * n_offsets * pair};
        for (size_t i = 0; i < mixes.size(); ++i) mixed[i] = {mixes[i].row + o * block + t, mixes[i].value};
        tile_of<Tile, Tile::most_channels, Tile::most_vectors>(m, n)(
            {taps.data(), (int64_t)taps.size(), offsets.data(), n_offsets, mixed.data(), (int64_t)mixed.size(),
             bias ? bias + o : nullptr, to + o * block + t, block});
      }
    }
  }
  void finish(const std::vector<Live<T>>& live, const std::vector<Mix<T>>& mixes, const Store* weight, const Acc* bias,
              int64_t here, Acc* result, const Target<S>& to) const {
    convolve(live, mixes, weight, bias, here, result);
    const auto channel = [&](int64_t o) { return result + o * block; };
    if constexpr (sizeof(S) == sizeof(Store)) {
      if (to.time_stride == 1) {
        const int64_t whole = here / lanes * lanes;
        for (int64_t o = 0; o < c.out_channels; ++o) {
          Store* at = reinterpret_cast<Store*>(to.dst + o * to.channel_stride);
          for (int64_t t = 0; t < whole; t += lanes) {
            const auto v = load<typename T::V>(channel(o) + t);
            if (past_cache) write_past_cache<T>(at + t, v); else T::narrow(at + t, v);
          }
          for (int64_t t = whole; t < here; ++t) to.dst[o * to.channel_stride + t] = static_cast<S>(channel(o)[t]);
        }
        return;
      }
    }
    if constexpr (std::is_same_v<S, Acc>) {
      using Unit = typename T::Unit;
      if (to.channel_stride == 1)
        return series_to_frames(result, block * sizeof(Acc), c.out_channels, here, reinterpret_cast<Unit*>(to.dst),
                                to.time_stride);
    }
    for (int64_t t = 0; t < here; ++t) for (int64_t o = 0; o < c.out_channels; ++o)
      to.dst[t * to.time_stride + o * to.channel_stride] = static_cast<S>(channel(o)[t]);
  }
};

template <class T, class S> struct Frames {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  using Tile = FramesTile<T>;
  static constexpr int pair = T::pair, lanes = T::lanes;
  const Call& c;
  const int64_t width, padded;  // of a packed frame; output channels in whole vectors
  const int64_t block, length, row_size, slack, result_size, bias_size, tap_size;
  Split vectors;
  bool direct, past_cache;  // whether tiles write to the caller's tensor, and how

  static bool fits(const Call& c) {
    return (c.src_stride[1] == 1 || c.in_channels == 1) && c.dst_stride[1] == 1 && 2 * c.out_channels > lanes;
  }
  explicit Frames(const Call& c)
      : c(c), width(round_up(c.in_channels, pair)), padded(round_up(c.out_channels, lanes)),
        block(frames_of_a_task(c, 2 * Tile::most_frames, width * sizeof(Store) * c.src_rows * c.stride, wanted_tasks())),
        length((block - 1) * c.stride + (c.kernel_time - 1) * c.dilation + 1),
        row_size(round_up(length * width, kVector / sizeof(Store))), slack(0), result_size(padded * block),
        bias_size(padded), tap_size(padded * c.kernel_time * width), vectors(padded / lanes, Tile::most_vectors) {
    direct = sizeof(S) == sizeof(Store) && c.out_channels == padded;
    past_cache = goes_past_cache<S>(c, c.dst_stride[3], c.out_channels);
  }
  // [channel block][kernel column][channel / pair][output channel][pair], zero before
  void pack_weights(const S* from, Store* to) const {
    for (int64_t ob = 0; ob < vectors.parts; ++ob) {
      const int64_t begin = vectors.begin(ob) * lanes, m = vectors.begin(ob + 1) * lanes - begin;
      for (int64_t k = 0; k < c.kernel_time; ++k) for (int64_t i = 0; i < c.in_channels; ++i)
        for (int64_t o = 0; o < std::min(m, c.out_channels - begin); ++o)
          to[((k * width + i / pair * pair) * m) + o * pair + i % pair] = T::store(
              from[(begin + o) * c.weight_stride[1] + i * c.weight_stride[2] + k * c.weight_stride[4]]);
      to += m * c.kernel_time * width;
    }
  }
  void pack(const S* src, int64_t t0, Store* to) const {
    pack_frames<T>({c.in_channels, c.src_stride[1], c.src_stride[3], c.src_len, t0 * c.stride - c.padding, 1, c.spread,
                    length}, src, to, width);
  }
  void tiles(const std::vector<Live<T>>& live, const std::vector<Mix<T>>& mixes, const Store* weight, const Acc* bias,
             int64_t here, Tile tile) const {
    static thread_local std::vector<typename Tile::Tap> taps;
    static thread_local std::vector<Mix<T>> mixed;
    taps.resize(live.size());
    mixed.resize(mixes.size());
    const Split frames(here, Tile::most_frames);
    tile.taps = taps.data(), tile.n_taps = taps.size();
    tile.mixes = mixed.data(), tile.n_mixes = mixed.size(), tile.mix_stride = padded;
    tile.kernel_time = c.kernel_time, tile.width = width;
    tile.column = c.dilation * width, tile.frame = c.stride * width;
    void* const dst = tile.dst;
    const int64_t element = tile.kind == Tile::sums ? sizeof(Acc) : sizeof(Store);
    for (int64_t nb = 0; nb < frames.parts; ++nb) {
      const int64_t t = frames.begin(nb), n = frames.begin(nb + 1) - t;
      for (int64_t ob = 0; ob < vectors.parts; ++ob) {
        const int64_t o = vectors.begin(ob) * lanes, m = vectors.begin(ob + 1) - vectors.begin(ob);
        for (size_t i = 0; i < live.size(); ++i)
          taps[i] = {live[i].row + t * tile.frame, weight + live[i].tap * tap_size + o * c.kernel_time * width};
        for (size_t i = 0; i < mixes.size(); ++i) mixed[i] = {mixes[i].row + t * padded + o, mixes[i].value};
        tile.bias = bias ? bias + o : nullptr;
        tile.dst = static_cast<char*>(dst) + (t * tile.dst_stride + o) * element;
        tile_of<Tile, Tile::most_frames, Tile::most_vectors>(n, m)(tile);
      }
    }
  }
  void convolve(const std::vector<Live<T>>& live, const std::vector<Mix<T>>& mixes, const Store* weight, const Acc* bias,
                int64_t here, Acc* to) const {
    Tile tile{};
    tile.dst = to, tile.dst_stride = padded, tile.kind = Tile::sums;
    tiles(live, mixes, weight, bias, here, tile);
  }
  void finish(const std::vector<Live<T>>& live, const std::vector<Mix<T>>& mixes, const Store* weight, const Acc* bias,
              int64_t here, Acc* result, const Target<S>& to) const {
    if (direct) {
      Tile tile{};
      tile.dst = to.dst, tile.dst_stride = to.time_stride;
      tile.kind = past_cache ? Tile::stored_past_cache : Tile::stored;
      return tiles(live, mixes, weight, bias, here, tile);
    }
    convolve(live, mixes, weight, bias, here, result);
    for (int64_t t = 0; t < here; ++t) for (int64_t o = 0; o < c.out_channels; ++o)
      to.dst[t * to.time_stride + o] = static_cast<S>(result[t * padded + o]);
  }
};

template <class Layout, class T, class S> void apply_in(const Call& c) {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  const Layout layout(c);
  const int64_t blocks = (c.dst_len + layout.block - 1) / layout.block;
  expect_large_pages(c.dst, result_bytes<S>(c));

  std::vector<Store> weights(c.groups * c.taps * layout.tap_size);
  for (int64_t g = 0; g < c.groups; ++g) for (int64_t j = 0; j < c.taps; ++j) {
    const S* from = static_cast<const S*>(c.weight) + g * c.weight_stride[0] + j * c.weight_stride[3];
    layout.pack_weights(from, weights.data() + (g * c.taps + j) * layout.tap_size);
  }
  int64_t slots = 1;  // rows a convolve-first tap must remember: the most that one bin reads
  for (int64_t j = 0; j < c.taps; ++j) for (int64_t d = 0; d < c.matrix.rows && !c.blend_first[j]; ++d) {
    const int64_t* at = c.matrix.pointer + j * (c.matrix.rows + 1) + d;
    if (at[1] > at[0]) slots = std::max(slots, c.matrix.column[at[1] - 1] - c.matrix.column[at[0]] + 1);
  }

  run_tasks(c.batch * c.groups * blocks, [&](int64_t task) {
    const int64_t b = task / (c.groups * blocks), g = task / blocks % c.groups, t0 = task % blocks * layout.block;
    const int64_t here = std::min(layout.block, c.dst_len - t0);
    const S* src = static_cast<const S*>(c.src) + b * c.src_stride[0] + g * c.in_channels * c.src_stride[1];
    S* dst = static_cast<S*>(c.dst) + b * c.dst_stride[0] + g * c.out_channels * c.dst_stride[1] + t0 * c.dst_stride[3];
    const Store* weight = weights.data() + g * c.taps * layout.tap_size;
    std::vector<Acc> bias(layout.bias_size);
    if (c.bias) for (int64_t o = 0; o < c.out_channels; ++o)
      bias[o] = static_cast<Acc>(static_cast<const S*>(c.bias)[g * c.out_channels + o]);

    Store* rows = workspace<Store>(0, c.src_rows * layout.row_size + layout.slack);
    std::vector<char> packed(c.src_rows, 0);
    const auto row = [&](int64_t s) {
      Store* at = rows + s * layout.row_size;
      if (!packed[s]) { layout.pack(src + s * c.src_stride[2], t0, at); packed[s] = 1; }
      return at;
    };
    Store* blended = workspace<Store>(1, c.taps * layout.row_size + layout.slack);
    Acc* memory = workspace<Acc>(2, c.taps * slots * layout.result_size);
    std::vector<int64_t> remembered(c.taps * slots, -1);
    Acc* result = workspace<Acc>(3, layout.result_size);

    std::vector<Entry<Store>> entries;
    std::vector<Live<T>> live, one;
    std::vector<Mix<T>> mixes, none;
    for (int64_t d = 0; d < c.dst_rows; ++d) {
      mixes.clear();
      live.clear();
      for (int64_t j = 0; j < c.taps; ++j) {
        const int64_t* at = c.matrix.pointer + j * (c.matrix.rows + 1) + d;
        if (at[0] == at[1]) continue;
        if (!c.blend_first[j]) {  // convolved before it is blended
          for (int64_t e = at[0]; e < at[1]; ++e) {
            const int64_t s = c.matrix.column[e], slot = j * slots + s % slots;
            Acc* to = memory + slot * layout.result_size;
            if (remembered[slot] != s) {
              one.assign(1, {row(s), j});
              layout.convolve(one, none, weight, nullptr, here, to);
              remembered[slot] = s;
            }
            mixes.push_back({to, static_cast<Acc>(c.matrix.value[e])});
          }
        } else if (at[1] == at[0] + 1 && c.matrix.value[at[0]] == 1) {  // needs no blending
          live.push_back({row(c.matrix.column[at[0]]), j});
        } else {
          entries.clear();
          for (int64_t e = at[0]; e < at[1]; ++e) entries.push_back({row(c.matrix.column[e]), c.matrix.value[e]});
          Store* to = blended + j * layout.row_size;
          blend<T>(entries, layout.row_size, to);
          live.push_back({to, j});
        }
      }
      layout.finish(live, mixes, weight, bias.data(), here, result,
                    {dst + d * c.dst_stride[2], c.dst_stride[1], c.dst_stride[3]});
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);  // writes past the cache are ordered by nothing else
  });
}

template <class S> void apply(const Call& c) {
  using T = typename Compute<S>::type;
  if (Frames<T, S>::fits(c)) apply_in<Frames<T, S>, T, S>(c);
  else apply_in<Series<T, S>, T, S>(c);
}

}  // namespace
