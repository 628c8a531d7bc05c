// Kernels of several columns by transforms along time (Toom and Cook; Winograd).
//
// A kernel of r columns needs r multiplications for each frame. Two polynomials that are known at P points
// need P of them for m = P + 1 - r frames: y = A((G w) * (B x)), with P frames x of which the next block's
// begin m later. B is the same for every r and acts on time alone, so it commutes with the sums over taps and
// channels and with reading between bins: a source row is transformed once, the weights are transformed once,
// tiles sum over taps and channels point by point, and A takes the sums to frames, once.
//
// The points are 0, infinity and pairs +a and -a, whose rows of B are those of x^2 Q(x^2) plus and minus
// those of a x Q(x^2), with Q(z) the product of (z - b^2) over the other pairs b. The more points, the fewer
// multiplications, and the larger the numbers in between: relative errors are about 7e-7 for three pairs and
// 3e-6 for four, where a direct sum in float32 has 3e-7.
#pragma once
#include "rows.h"

namespace {

template <int n_pairs>
struct Points {
  static constexpr int count = 2 + 2 * n_pairs;
  static constexpr double pairs[] = {1, 2, 0.5, 0.75};

  struct Tables {
    double others[n_pairs][n_pairs];  // coefficients of Q for each pair, the last one is 1
    double all[n_pairs + 1];          // of the product over all pairs
    double scale[n_pairs + 1];        // G's: of each pair, and of the point 0
  };
  static constexpr Tables tables = [] {
    Tables t{};
    for (int i = 0; i <= n_pairs; ++i) {  // the last one leaves no pair out
      double product[n_pairs + 1] = {1};
      int degree = 0;
      for (int j = 0; j < n_pairs; ++j) {
        if (j == i) continue;
        ++degree;
        for (int k = degree; k >= 0; --k)
          product[k] = (k ? product[k - 1] : 0) - pairs[j] * pairs[j] * (k < degree ? product[k] : 0);
      }
      double at = 1;  // the product over all other points, at this one
      if (i < n_pairs) {
        at = 2 * pairs[i] * pairs[i];
        for (int j = 0; j < n_pairs; ++j)
          if (j != i) at *= pairs[i] * pairs[i] - pairs[j] * pairs[j];
      } else {
        at = product[0];
      }
      t.scale[i] = 1 / at;
      for (int k = 0; k <= degree; ++k) (i < n_pairs ? t.others[i] : t.all)[k] = product[k];
    }
    return t;
  }();

  // Points in this order: +a, -a for each pair, 0, infinity.
  template <class V>
  static void of_frames(const V (&x)[count], V (&y)[count]) {
    UNROLLED_FOR (i, n_pairs) {
      V even = x[2 * n_pairs], odd = x[2 * n_pairs - 1];
      UNROLLED_FOR (k, n_pairs - 1) {
        const auto q = static_cast<float>(tables.others[i][k]);
        even += q * x[2 * k + 2];
        odd += q * x[2 * k + 1];
      }
      odd *= static_cast<float>(pairs[i]);
      y[2 * i] = even + odd;
      y[2 * i + 1] = even - odd;
    }
    y[2 * n_pairs] = x[2 * n_pairs];
    y[2 * n_pairs + 1] = x[2 * n_pairs + 1];
    UNROLLED_FOR (k, n_pairs) {
      const auto p = static_cast<float>(tables.all[k]);
      y[2 * n_pairs] += p * x[2 * k];
      y[2 * n_pairs + 1] += p * x[2 * k + 1];
    }
  }
  template <int m, class V>
  static void to_frames(const V (&p)[count], V (&y)[m]) {
    UNROLLED_FOR (t, m) y[t] = V{};
    y[0] = p[2 * n_pairs];
    y[m - 1] += p[2 * n_pairs + 1];
    UNROLLED_FOR (i, n_pairs) {
      const V sum = p[2 * i] + p[2 * i + 1], difference = p[2 * i] - p[2 * i + 1];
      float power = 1;
      UNROLLED_FOR (t, m) {
        y[t] += power * (t % 2 ? difference : sum);
        power *= static_cast<float>(pairs[i]);
      }
    }
  }
  // A kernel of one output and one input channel, of which the columns are `step` apart.
  static void of_kernel(const float* w, int64_t columns, int64_t step, double (&y)[count]) {
    for (int i = 0; i < n_pairs; ++i)
      for (int sign = 0; sign < 2; ++sign) {
        double sum = 0;
        for (int64_t k = columns - 1; k >= 0; --k) sum = sum * (sign ? -pairs[i] : pairs[i]) + w[k * step];
        y[2 * i + sign] = sum * tables.scale[i];
      }
    y[2 * n_pairs] = w[0] * tables.scale[n_pairs];
    y[2 * n_pairs + 1] = w[(columns - 1) * step];
  }
};

// What a call is computed with: points and frames of a block. Fewer columns gain little.
template <int n_pairs, int m>
struct Scheme {
  using Points = ::Points<n_pairs>;
  static constexpr int frames = m;
};

// Blocks of a task, so many that its packed rows stay in the cache.
template <class Scheme>
int64_t blocks_of_a_task(const Call& c, int64_t multiple) {
  const int64_t m = Scheme::frames;
  const int64_t bytes = divide_up(c.in_channels * sizeof(float) * c.src_rows * Scheme::Points::count, m);
  return divide_up(frames_of_a_task(c, multiple * m, bytes, wanted_tasks(c)), m);
}

// The kernels of `n` output channels as tiles read them: [point][channel][output channel], where a point is
// `point` numbers from the next one and a channel `pitch`.
template <class Points>
void pack_channel_block(const Call& c, const float* from, int64_t n, int64_t pitch, int64_t point,
                        float* to) {
  for (int64_t i = 0; i < c.in_channels; ++i)
    for (int64_t o = 0; o < n; ++o) {
      double all[Points::count];
      Points::of_kernel(from + o * c.weight_stride[1] + i * c.weight_stride[2], c.kernel_time,
                        c.weight_stride[4], all);
      for (int p = 0; p < Points::count; ++p) to[p * point + i * pitch + o] = static_cast<float>(all[p]);
    }
}

// Layouts as in apply.h. What a tile takes for frames are blocks.

template <class Scheme>
struct TransformedSeries {
  using Scalar = float;
  using Type = Plain<float>;
  using Store = float;
  using Acc = float;
  using Tile = SeriesTile<Type>;
  using V = Type::V;
  using Points = typename Scheme::Points;
  static constexpr int points = Points::count, m = Scheme::frames;
  static constexpr int lanes = Type::lanes, channel_unit = 1, frame_unit = lanes;
  const Call& c;
  const int64_t pitch, block;  // blocks of a task, in whole vectors; frames of a task
  const int64_t n_offsets, width = 0, row_frame = 1, weight_channel, sums_stride, sums_size, bias_size,
                           row_size;
  const int64_t row_point, weight_point, sums_point;
  static constexpr int side = lanes + (points - 1) / m;  // blocks that the vectors of a phase reach
  int64_t* offsets = nullptr;

  explicit TransformedSeries(const Call& c)
      : c(c),
        pitch(round_up(blocks_of_a_task<Scheme>(c, Tile::most_frames * lanes), lanes)),
        block(pitch * m),
        n_offsets(c.in_channels),
        weight_channel(n_offsets),
        sums_stride(pitch),
        sums_size(points * c.out_channels * pitch),
        bias_size(c.out_channels),
        row_size(points * c.in_channels * pitch),
        row_point(c.in_channels * pitch),
        weight_point(c.out_channels * weight_channel),
        sums_point(c.out_channels * pitch) {}
  void place(Arena& arena) { offsets = arena.take<int64_t>(n_offsets); }
  void find_offsets() {
    for (int64_t i = 0; i < n_offsets; ++i) offsets[i] = i * pitch;
  }
  static int64_t tile_frames(int64_t here) { return divide_up(here, m); }
  static int64_t at(int64_t channel, int64_t frame, int64_t stride) { return channel * stride + frame; }

  // [point][channel block][offset][channel]
  void pack_weights(const float* from, float* to) const {
    const Split channels(c.out_channels, Tile::most_channels);
    for (int64_t ob = 0; ob < channels.parts; ++ob) {
      const int64_t begin = channels.begin(ob), n = channels.begin(ob + 1) - begin;
      pack_channel_block<Points>(c, from + begin * c.weight_stride[1], n, n, weight_point, to);
      to += n * weight_channel;
    }
  }
  // Frame t of a block lies in phase t % m, t / m places further.
  void pack(const Source<float>& row, int64_t t0, float* to) const {
    float phases[m][side], padded[side * m];
    for (int64_t i = 0; i < c.in_channels; ++i)
      for (int64_t b = 0; b < pitch; b += lanes) {
        const int64_t from = t0 - c.padding + b * m, step = row.time_stride;
        const float* frames = row.data + i * row.channel_stride + from * step;
        if (from < 0 || from + side * m > c.src_len || step != 1) {
          for (int64_t t = 0; t < side * m; ++t)
            padded[t] = from + t >= 0 && from + t < c.src_len ? frames[t * step] : 0.0f;
          frames = padded;
        }
        to_phases(frames, phases);
        V x[points], y[points];
        UNROLLED_FOR (t, points) x[t] = load<V>(&phases[t % m][t / m]);
        Points::of_frames(x, y);
        UNROLLED_FOR (p, points) std::memcpy(to + p * row_point + i * pitch + b, &y[p], sizeof(V));
      }
  }
  static bool writes_results() { return false; }
  bool past_cache() const {
    return c.dst_stride[3] == 1 && goes_past_cache<float>(c, c.dst_stride[1], block);
  }
  void write(const float* sums, const float* bias, int64_t here, bool past_cache,
             const Target<float>& to) const {
    float frames[lanes * m];
    for (int64_t o = 0; o < c.out_channels; ++o)
      for (int64_t b = 0; b * m < here; b += lanes) {
        V p[points], y[m];
        UNROLLED_FOR (i, points) p[i] = load<V>(sums + i * sums_point + o * pitch + b);
        Points::template to_frames<m>(p, y);
        UNROLLED_FOR (f, m) y[f] += bias[o];
        from_phases(y, frames);
        const int64_t n = std::min<int64_t>(here - b * m, lanes * m);
        float* dst = to.dst + o * to.channel_stride + b * m * to.time_stride;
        if (to.time_stride == 1 && n == lanes * m) {
          UNROLLED_FOR (f, m) {
            const V v = load<V>(frames + f * lanes);
            if (past_cache)
              write_past_cache<Type>(dst + f * lanes, v);
            else
              std::memcpy(dst + f * lanes, &v, sizeof(V));
          }
        } else {
          for (int64_t t = 0; t < n; ++t) dst[t * to.time_stride] = frames[t];
        }
      }
  }

 private:
  // Between frames in order and m phases, of which phase f has the frames f, f + m, f + 2m ... Four phases
  // are transposed in registers, four by four.
  static void to_phases(const float* frames, float (&phases)[m][side]) {
    int done = 0;
    if constexpr (m == 4) {
      V rows[m];
      for (int h = 0; h < lanes; h += m)
        UNROLLED_FOR (i, m)
          std::memcpy(reinterpret_cast<float*>(&rows[i]) + h, frames + (h + i) * m, m * sizeof(float));
      transpose<m>(rows);
      UNROLLED_FOR (f, m) std::memcpy(phases[f], &rows[f], sizeof(V));
      done = lanes;
    }
    for (int l = done; l < side; ++l)
      for (int f = 0; f < m; ++f) phases[f][l] = frames[l * m + f];
  }
  static void from_phases(V (&phases)[m], float* frames) {
    if constexpr (m == 4) {
      transpose<m>(phases);
      for (int h = 0; h < lanes; h += m)
        UNROLLED_FOR (i, m)
          std::memcpy(frames + (h + i) * m, reinterpret_cast<float*>(&phases[i]) + h, m * sizeof(float));
    } else {
      float apart[m][lanes];
      UNROLLED_FOR (f, m) std::memcpy(apart[f], &phases[f], sizeof(V));
      for (int l = 0; l < lanes; ++l)
        for (int f = 0; f < m; ++f) frames[l * m + f] = apart[f][l];
    }
  }
};

template <class Scheme>
struct TransformedFrames {
  using Scalar = float;
  using Type = Plain<float>;
  using Store = float;
  using Acc = float;
  using Tile = FramesTile<Type>;
  using V = Type::V;
  using Points = typename Scheme::Points;
  static constexpr int points = Points::count, m = Scheme::frames;
  static constexpr int lanes = Type::lanes, channel_unit = lanes, frame_unit = 1;
  const Call& c;
  const int64_t blocks, block, width, padded;
  const int64_t n_offsets = 1, row_frame, weight_channel, sums_stride, sums_size, bias_size, row_size;
  const int64_t row_point, weight_point, sums_point;
  int64_t* offsets = nullptr;

  explicit TransformedFrames(const Call& c)
      : c(c),
        blocks(blocks_of_a_task<Scheme>(c, Tile::most_frames)),
        block(blocks * m),
        width(c.in_channels),
        padded(round_up(c.out_channels, lanes)),
        row_frame(width),
        weight_channel(width),
        sums_stride(padded),
        sums_size(points * padded * blocks),
        bias_size(padded),
        row_size(round_up(points * blocks * width, lanes)),
        row_point(blocks * width),
        weight_point(padded * weight_channel),
        sums_point(padded * blocks) {}
  void place(Arena& arena) { offsets = arena.take<int64_t>(n_offsets); }
  void find_offsets() { offsets[0] = 0; }
  static int64_t tile_frames(int64_t here) { return divide_up(here, m); }
  static int64_t at(int64_t channel, int64_t frame, int64_t stride) { return frame * stride + channel; }

  // [point][channel block][channel][output channel], zero before
  void pack_weights(const float* from, float* to) const {
    const Split vectors(padded / lanes, Tile::most_channels);
    for (int64_t ob = 0; ob < vectors.parts; ++ob) {
      const int64_t begin = vectors.begin(ob) * lanes, n = vectors.begin(ob + 1) * lanes - begin;
      pack_channel_block<Points>(c, from + begin * c.weight_stride[1], std::min(n, c.out_channels - begin), n,
                                 weight_point, to);
      to += n * weight_channel;
    }
  }
  void pack(const Source<float>& row, int64_t t0, float* to) const {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = t0 - c.padding + b * m;
      for (int64_t v = 0; v < width; v += lanes) {
        const int64_t bytes = std::min<int64_t>(width - v, lanes) * sizeof(float);
        V x[points], y[points];
        UNROLLED_FOR (t, points) {
          x[t] = V{};
          if (first + t >= 0 && first + t < c.src_len) copy_part(&x[t], row.frame(first + t) + v, bytes);
        }
        Points::of_frames(x, y);
        UNROLLED_FOR (p, points) copy_part(to + p * row_point + b * width + v, &y[p], bytes);
      }
    }
  }
  static bool writes_results() { return false; }
  bool past_cache() const {
    return c.out_channels == padded && goes_past_cache<float>(c, c.dst_stride[3], c.out_channels);
  }
  void write(const float* sums, const float* bias, int64_t here, bool past_cache,
             const Target<float>& to) const {
    for (int64_t b = 0; b * m < here; ++b)
      for (int64_t v = 0; v < padded; v += lanes) {
        const int64_t bytes = std::min<int64_t>(c.out_channels - v, lanes) * sizeof(float);
        V p[points], y[m];
        UNROLLED_FOR (i, points) p[i] = load<V>(sums + i * sums_point + b * padded + v);
        Points::template to_frames<m>(p, y);
        UNROLLED_FOR (f, m) {
          if (b * m + f >= here) continue;
          y[f] += load<V>(bias + v);
          float* dst = to.dst + (b * m + f) * to.time_stride + v;
          if (past_cache)
            write_past_cache<Type>(dst, y[f]);
          else
            copy_part(dst, &y[f], bytes);
        }
      }
  }
  // A vector or, at the end of the channels, a part of one.
  static void copy_part(void* to, const void* from, int64_t bytes) {
    if (bytes == sizeof(V))
      std::memcpy(to, from, sizeof(V));
    else
      std::memcpy(to, from, bytes);
  }
};

}  // namespace
