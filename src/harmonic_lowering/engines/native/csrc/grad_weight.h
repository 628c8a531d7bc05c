// The weight's gradient: sum over batch, rows and time of (gradient of the output) x (blended row), for every tap,
// channel and kernel column; and the bias's, the same sum with a row of ones.
//
// Rows lie in frames. A tile is N (channel, kernel column) pairs by M vectors of output channels; it multiplies one
// number of the source with M vectors of the gradient, and sums over frames and rows before it is added to the sums.
#pragma once
#include "rows.h"

namespace {

template <class T> struct GradTile {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  struct Pair { const Store* grad; const Store* row; };
  const Pair* pairs; int64_t n_pairs;
  int64_t steps, grad_step, row_step;  // one step is `T::pair` frames
  const int64_t* offsets;
  Acc* sums; int64_t sums_stride;
  static constexpr int most_vectors = 2, most_offsets = kManyRegisters ? 12 : 5;

  template <int N, int M> static void run(const GradTile& a) {
    using V = typename T::V;
    V acc[N][M] = {};
    for (int64_t i = 0; i < a.n_pairs; ++i) {
      const Store* grad = a.pairs[i].grad;
      const Store* row = a.pairs[i].row;
      for (int64_t t = 0; t < a.steps; ++t, grad += a.grad_step, row += a.row_step) {
        decltype(T::read(grad)) gs[M];
        for (int m = 0; m < M; ++m) gs[m] = T::read(grad + m * T::lanes * T::pair);
        for (int n = 0; n < N; ++n) {
          const auto x = T::spread(row + a.offsets[n]);
          for (int m = 0; m < M; ++m) acc[n][m] = T::madd(acc[n][m], gs[m], x);
        }
      }
    }
    for (int n = 0; n < N; ++n) for (int m = 0; m < M; ++m) {
      Acc* to = a.sums + n * a.sums_stride + m * T::lanes;
      const V sum = load<V>(to) + acc[n][m];
      std::memcpy(to, &sum, sizeof sum);
    }
  }
};

template <class S> void grad_weight(const Call& c) {
  using T = typename Compute<S>::type;
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  using Tile = GradTile<T>;
  constexpr int pair = T::pair, lanes = T::lanes;
  constexpr int64_t tile_frames = 512;  // frames a tile sums before it is added to the sums
  // Partial sums, as many as there is work for, up to 16: the result must not depend on the number of threads.
  constexpr int64_t worth_a_task = 2 << 20;
  const int64_t work = c.batch * c.dst_rows * c.dst_len * c.out_channels * c.in_channels * c.taps * c.kernel_time;
  const int64_t partials = std::clamp<int64_t>(work / worth_a_task, 1, 16);
  const int64_t width = c.in_channels * pair, padded = round_up(c.out_channels, lanes);
  // Frames as the tiles want them are read where they are.
  const bool in_place = pair == 1 && sizeof(S) == sizeof(Store) && c.out_channels == padded && c.dst_stride[1] == 1 &&
                        c.dst_stride[3] == padded;
  const int64_t block = round_up(
      frames_of_a_task(c, 32, (c.in_channels * c.src_rows * c.stride * pair + !in_place * padded * c.dst_rows) * sizeof(Store),
                       partials), pair);
  const int64_t blocks = (c.dst_len + block - 1) / block, jobs = c.batch * blocks;
  const int64_t length = (block - 1) * c.stride + (c.kernel_time - 1) * c.dilation + 1;
  constexpr int64_t whole = kVector / sizeof(Store);
  const int64_t row_size = round_up(length * width, whole), grad_size = block * padded;
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < c.in_channels; ++i) for (int64_t k = 0; k < c.kernel_time; ++k)
    offsets.push_back(k * c.dilation * width + i * pair);
  const int64_t n_offsets = offsets.size(), tap_size = padded * n_offsets, size = c.taps * tap_size + padded;
  const int64_t together = std::max<int64_t>(1, tile_frames / block);  // rows one tile sums
  const Split vectors(padded / lanes, Tile::most_vectors), columns(n_offsets, Tile::most_offsets);
  const Split parts(jobs, (jobs + partials - 1) / partials);
  std::vector<Acc> sums(c.groups * parts.parts * size);

  // Rows that each tap goes through. Blend-first taps go through the bins side by side, because they read the same
  // gradients; the others go through the source rows up to the last one that they read.
  std::vector<int64_t> live(c.taps, c.matrix.rows);
  for (int64_t j = 0; j < c.taps; ++j) if (!c.blend_first[j]) {
    const int64_t* pointer = c.transposed.pointer + j * (c.transposed.rows + 1);
    for (live[j] = c.transposed.rows; live[j] && pointer[live[j]] == pointer[live[j] - 1];) --live[j];
  }
  const int64_t rounds = (c.dst_rows + together - 1) / together;
  const Store one = T::store(S(1)), ones[] = {one, one};

  run_tasks(c.groups * parts.parts, [&](int64_t task) {
    const int64_t g = task / parts.parts, part = task % parts.parts;
    Store* rows = workspace<Store>(0, c.src_rows * row_size);
    Store* grads = workspace<Store>(1, in_place ? 0 : c.dst_rows * grad_size);
    Store* blended = workspace<Store>(2, together * std::max(row_size, grad_size));
    std::vector<char> packed(c.src_rows), packed_grad(c.dst_rows);
    std::vector<Entry<Store>> entries;
    std::vector<typename Tile::Pair> pairs;
    for (int64_t job = parts.begin(part); job < parts.begin(part + 1); ++job) {
      const int64_t b = job / blocks, t0 = job % blocks * block, here = std::min(block, c.dst_len - t0);
      const S* src = static_cast<const S*>(c.src) + b * c.src_stride[0] + g * c.in_channels * c.src_stride[1];
      const S* dst = static_cast<const S*>(c.dst) + b * c.dst_stride[0] + g * c.out_channels * c.dst_stride[1];
      const Packing packing{c.in_channels, c.src_stride[1], c.src_stride[3], c.src_len,
                            t0 * c.stride - c.padding, 1, 1, length};
      const Packing grad_packing{c.out_channels, c.dst_stride[1], c.dst_stride[3], c.dst_len, t0, 1, 1, block / pair};
      std::fill(packed.begin(), packed.end(), 0);
      std::fill(packed_grad.begin(), packed_grad.end(), 0);
      const auto row = [&](int64_t s) -> const Store* {
        Store* at = rows + s * row_size;
        if (std::exchange(packed[s], 1)) return at;
        if constexpr (pair == 1) pack_frames<T>(packing, src + s * c.src_stride[2], at, width);
        else pack_pairs<T>(packing, src + s * c.src_stride[2], at, c.in_channels, 1, c.stride);
        return at;
      };
      const auto grad = [&](int64_t d) -> const Store* {
        if (in_place) return reinterpret_cast<const Store*>(dst + d * c.dst_stride[2] + t0 * c.dst_stride[3]);
        Store* at = grads + d * grad_size;
        if (std::exchange(packed_grad[d], 1)) return at;
        if constexpr (pair == 1) pack_frames<T>(grad_packing, dst + d * c.dst_stride[2], at, padded);
        else pack_pairs<T>(grad_packing, dst + d * c.dst_stride[2], at, padded, 2, 1);
        return at;
      };
      // Adds the products of the pairs' gradients with the columns that `offsets` tell, a step in time being `row_step`.
      const auto multiply = [&](const Split& columns, const int64_t* offsets, int64_t row_step, Acc* to) {
        for (int64_t qb = 0; qb < columns.parts; ++qb) for (int64_t ob = 0; ob < vectors.parts; ++ob) {
          const int64_t q = columns.begin(qb), n = columns.begin(qb + 1) - q;
          const int64_t v = vectors.begin(ob), m = vectors.begin(ob + 1) - v, o = v * lanes;
          for (auto& each : pairs) each.grad += o * pair;
          tile_of<Tile, Tile::most_offsets, Tile::most_vectors>(n, m)(
              {pairs.data(), (int64_t)pairs.size(), (here + pair - 1) / pair, padded * pair, row_step, offsets + q,
               to + q * padded + o, padded});
          for (auto& each : pairs) each.grad -= o * pair;
        }
        pairs.clear();
      };
      const int64_t none = 0;
      Acc* const to = sums.data() + task * size;
      const auto bias_round = [&](int64_t round) {
        for (int64_t d = round * c.dst_rows / rounds; d < (round + 1) * c.dst_rows / rounds; ++d)
          pairs.push_back({grad(d), ones});
        multiply(Split(1, 1), &none, 0, to + c.taps * tap_size);
      };
      // All taps and the bias take a round in turn: they read the same rows while these are in the cache.
      const auto tap_round = [&](int64_t round, int64_t j) {
        // Blend-first taps pair each bin's gradient with its blended row; the others pair each row with the
        // blend of the gradients of the bins that read it. Both are the same sum.
        const bool first = c.blend_first[j];
        const Rows& matrix = first ? c.matrix : c.transposed;
        const int64_t count = first ? row_size : round_up(here, pair) * padded;
        for (int64_t d = round * live[j] / rounds; d < (round + 1) * live[j] / rounds; ++d) {
          const int64_t* at = matrix.pointer + j * (matrix.rows + 1) + d;
          if (at[0] == at[1]) continue;
          const auto read = [&](int64_t i) { return first ? row(i) : grad(i); };
          const Store* mixed = nullptr;
          if (at[1] == at[0] + 1 && matrix.value[at[0]] == 1) {
            mixed = read(matrix.column[at[0]]);
          } else {
            entries.clear();
            for (int64_t e = at[0]; e < at[1]; ++e) entries.push_back({read(matrix.column[e]), matrix.value[e]});
            Store* to = blended + pairs.size() * std::max(row_size, grad_size);
            blend<T>(entries, count, to);
            mixed = to;
          }
          pairs.push_back(first ? typename Tile::Pair{grad(d), mixed} : typename Tile::Pair{mixed, row(d)});
        }
        if (!pairs.empty()) multiply(columns, offsets.data(), c.stride * width * pair, to + j * tap_size);
      };
      for (int64_t round = 0; round < rounds; ++round) {
        if (c.bias) bias_round(round);
        for (int64_t j = 0; j < c.taps; ++j) tap_round(round, j);
      }
    }
  });
  for (int64_t g = 0; g < c.groups; ++g) for (int64_t part = 1; part < parts.parts; ++part) {
    Acc* to = sums.data() + g * parts.parts * size;
    for (int64_t i = 0; i < size; ++i) to[i] += to[part * size + i];
  }
  for (int64_t g = 0; g < c.groups; ++g) for (int64_t o = 0; o < c.out_channels; ++o) {
    const Acc* from = sums.data() + g * parts.parts * size + o;
    if (c.bias) static_cast<S*>(c.bias)[g * c.out_channels + o] = static_cast<S>(from[c.taps * tap_size]);
    S* to = static_cast<S*>(c.weight) + g * c.weight_stride[0] + o * c.weight_stride[1];
    for (int64_t j = 0; j < c.taps; ++j) for (int64_t i = 0; i < c.in_channels; ++i) for (int64_t k = 0; k < c.kernel_time; ++k)
      to[i * c.weight_stride[2] + j * c.weight_stride[3] + k * c.weight_stride[4]] =
          static_cast<S>(from[j * tap_size + (i * c.kernel_time + k) * padded]);
  }
}

}  // namespace
