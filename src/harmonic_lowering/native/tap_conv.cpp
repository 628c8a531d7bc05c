// Convolution over frequency taps on the CPU: the native core of the engine "blocked".
//
//   dst[b,o,d,t] = bias[o] + sum_j sum_s P_j[d,s] sum_c sum_k weight[o,c,j,k] src[b,c,s, t*stride + k*dilation - padding]
//
// P_j is the sparse matrix of tap j: which rows s bin d reads, and with what weights (one row where the position is
// whole, two where it lies between bins, none where it is outside). The input gradient is the same sum with the
// transposed matrices and the kernel turned round, so apply() serves both; the weight gradient is grad_weight().
//
// What makes it fast:
//  - P_j acts on frequency, the kernel on channels and time, so they may be applied in either order. Tap by tap the
//    order that convolves fewer rows is taken (`blend_first`).
//  - A source row is copied once into zero-padded rows with time running last. From then on every (channel, kernel
//    column) is an offset into that row, and nothing is gathered or unfolded.
//  - A tile of registers sums over all taps, channels and kernel columns before it is written, once.
// Tasks are (batch item, group, stretch of time) on torch's own threads. The order of every sum is fixed by the
// geometry, so results do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

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
  const void* bias;          // null for none
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
constexpr int64_t kPastCache = 12 << 20;  // bytes of a result that no cache will hold until it is read
constexpr int64_t kRowBytes = 4 << 20;  // packed source rows of one task: they should stay in the last-level cache

template <class T> struct Vector { typedef T type __attribute__((vector_size(kVector))); };
template <class V, class T> inline V load(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }

// How a scalar type is computed with. A row stores `Store`; with pair = 2 two channels lie side by side and one
// instruction multiplies and adds both.
template <class T> struct Plain {
  using Store = T;
  using Acc = T;
  using V = typename Vector<T>::type;
  static constexpr int pair = 1;
  static constexpr int lanes = kVector / sizeof(T);
  static V read(const Store* p) { return load<V>(p); }
  static V spread(const Store* p) { return *p - V{}; }
  static V madd(V acc, V a, V b) { return acc + a * b; }
  static V widen(const Store* p) { return load<V>(p); }
  static void narrow(Store* p, V v) { std::memcpy(p, &v, sizeof v); }
  template <class S> static Store store(S x) { return static_cast<Store>(x); }
};
#if defined(__AVX512BF16__)
struct Pairs {  // bfloat16, summed in float
  using Store = uint16_t;
  using Acc = float;
  using V = __m512;
  static constexpr int pair = 2;
  static constexpr int lanes = 16;
  using Raw = __m512i;
  static Raw read(const Store* p) { return _mm512_loadu_si512(p); }
  static Raw spread(const Store* p) { int32_t both; std::memcpy(&both, p, 4); return _mm512_set1_epi32(both); }
  static V madd(V acc, Raw a, Raw b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
  static V widen(const Store* p) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
  }
  static void narrow(Store* p, V v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
  static Store store(c10::BFloat16 x) { return x.x; }
};
#else
using Pairs = Plain<float>;
#endif

template <class S> struct Compute { using type = Plain<float>; };
template <> struct Compute<double> { using type = Plain<double>; };
template <> struct Compute<c10::BFloat16> { using type = Pairs; };

template <class T> T* workspace(int slot, size_t count) {  // kept per thread: fresh memory costs page faults
  static thread_local std::array<std::pair<std::unique_ptr<char[]>, size_t>, 4> kept;
  auto& [memory, size] = kept[slot];
  const size_t bytes = count * sizeof(T) + 2 * kVector;
  if (size < bytes) { memory.reset(new char[bytes]); size = bytes; }
  const auto at = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<T*>((at + kVector - 1) / kVector * kVector);
}

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Fresh memory is handed out page by page on first touch, which costs more than writing it. Ask for large pages.
void expect_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <class F> void run_tasks(int64_t count, const F& task) {  // in any order, on torch's threads
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

// Transposes W rows of W lanes, in every stretch of W lanes side by side: afterwards lane h*W + j of rows[i] is what
// lane h*W + i of rows[j] was.
template <int s, class V, int... I> inline void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  const V low = __builtin_shufflevector(a, b, ((I & s) ? int(sizeof...(I)) + I - s : I)...);
  b = __builtin_shufflevector(a, b, ((I & s) ? int(sizeof...(I)) + I : I + s)...);
  a = low;
}
template <int W, int s = 1, class V> inline void transpose(V (&rows)[W]) {
  if constexpr (s < W) {
    constexpr int lanes = sizeof(V) / sizeof(rows[0][0]);
    for (int i = 0; i < W; ++i)
      if (!(i & s)) exchange<s>(rows[i], rows[i + s], std::make_integer_sequence<int, lanes>());
    transpose<W, 2 * s>(rows);
  }
}
// Calls f(width, first) with constant widths until n things are covered: as many as fit, then a half, a quarter ...
template <int W, class F> inline void by_width(int64_t n, const F& f, int64_t first = 0) {
  for (; first + W <= n; first += W) f(std::integral_constant<int, W>(), first);
  if constexpr (W > 1) by_width<W / 2>(n, f, first);
}

// One row of channels copied to [channel / pair][phase][length][pair]; position v of phase r is source time
// (first + v*step + r) / spread, and zero where there is none.
struct Packing {
  int64_t channels, channel_stride, time_stride, source_length, first, step, spread, length;
};
template <class T, int pair, class S> void pack(const Packing& p, const S* src, typename T::Store* dst) {
  using Store = typename T::Store;
  typedef uint32_t Two __attribute__((may_alias));
  const int64_t units = (p.channels + pair - 1) / pair;
  if (p.step != 1 || p.spread != 1) {
    std::fill_n(dst, units * p.step * p.length * pair, Store(0));
    for (int64_t c = 0; c < p.channels; ++c) for (int64_t r = 0; r < p.step; ++r) for (int64_t v = 0; v < p.length; ++v) {
      const int64_t i = p.first + v * p.step + r;
      if (i >= 0 && i % p.spread == 0 && i / p.spread < p.source_length)
        dst[((c / pair * p.step + r) * p.length + v) * pair + c % pair] =
            T::store(src[c * p.channel_stride + i / p.spread * p.time_stride]);
    }
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
    using V = typename T::V;
    constexpr int lane = sizeof(V) / T::lanes, both = lane / sizeof(S);  // bytes of a lane; channels in it
    if (p.channel_stride == 1) {
      fast = p.channels / both;
      for (int64_t v = 0; v < n; v += T::lanes)
        by_width<T::lanes>(fast, [&](auto width, int64_t u) {
          constexpr int W = width;
          const int64_t columns = std::min<int64_t>(n - v, T::lanes);
          V rows[W];
          for (int i = 0; i < W; ++i) for (int h = 0; h < T::lanes; h += W)
            if (h + i < columns)
              std::memcpy(reinterpret_cast<char*>(&rows[i]) + h * lane, src + (v + h + i) * p.time_stride + u * both, W * lane);
          transpose<W>(rows);
          for (int i = 0; i < W; ++i) {
            if constexpr (both == pair) {
              std::memcpy(dst + ((u + i) * p.length + v) * pair, &rows[i], columns * lane);
            } else {  // two channels in a lane, wanted apart
              uint32_t two[T::lanes];
              std::memcpy(two, &rows[i], sizeof two);
              Store* to = dst + 2 * (u + i) * p.length + v;
              for (int64_t t = 0; t < columns; ++t) to[t] = two[t], to[p.length + t] = two[t] >> 16;
            }
          }
        });
      fast *= both;
    }
  }
  if (p.channels % pair) std::fill_n(dst + (units - 1) * p.length * pair, n * pair, Store(0));
  for (int64_t c = fast; c < p.channels; ++c) for (int64_t v = 0; v < n; ++v)
    dst[(c / pair * p.length + v) * pair + c % pair] = T::store(src[v * p.time_stride + c * p.channel_stride]);
}

template <class Store> struct Entry { const Store* row; double value; };

template <class T>  // dst = sum of value * row
void blend(const std::vector<Entry<typename T::Store>>& entries, int64_t count, typename T::Store* dst) {
  for (int64_t i = 0; i < count; i += T::lanes) {
    typename T::V sum{};
    for (const auto& e : entries) sum += static_cast<typename T::Acc>(e.value) * T::widen(e.row + i);
    T::narrow(dst + i, sum);
  }
}

// The register tile of apply(): M output channels by N vectors of time.
template <class T> struct Tile {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  struct Tap { const Store* row; const Store* weight; };   // weight: [offset][M][pair]
  struct Mix { const Acc* row; Acc value; };               // a row already convolved
  const Tap* taps; int64_t n_taps;
  const int64_t* offsets; int64_t n_offsets;
  const Mix* mixes; int64_t n_mixes;
  const Acc* bias;
  Acc* dst; int64_t stride;  // of dst and of the mixes, from channel to channel

  template <int M, int N> static void run(const Tile& a) {
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
  using Run = void (*)(const Tile&);
  template <int N, int... M> static Run pick(int m, std::integer_sequence<int, M...>) {
    static constexpr Run table[] = {&run<M + 1, N>...};
    return table[m - 1];
  }
  static Run pick(int m, int n) {
    std::integer_sequence<int, 0, 1, 2, 3, 4, 5, 6, 7> all;
    return n == 1 ? pick<1>(m, all) : n == 2 ? pick<2>(m, all) : pick<3>(m, all);
  }
};
constexpr int kChannels = 8, kVectors = 3;

// Large results are written past the cache: reading each line in order to overwrite it would double the traffic.
template <bool past_cache, class T> inline void write(typename T::Store* to, typename T::V v) {
#if defined(__AVX512F__)
  if constexpr (past_cache) {
    alignas(kVector) typename T::Store out[T::lanes];
    T::narrow(out, v);
    if constexpr (sizeof(out) == 64) _mm512_stream_si512((__m512i*)to, load<__m512i>(out));
    else _mm256_stream_si256((__m256i*)to, load<__m256i>(out));
    return;
  }
#endif
  T::narrow(to, v);
}

// Writes one row [channel][stride] to the caller's tensor: any scalar type, either memory format.
template <class T, class S, bool past_cache>
void store_row(const typename T::Acc* row, int64_t stride, int64_t channels, int64_t n, S* dst, int64_t channel_stride,
               int64_t time_stride) {
  using V = typename T::V;
  using Store = typename T::Store;
  if constexpr (sizeof(S) == sizeof(Store)) {
    Store* to = reinterpret_cast<Store*>(dst);
    if (time_stride == 1) {
      const int64_t whole = n / T::lanes * T::lanes;
      for (int64_t o = 0; o < channels; ++o) {
        for (int64_t t = 0; t < whole; t += T::lanes)
          write<past_cache, T>(to + o * channel_stride + t, load<V>(row + o * stride + t));
        for (int64_t t = whole; t < n; ++t) dst[o * channel_stride + t] = static_cast<S>(row[o * stride + t]);
      }
      return;
    }
    if (channel_stride == 1) {
      for (int64_t t = 0; t < n; t += T::lanes)
        by_width<T::lanes>(channels, [&](auto width, int64_t o) {
          constexpr int W = width;
          V rows[W];
          Store out[T::lanes];
          for (int i = 0; i < W; ++i) rows[i] = load<V>(row + (o + i) * stride + t);
          transpose<W>(rows);
          for (int i = 0; i < W; ++i) {
            if constexpr (W == T::lanes) {
              if (t + i < n) write<past_cache, T>(to + (t + i) * time_stride + o, rows[i]);
            } else {
              T::narrow(out, rows[i]);
              for (int h = 0; h < T::lanes; h += W)
                if (t + h + i < n) std::memcpy(to + (t + h + i) * time_stride + o, out + h, W * sizeof(S));
            }
          }
        });
      return;
    }
  }
  for (int64_t t = 0; t < n; ++t) for (int64_t o = 0; o < channels; ++o)
    dst[t * time_stride + o * channel_stride] = static_cast<S>(row[o * stride + t]);
}

struct Split {  // n things in parts of at most `most`, as even as can be
  int64_t parts, n;
  Split(int64_t n, int64_t most) : parts((n + most - 1) / most), n(n) {}
  int64_t begin(int64_t i) const { return i * n / parts; }
};

int64_t stretch_of_time(const Call& c, int64_t lanes, int64_t bytes_per_column, int64_t wanted) {
  const int64_t len = c.dst_len, others = c.batch * c.groups;
  int64_t most = round_up(std::max<int64_t>(kRowBytes / std::max<int64_t>(bytes_per_column, 1), 1), kVectors * lanes);
  if (others < wanted) most = std::min(most, round_up((len * others + wanted - 1) / wanted, kVectors * lanes));
  const int64_t parts = (len + most - 1) / most;
  return round_up((len + parts - 1) / parts, lanes);
}

std::vector<int64_t> make_offsets(const Call& c, int64_t length, int64_t pair) {
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < (c.in_channels + pair - 1) / pair; ++i)
    for (int64_t k = 0; k < c.kernel_time; ++k) {
      const int64_t at = k * c.dilation;
      offsets.push_back(((i * c.stride + at % c.stride) * length + at / c.stride) * pair);
    }
  return offsets;
}

template <class S> void apply(const Call& c) {
  using T = typename Compute<S>::type;
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  constexpr int pair = T::pair, lanes = T::lanes;
  const int64_t units = (c.in_channels + pair - 1) / pair * c.stride;  // padded rows of one source row
  const int64_t block = stretch_of_time(c, lanes, units * pair * sizeof(Store) * c.src_rows, 4 * at::get_num_threads());
  const int64_t blocks = (c.dst_len + block - 1) / block;
  const int64_t length = round_up(block + (c.kernel_time - 1) * c.dilation / c.stride + 1, lanes);
  const int64_t row_size = units * length * pair;
  const auto offsets = make_offsets(c, length, pair);
  const int64_t n_offsets = offsets.size();
  const Split channels(c.out_channels, kChannels), vectors(block / lanes, kVectors);

  const int64_t bytes = c.batch * c.groups * c.out_channels * c.dst_rows * c.dst_len * sizeof(S);
  expect_large_pages(c.dst, bytes);
  const int64_t line = 64 / sizeof(S), across = c.dst_stride[3] == 1 ? c.dst_stride[1] : c.dst_stride[3];
  const bool past_cache = bytes > kPastCache && reinterpret_cast<uintptr_t>(c.dst) % 64 == 0 && across % line == 0 &&
                          c.dst_stride[0] % line == 0 && c.dst_stride[2] % line == 0 && block % line == 0 &&
                          (c.dst_stride[3] == 1 || (c.dst_stride[1] == 1 && c.out_channels % line == 0));

  // weights as the tiles read them: [group][tap][channel block][offset][channel][pair]
  const int64_t tap_size = c.out_channels * n_offsets * pair, group_size = tap_size * c.taps;
  std::vector<Store> weights(c.groups * group_size);
  for (int64_t g = 0; g < c.groups; ++g) for (int64_t j = 0; j < c.taps; ++j) {
    const S* from = static_cast<const S*>(c.weight) + g * c.weight_stride[0] + j * c.weight_stride[3];
    Store* to = weights.data() + g * group_size + j * tap_size;
    for (int64_t ob = 0; ob < channels.parts; ++ob)
      for (int64_t i = 0; i < c.in_channels; i += pair) for (int64_t k = 0; k < c.kernel_time; ++k)
        for (int64_t o = channels.begin(ob); o < channels.begin(ob + 1); ++o) for (int64_t h = 0; h < pair; ++h)
          *to++ = i + h < c.in_channels
              ? T::store(from[o * c.weight_stride[1] + (i + h) * c.weight_stride[2] + k * c.weight_stride[4]]) : Store(0);
  }
  int64_t slots = 1;  // rows a convolve-first tap must remember: the most that one bin reads
  for (int64_t j = 0; j < c.taps; ++j) for (int64_t d = 0; d < c.matrix.rows && !c.blend_first[j]; ++d) {
    const int64_t* at = c.matrix.pointer + j * (c.matrix.rows + 1) + d;
    if (at[1] > at[0]) slots = std::max(slots, c.matrix.column[at[1] - 1] - c.matrix.column[at[0]] + 1);
  }

  run_tasks(c.batch * c.groups * blocks, [&](int64_t task) {
    const int64_t b = task / (c.groups * blocks), g = task / blocks % c.groups, t0 = task % blocks * block;
    const int64_t here = std::min(block, c.dst_len - t0);
    const S* src = static_cast<const S*>(c.src) + b * c.src_stride[0] + g * c.in_channels * c.src_stride[1];
    S* dst = static_cast<S*>(c.dst) + b * c.dst_stride[0] + g * c.out_channels * c.dst_stride[1] + t0 * c.dst_stride[3];
    const Store* weight = weights.data() + g * group_size;
    const Packing packing{c.in_channels, c.src_stride[1], c.src_stride[3], c.src_len,
                          t0 * c.stride - c.padding, c.stride, c.spread, length};
    std::vector<Acc> bias(c.out_channels);
    if (c.bias) for (int64_t o = 0; o < c.out_channels; ++o)
      bias[o] = static_cast<Acc>(static_cast<const S*>(c.bias)[g * c.out_channels + o]);

    Store* rows = workspace<Store>(0, c.src_rows * row_size + kVectors * lanes * pair);
    std::vector<char> packed(c.src_rows, 0);
    const auto row = [&](int64_t s) {
      Store* at = rows + s * row_size;
      if (!packed[s]) { pack<T, pair>(packing, src + s * c.src_stride[2], at); packed[s] = 1; }
      return at;
    };
    Store* blended = workspace<Store>(1, c.taps * row_size + kVectors * lanes * pair);
    Acc* memory = workspace<Acc>(2, c.taps * slots * c.out_channels * block);
    std::vector<int64_t> remembered(c.taps * slots, -1);
    Acc* result = workspace<Acc>(3, c.out_channels * block);

    std::vector<Entry<Store>> entries;
    std::vector<std::pair<const Store*, int64_t>> live;  // row, tap
    std::vector<typename Tile<T>::Tap> tile_taps(c.taps);
    std::vector<typename Tile<T>::Mix> mixes, tile_mixes;
    // Convolves the live rows and adds the mixes.
    const auto convolve = [&](const Acc* bias, Acc* to) {
      tile_mixes.resize(mixes.size());
      for (int64_t nb = 0; nb < vectors.parts; ++nb) {
        const int64_t v = vectors.begin(nb), n = vectors.begin(nb + 1) - v, t = v * lanes;
        if (t >= here) break;
        for (int64_t ob = 0; ob < channels.parts; ++ob) {
          const int64_t o = channels.begin(ob), m = channels.begin(ob + 1) - o;
          for (size_t i = 0; i < live.size(); ++i)
            tile_taps[i] = {live[i].first + t * pair, weight + live[i].second * tap_size + o * n_offsets * pair};
          for (size_t i = 0; i < mixes.size(); ++i) tile_mixes[i] = {mixes[i].row + o * block + t, mixes[i].value};
          Tile<T>::pick(m, n)({tile_taps.data(), (int64_t)live.size(), offsets.data(), n_offsets, tile_mixes.data(),
                               (int64_t)mixes.size(), bias ? bias + o : nullptr, to + o * block + t, block});
        }
      }
    };

    for (int64_t d = 0; d < c.dst_rows; ++d) {
      mixes.clear();
      for (int64_t j = 0; j < c.taps; ++j) {  // taps that are convolved before they are blended
        if (c.blend_first[j]) continue;
        const int64_t* at = c.matrix.pointer + j * (c.matrix.rows + 1) + d;
        for (int64_t e = at[0]; e < at[1]; ++e) {
          const int64_t s = c.matrix.column[e], slot = j * slots + s % slots;
          Acc* to = memory + slot * c.out_channels * block;
          if (remembered[slot] != s) {
            live.assign(1, {row(s), j});
            std::vector<typename Tile<T>::Mix> none;
            none.swap(mixes);
            convolve(nullptr, to);
            none.swap(mixes);
            remembered[slot] = s;
          }
          mixes.push_back({to, static_cast<Acc>(c.matrix.value[e])});
        }
      }
      live.clear();
      for (int64_t j = 0; j < c.taps; ++j) {  // taps that are blended first, or need no blending
        if (!c.blend_first[j]) continue;
        const int64_t* at = c.matrix.pointer + j * (c.matrix.rows + 1) + d;
        if (at[0] == at[1]) continue;
        if (at[1] == at[0] + 1 && c.matrix.value[at[0]] == 1) { live.push_back({row(c.matrix.column[at[0]]), j}); continue; }
        entries.clear();
        for (int64_t e = at[0]; e < at[1]; ++e) entries.push_back({row(c.matrix.column[e]), c.matrix.value[e]});
        Store* to = blended + j * row_size;
        blend<T>(entries, row_size, to);
        live.push_back({to, j});
      }
      convolve(bias.data(), result);
      (past_cache ? store_row<T, S, true> : store_row<T, S, false>)(
          result, block, c.out_channels, here, dst + d * c.dst_stride[2], c.dst_stride[1], c.dst_stride[3]);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);  // writes past the cache are ordered by nothing else
  });
}

// The register tile of grad_weight(): M output channels by N (channel, kernel column) pairs, summed over rows and time.
template <class T> struct Dot {
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  struct Pair { const Store* grad; const Store* row; };
  const Pair* pairs; int64_t n_pairs, columns, grad_stride, first_channel;
  const int64_t* offsets;
  Acc* sums; int64_t sums_stride;

  static Acc total(typename T::V v) {
    if constexpr (sizeof(v) == 64 && sizeof(Acc) == 4) {
#if defined(__AVX512F__)
      return _mm512_reduce_add_ps((__m512)v);
#endif
    }
    Acc sum = 0;
    for (int i = 0; i < T::lanes; ++i) sum += v[i];
    return sum;
  }
  template <int M, int N> static void run(const Dot& a) {
    typename T::V acc[M][N] = {};
    constexpr int step = kVector / sizeof(Store);
    for (int64_t i = 0; i < a.n_pairs; ++i) {
      const Store* grad = a.pairs[i].grad + a.first_channel * a.grad_stride;
      for (int64_t t = 0; t < a.columns; t += step) {
        decltype(T::read(grad)) gs[M];
        for (int m = 0; m < M; ++m) gs[m] = T::read(grad + m * a.grad_stride + t);
        for (int n = 0; n < N; ++n) {
          const auto x = T::read(a.pairs[i].row + a.offsets[n] + t);
          for (int m = 0; m < M; ++m) acc[m][n] = T::madd(acc[m][n], gs[m], x);
        }
      }
    }
    for (int m = 0; m < M; ++m) for (int n = 0; n < N; ++n) a.sums[m * a.sums_stride + n] += total(acc[m][n]);
  }
  using Run = void (*)(const Dot&);
  template <int M, int... N> static Run pick(int n, std::integer_sequence<int, N...>) {
    static constexpr Run table[] = {&run<M, N + 1>...};
    return table[n - 1];
  }
  static Run pick(int m, int n) {
    std::integer_sequence<int, 0, 1, 2, 3, 4, 5> all;
    return m == 1 ? pick<1>(n, all) : m == 2 ? pick<2>(n, all) : m == 3 ? pick<3>(n, all) : pick<4>(n, all);
  }
};
constexpr int kDotChannels = 4, kDotOffsets = 6;
constexpr int64_t kDotColumns = 1024;  // columns one tile sums before its lanes are added up
constexpr int64_t kPartials = 16;      // partial sums, a fixed number: the result must not depend on the threads

template <class S> void grad_weight(const Call& c) {
  using T = typename Compute<S>::type;
  using Store = typename T::Store;
  using Acc = typename T::Acc;
  constexpr int step = kVector / sizeof(Store);
  const int64_t units = c.in_channels * c.stride;
  const int64_t block = stretch_of_time(c, step, (units * c.src_rows + c.out_channels * c.dst_rows) * sizeof(Store), kPartials);
  const int64_t blocks = (c.dst_len + block - 1) / block, jobs = c.batch * blocks;
  const int64_t length = round_up(block + (c.kernel_time - 1) * c.dilation / c.stride + 1, step);
  const int64_t row_size = units * length, grad_size = c.out_channels * block;
  const auto offsets = make_offsets(c, length, 1);
  const int64_t n_offsets = offsets.size(), tap_size = c.out_channels * n_offsets, size = c.taps * tap_size;
  const int64_t together = std::max<int64_t>(1, kDotColumns / block);  // rows one tile sums
  const Split channels(c.out_channels, kDotChannels), columns(n_offsets, kDotOffsets), parts(jobs, (jobs + kPartials - 1) / kPartials);
  std::vector<Acc> sums(c.groups * parts.parts * size);

  run_tasks(c.groups * parts.parts, [&](int64_t task) {
    const int64_t g = task / parts.parts, part = task % parts.parts;
    Store* rows = workspace<Store>(0, c.src_rows * row_size);
    Store* grads = workspace<Store>(1, c.dst_rows * grad_size);
    Store* blended = workspace<Store>(2, together * std::max(row_size, grad_size));
    std::vector<char> packed(c.src_rows), packed_grad(c.dst_rows);
    std::vector<Entry<Store>> entries;
    std::vector<typename Dot<T>::Pair> pairs;
    for (int64_t job = parts.begin(part); job < parts.begin(part + 1); ++job) {
      const int64_t b = job / blocks, t0 = job % blocks * block;
      const S* src = static_cast<const S*>(c.src) + b * c.src_stride[0] + g * c.in_channels * c.src_stride[1];
      const S* dst = static_cast<const S*>(c.dst) + b * c.dst_stride[0] + g * c.out_channels * c.dst_stride[1];
      const Packing packing{c.in_channels, c.src_stride[1], c.src_stride[3], c.src_len,
                            t0 * c.stride - c.padding, c.stride, 1, length};
      const Packing grad_packing{c.out_channels, c.dst_stride[1], c.dst_stride[3], c.dst_len, t0, 1, 1, block};
      std::fill(packed.begin(), packed.end(), 0);
      std::fill(packed_grad.begin(), packed_grad.end(), 0);
      const auto row = [&](int64_t s) {
        Store* at = rows + s * row_size;
        if (!packed[s]) { pack<T, 1>(packing, src + s * c.src_stride[2], at); packed[s] = 1; }
        return at;
      };
      const auto grad = [&](int64_t d) {
        Store* at = grads + d * grad_size;
        if (!packed_grad[d]) { pack<T, 1>(grad_packing, dst + d * c.dst_stride[2], at); packed_grad[d] = 1; }
        return at;
      };
      for (int64_t j = 0; j < c.taps; ++j) {
        Acc* to = sums.data() + task * size + j * tap_size;
        const auto flush = [&] {
          for (int64_t ob = 0; ob < channels.parts; ++ob) for (int64_t qb = 0; qb < columns.parts; ++qb) {
            const int64_t o = channels.begin(ob), m = channels.begin(ob + 1) - o;
            const int64_t q = columns.begin(qb), n = columns.begin(qb + 1) - q;
            Dot<T>::pick(m, n)({pairs.data(), (int64_t)pairs.size(), block, block, o, offsets.data() + q,
                                to + o * n_offsets + q, n_offsets});
          }
          pairs.clear();
        };
        // Blend-first taps pair each bin's gradient with its blended row; the others pair each row with the
        // blend of the gradients of the bins that read it. Both are the same sum.
        const bool first = c.blend_first[j];
        const Rows& matrix = first ? c.matrix : c.transposed;
        for (int64_t d = 0; d < matrix.rows; ++d) {
          const int64_t* at = matrix.pointer + j * (matrix.rows + 1) + d;
          if (at[0] == at[1]) continue;
          const auto read = [&](int64_t i) { return first ? row(i) : grad(i); };
          const Store* mixed = nullptr;
          if (at[1] == at[0] + 1 && matrix.value[at[0]] == 1) {
            mixed = read(matrix.column[at[0]]);
          } else {
            entries.clear();
            for (int64_t e = at[0]; e < at[1]; ++e) entries.push_back({read(matrix.column[e]), matrix.value[e]});
            const int64_t count = first ? row_size : grad_size;
            blend<T>(entries, count, blended + pairs.size() * count);
            mixed = blended + pairs.size() * count;
          }
          pairs.push_back(first ? typename Dot<T>::Pair{grad(d), mixed} : typename Dot<T>::Pair{mixed, row(d)});
          if ((int64_t)pairs.size() == together) flush();
        }
        if (!pairs.empty()) flush();
      }
    }
  });
  for (int64_t g = 0; g < c.groups; ++g) for (int64_t j = 0; j < c.taps; ++j) for (int64_t o = 0; o < c.out_channels; ++o)
    for (int64_t i = 0; i < c.in_channels; ++i) for (int64_t k = 0; k < c.kernel_time; ++k) {
      const Acc* from = sums.data() + g * parts.parts * size + j * tap_size + o * n_offsets + i * c.kernel_time + k;
      Acc sum = 0;
      for (int64_t part = 0; part < parts.parts; ++part) sum += from[part * size];
      static_cast<S*>(c.weight)[g * c.weight_stride[0] + o * c.weight_stride[1] + i * c.weight_stride[2] +
                                j * c.weight_stride[3] + k * c.weight_stride[4]] = static_cast<S>(sum);
    }
}

template <class F> int dispatch(int64_t dtype, const F& f) {
  switch (dtype) {
    case 0: f(float()); return 0;
    case 1: f(double()); return 0;
    case 2: f(c10::Half()); return 0;
    case 3: f(c10::BFloat16()); return 0;
  }
  return 1;
}

}  // namespace

extern "C" int tap_conv_apply(const Call* c) {
  return dispatch(c->dtype, [&](auto scalar) { apply<decltype(scalar)>(*c); });
}
extern "C" int tap_conv_grad_weight(const Call* c) {
  return dispatch(c->dtype, [&](auto scalar) { grad_weight<decltype(scalar)>(*c); });
}
