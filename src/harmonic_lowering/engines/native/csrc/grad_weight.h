// The weight's gradient: sum over batch, rows and time of (gradient of the output) x (blended row), for every
// tap, channel and kernel column; and the bias's, the same sum with a row of ones.
//
// Rows lie in frames. A tile is N (channel, kernel column) pairs by M vectors of output channels; it
// multiplies one number of the source with M vectors of the gradient, and sums over frames and rows before it
// is added to the sums.
#pragma once
#include "rows.h"

namespace {

template <class T>
struct GradTile {
  struct Pair {
    const typename T::Store* grad;
    const typename T::Store* row;
  };
  struct Arguments {
    const Pair* pairs;
    int64_t n_pairs;
    int64_t frames, grad_step, row_step;  // one step is `T::pair` frames
    const int64_t* offsets;
    typename T::Acc* sums;
    int64_t sums_stride;
  };
  static constexpr int most_vectors = 2, most_offsets = kManyRegisters ? 12 : 5;

  template <int N, int M>
  static void run(const Arguments& a) {
    using V = typename T::V;
    V acc[N][M] = {};
    const int64_t steps = a.frames / T::pair;
    for (int64_t i = 0; i < a.n_pairs; ++i) {
      const auto* grad = a.pairs[i].grad;
      const auto* row = a.pairs[i].row;
      const auto add = [&](auto read) {
        decltype(T::read(grad)) gs[M];
        UNROLLED_FOR (m, M) gs[m] = T::read(grad + m * T::lanes * T::pair);
        UNROLLED_FOR (n, N) {
          const auto x = read(row + a.offsets[n]);
          UNROLLED_FOR (m, M) acc[n][m] = T::madd(acc[n][m], gs[m], x);
        }
      };
      for (int64_t t = 0; t < steps; ++t, grad += a.grad_step, row += a.row_step)
        add([](const auto* p) { return T::broadcast(p); });
      // The last of an odd number of frames has no second one, whose infinity or NaN would meet a gradient of
      // zero.
      if constexpr (T::pair == 2)
        if (a.frames % 2) add([](const auto* p) { return T::broadcast_first(p); });
    }
    UNROLLED_FOR (n, N)
      UNROLLED_FOR (m, M) {
        auto* to = a.sums + n * a.sums_stride + m * T::lanes;
        const V sum = load<V>(to) + acc[n][m];
        std::memcpy(to, &sum, sizeof sum);
      }
  }
};

// How the work is divided. The result must not depend on the number of threads, so nothing here does.
template <class S>
struct GradPlan {
  using T = typename Compute<S>::type;
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  static constexpr int pair = T::pair, lanes = T::lanes;
  const Call& c;
  const int64_t width, padded;              // of a packed row's frame, of a packed gradient's
  const int64_t n_offsets, tap_size, size;  // sums: [tap][channel, kernel column][padded], then the bias's
  const bool in_place;              // gradients lie as the tiles want them, and are read where they are
  int64_t jobs_parts, tap_parts;    // a task is a part of the (batch item, stretch of time) and of the taps
  int64_t block, blocks, together;  // frames of a job; rows that one tile sums
  int64_t row_size = 0, grad_size, blended_size = 0;
  int64_t* offsets;
  int64_t* live;  // per tap: the rows to go through
  Acc* sums;
  Columns columns{};

  explicit GradPlan(const Call& c)
      : c(c),
        width(c.in_channels * pair),
        padded(round_up(c.out_channels, lanes)),
        n_offsets(c.in_channels * c.kernel_time),
        tap_size(padded * n_offsets),
        size(c.taps * tap_size + padded),
        in_place(pair == 1 && sizeof(S) == sizeof(Store) && c.out_channels == padded &&
                 c.dst_stride[1] == 1 && c.dst_stride[3] == padded) {
    // As many tasks as there is work for, up to 16, made by dividing jobs; where that many partial sums would
    // take too much memory, by dividing the taps.
    constexpr double worth_a_task = 2 << 20, most_bytes = 48 << 20;
    const double work =
        double(c.batch) * c.dst_rows * c.dst_len * c.out_channels * c.in_channels * c.taps * c.kernel_time;
    const int64_t wanted = static_cast<int64_t>(std::clamp(work / worth_a_task, 1., 16.));
    const int64_t affordable = static_cast<int64_t>(most_bytes / (double(c.groups) * size * sizeof(Acc)));
    const int64_t partials = std::clamp<int64_t>(affordable, 1, wanted);
    tap_parts = Split(c.taps, divide_up(c.taps * partials, wanted)).parts;
    block = round_up(frames_of_a_task(c, 32,
                                      (c.in_channels * c.src_rows * Columns::phases(c) * pair +
                                       !in_place * padded * c.dst_rows) *
                                          sizeof(Store),
                                      partials),
                     pair);
    blocks = divide_up(c.dst_len, block);
    jobs_parts = Split(c.batch * blocks, divide_up(c.batch * blocks, partials)).parts;
    constexpr int64_t tile_frames = 512;  // frames that a tile sums before it is added to the sums
    together = std::max<int64_t>(1, tile_frames / block);
    grad_size = block * padded;
  }
  void place(Arena& arena) {
    columns.place(arena, c);
    offsets = arena.take<int64_t>(n_offsets);
    live = arena.take<int64_t>(c.taps);
    sums = arena.take<Acc>(c.groups * jobs_parts * size);
  }
  void find_offsets() {
    columns.find(c, block, 1);
    row_size = round_up(columns.length * width, kVector / sizeof(Store));
    blended_size = std::max(row_size, grad_size);
    for (int64_t i = 0; i < c.in_channels; ++i)
      for (int64_t k = 0; k < c.kernel_time; ++k)
        offsets[i * c.kernel_time + k] = columns.at[k] * width + i * pair;
    // Blend-first taps go through the bins side by side, because they read the same gradients; the others go
    // through the source rows up to the last one that they read.
    for (int64_t j = 0; j < c.taps; ++j) {
      live[j] = c.matrix.rows;
      if (c.blend_first[j]) continue;
      for (live[j] = c.transposed.rows; live[j] && !Span(c.transposed, j, live[j] - 1).size();) --live[j];
    }
  }
  Acc* sums_of(int64_t g, int64_t part) const { return sums + (g * jobs_parts + part) * size; }
};

// One thread's computing of one task after another.
template <class S>
class GradWorker {
 public:
  using Plan = GradPlan<S>;
  using T = typename Plan::T;
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  using Tile = GradTile<T>;
  static constexpr int pair = T::pair, lanes = T::lanes;

  explicit GradWorker(const Plan& plan)
      : plan(plan),
        c(plan.c),
        entries_size(std::max(most_entries(c.matrix, c.taps), most_entries(c.transposed, c.taps))) {}
  void place(Arena& arena) {
    rows = arena.take<Store>(c.src_rows * plan.row_size);
    grads = arena.take<Store>(plan.in_place ? 0 : c.dst_rows * plan.grad_size);
    blended = arena.take<Store>(most_pairs() * plan.blended_size);
    packed = arena.take<char>(c.src_rows);
    packed_grad = arena.take<char>(c.dst_rows);
    entries = arena.take<Entry<Store>>(entries_size);
    pairs = arena.take<typename Tile::Pair>(most_pairs());
  }
  void run(int64_t task) {
    const int64_t tap_part = task % plan.tap_parts, part = task / plan.tap_parts % plan.jobs_parts;
    const int64_t g = task / plan.tap_parts / plan.jobs_parts, jobs = c.batch * plan.blocks;
    const int64_t first = tap_part * c.taps / plan.tap_parts, last = (tap_part + 1) * c.taps / plan.tap_parts;
    Acc* sums = plan.sums_of(g, part);
    std::fill_n(sums + first * plan.tap_size, (last - first) * plan.tap_size, Acc(0));
    if (tap_part == 0) std::fill_n(sums + c.taps * plan.tap_size, plan.padded, Acc(0));
    const int64_t rounds = divide_up(c.dst_rows, plan.together);
    for (int64_t job = part * jobs / plan.jobs_parts; job < (part + 1) * jobs / plan.jobs_parts; ++job) {
      start(job / plan.blocks, g, job % plan.blocks * plan.block);
      // All taps and the bias take a round in turn: they read the same rows while these are in the cache.
      for (int64_t round = 0; round < rounds; ++round) {
        const auto part_of = [&](int64_t n, int64_t i) { return i * n / rounds; };
        if (c.bias && tap_part == 0)
          add_bias(part_of(c.dst_rows, round), part_of(c.dst_rows, round + 1), sums + c.taps * plan.tap_size);
        for (int64_t j = first; j < last; ++j)
          add_tap(j, part_of(plan.live[j], round), part_of(plan.live[j], round + 1),
                  sums + j * plan.tap_size);
      }
    }
  }

 private:
  const Plan& plan;
  const Call& c;
  const int64_t entries_size;
  Store *rows, *grads, *blended;
  char *packed, *packed_grad;
  Entry<Store>* entries;
  typename Tile::Pair* pairs;

  const S *src, *dst;  // of the job
  int64_t t0, here, n_pairs;

  // A round has `together` rows of the result, and as many more of the source as there are more of those.
  int64_t most_pairs() const {
    return divide_up(std::max(c.dst_rows, c.src_rows), divide_up(c.dst_rows, plan.together));
  }
  void start(int64_t b, int64_t g, int64_t first) {
    t0 = first;
    here = std::min(plan.block, c.dst_len - t0);
    src = static_cast<const S*>(c.src) + b * c.src_stride[0] + g * c.in_channels * c.src_stride[1];
    dst = static_cast<const S*>(c.dst) + b * c.dst_stride[0] + g * c.out_channels * c.dst_stride[1];
    std::fill_n(packed, c.src_rows, 0);
    std::fill_n(packed_grad, c.dst_rows, 0);
    n_pairs = 0;
  }
  // A packed row of the source, a packed row of the output's gradient.
  const Store* row(int64_t s) {
    Store* at = rows + s * plan.row_size;
    if (std::exchange(packed[s], 1)) return at;
    const Source<S> source{src + s * c.src_stride[2], c.in_channels, c.src_stride[1], c.src_stride[3]};
    for (int64_t i = 0; i < plan.columns.n_runs; ++i) {
      const Stretch stretch = Stretch::of_run(c, plan.columns.runs[i], t0);
      Store* to = at + plan.columns.runs[i].begin * plan.width;
      if constexpr (pair == 1)
        pack_frames<T>(stretch, source, to, plan.width);
      else
        pack_pairs<T>(stretch, source, to, c.in_channels, 1);
    }
    return at;
  }
  const Store* grad(int64_t d) {
    if (plan.in_place)
      return reinterpret_cast<const Store*>(dst + d * c.dst_stride[2] + t0 * c.dst_stride[3]);
    Store* at = grads + d * plan.grad_size;
    if (std::exchange(packed_grad[d], 1)) return at;
    const Source<S> source{dst + d * c.dst_stride[2], c.out_channels, c.dst_stride[1], c.dst_stride[3]};
    const Stretch stretch{t0, 1, 0, 1, here, plan.block};
    if constexpr (pair == 1)
      pack_frames<T>(stretch, source, at, plan.padded);
    else
      pack_pairs<T>(stretch, source, at, plan.padded, 2);
    return at;
  }
  void add_bias(int64_t begin, int64_t end, Acc* sums) {
    const Store one = T::store(S(1)), ones[] = {one, one};
    const int64_t none = 0;
    for (int64_t d = begin; d < end; ++d) pairs[n_pairs++] = {grad(d), ones};
    multiply(1, &none, 0, sums);
  }
  // Blend-first taps pair each bin's gradient with its blended row; the others pair each row with the blend
  // of the gradients of the bins that read it. Both are the same sum.
  void add_tap(int64_t j, int64_t begin, int64_t end, Acc* sums) {
    const bool first = c.blend_first[j];
    const Rows& matrix = first ? c.matrix : c.transposed;
    for (int64_t d = begin; d < end; ++d) {
      const Span span(matrix, j, d);
      if (!span.size()) continue;
      const auto read = [&](int64_t i) { return first ? row(i) : grad(i); };
      const Store* mixed;
      if (span.is_copy(matrix)) {
        mixed = read(matrix.column[span.begin]);
      } else {
        for (int64_t e = span.begin; e < span.end; ++e)
          entries[e - span.begin] = {read(matrix.column[e]), matrix.value[e]};
        Store* to = blended + n_pairs * plan.blended_size;
        blend<T>(entries, span.size(), first ? plan.row_size : round_up(here, pair) * plan.padded, to);
        mixed = to;
      }
      pairs[n_pairs++] = first ? typename Tile::Pair{grad(d), mixed} : typename Tile::Pair{mixed, row(d)};
    }
    if (n_pairs) multiply(plan.n_offsets, plan.offsets, plan.width * pair, sums);
  }
  // Adds the products of the pairs' gradients with what lies at the offsets of their rows.
  void multiply(int64_t n_offsets, const int64_t* offsets, int64_t row_step, Acc* sums) {
    const int64_t padded = plan.padded;
    const Split columns(n_offsets, Tile::most_offsets), vectors(padded / lanes, Tile::most_vectors);
    for (int64_t qb = 0; qb < columns.parts; ++qb)
      for (int64_t ob = 0; ob < vectors.parts; ++ob) {
        const int64_t q = columns.begin(qb), n = columns.begin(qb + 1) - q;
        const int64_t v = vectors.begin(ob), m = vectors.begin(ob + 1) - v, o = v * lanes;
        for (int64_t i = 0; i < n_pairs; ++i) pairs[i].grad += o * pair;
        tile_of<Tile, Tile::most_offsets, Tile::most_vectors>(n, m)(
            {pairs, n_pairs, here, padded * pair, row_step, offsets + q, sums + q * padded + o, padded});
        for (int64_t i = 0; i < n_pairs; ++i) pairs[i].grad -= o * pair;
      }
    n_pairs = 0;
  }
};

// Adds up the partial sums of a tap (or, after the last one, of the bias), and writes them to the caller's
// tensor.
template <class S>
void reduce(const GradPlan<S>& plan, int64_t g, int64_t j) {
  using Acc = typename GradPlan<S>::Acc;
  const Call& c = plan.c;
  const bool is_bias = j == c.taps;
  const int64_t count = is_bias ? plan.padded : plan.tap_size;
  Acc* sums = plan.sums_of(g, 0) + j * plan.tap_size;
  for (int64_t part = 1; part < plan.jobs_parts; ++part) {
    const Acc* more = plan.sums_of(g, part) + j * plan.tap_size;
    for (int64_t i = 0; i < count; ++i) sums[i] += more[i];
  }
  for (int64_t o = 0; o < c.out_channels; ++o) {
    if (is_bias) {
      static_cast<S*>(c.bias)[g * c.out_channels + o] = static_cast<S>(sums[o]);
      continue;
    }
    S* to =
        static_cast<S*>(c.weight) + g * c.weight_stride[0] + o * c.weight_stride[1] + j * c.weight_stride[3];
    for (int64_t i = 0; i < c.in_channels; ++i)
      for (int64_t k = 0; k < c.kernel_time; ++k)
        to[i * c.weight_stride[2] + k * c.weight_stride[4]] =
            static_cast<S>(sums[(i * c.kernel_time + k) * plan.padded + o]);
  }
}

template <class S>
TapConvStatus grad_weight(const Call& c) {
  struct Nothing {
    void place(Arena&) {}
  };
  Placed<GradPlan<S>> plan{GradPlan<S>(c)};
  if (!plan.there()) return TAP_CONV_NO_MEMORY;
  plan.find_offsets();
  const auto status = run_tasks(c, c.groups * plan.jobs_parts * plan.tap_parts, GradWorker<S>(plan),
                                [](int64_t task, GradWorker<S>& worker) { worker.run(task); });
  if (status != TAP_CONV_OK) return status;
  const int64_t outputs = c.taps + (c.bias != nullptr);
  if (c.groups * outputs * plan.tap_size < 1 << 16) {  // not worth waking threads
    for (int64_t i = 0; i < c.groups * outputs; ++i) reduce(plan, i / outputs, i % outputs);
    return TAP_CONV_OK;
  }
  return run_tasks(c, c.groups * outputs, Nothing(),
                   [&](int64_t i, Nothing&) { reduce(plan, i / outputs, i % outputs); });
}

}  // namespace
