// Vectors of registers: how each scalar type is computed with, and transposing.
#pragma once
#include <cstring>
#include <type_traits>

#include "scalars.h"
#include "tasks.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

// Tiles live in registers only if every loop over their parts is unrolled, which clang does to few by itself.
#if defined(__clang__)
#define UNROLLED_FOR(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < n; ++i)
#else
#define UNROLLED_FOR(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < n; ++i)
#endif

namespace {

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVector)));
};
template <class V, class T>
inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// How a scalar type is computed with. A row stores `Store`; with pair = 2 two factors lie side by side and
// one instruction multiplies and adds both.
template <class T>
struct Plain {
  using Store = T;
  using Acc = T;
  using Unit = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;  // `pair` stored things
  using V = typename Vector<T>::type;
  static constexpr int pair = 1;
  static constexpr int lanes = kVector / sizeof(T);
  static V read(const Store* p) { return load<V>(p); }
  static V broadcast(const Store* p) { return *p - V{}; }
  static V madd(V acc, V a, V b) { return acc + a * b; }
  static V widen(const Store* p) { return load<V>(p); }
  static void narrow(Store* p, V v) { std::memcpy(p, &v, sizeof v); }
  template <class S>
  static Store store(S x) {
    return static_cast<Store>(x);
  }
};
#if defined(__AVX512BF16__)
struct Pairs {  // bfloat16, summed in float
  using Store = uint16_t;
  using Acc = float;
  using Unit = uint32_t;
  using V = __m512;
  static constexpr int pair = 2;
  static constexpr int lanes = 16;
  using Raw = __m512i;
  static Raw read(const Store* p) { return _mm512_loadu_si512(p); }
  static Raw broadcast(const Store* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    return _mm512_set1_epi32(both);
  }
  static Raw broadcast_first(const Store* p) {
    return _mm512_set1_epi32(*p);
  }  // and zero in place of the second
  static V madd(V acc, Raw a, Raw b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
  static V widen(const Store* p) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
  }
  static void narrow(Store* p, V v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
  static Store store(BFloat16 x) { return x.bits; }
  static void interleave(const BFloat16* a, const BFloat16* b, void* pairs) {
    const auto wide = [](const void* p) {
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    };
    _mm512_storeu_si512(pairs, _mm512_or_si512(wide(a), _mm512_slli_epi32(wide(b), 16)));
  }
};
#endif

template <class S>
struct Compute {
  using type = Plain<float>;
};
template <>
struct Compute<double> {
  using type = Plain<double>;
};
#if defined(__AVX512BF16__)
template <>
struct Compute<BFloat16> {
  using type = Pairs;
};
#endif

// Large results are written past the cache: reading each line in order to overwrite it would double the
// traffic.
template <class T>
inline void write_past_cache(typename T::Store* to, typename T::V v) {
#if defined(__AVX512F__)
  alignas(kVector) typename T::Store out[T::lanes];
  T::narrow(out, v);
  if constexpr (sizeof(out) == 64)
    _mm512_stream_si512((__m512i*)to, load<__m512i>(out));
  else
    _mm256_stream_si256((__m256i*)to, load<__m256i>(out));
#else
  T::narrow(to, v);
#endif
}

// The member run<first, second> of a tile, 1 <= first <= most_first and 1 <= second <= most_second.
template <class Tile>
using RunTile = void (*)(const typename Tile::Arguments&);
template <class Tile, int second, int... first>
RunTile<Tile> tile_in_table(int64_t m, std::integer_sequence<int, first...>) {
  static constexpr RunTile<Tile> table[] = {&Tile::template run<first + 1, second>...};
  return table[m - 1];
}
template <class Tile, int most_first, int most_second>
RunTile<Tile> tile_of(int64_t first, int64_t second) {
  if constexpr (most_second > 1)
    if (second < most_second) return tile_of<Tile, most_first, most_second - 1>(first, second);
  return tile_in_table<Tile, most_second>(first, std::make_integer_sequence<int, most_first>());
}

// Fresh memory is handed out page by page on first touch, which costs more than writing it. Ask for large
// pages.
inline void expect_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Transposes W rows of W lanes, in every stretch of W lanes side by side: afterwards lane h*W + j of rows[i]
// is what lane h*W + i of rows[j] was.
template <int s, class V, int... I>
inline void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  const V low = __builtin_shufflevector(a, b, ((I & s) ? int(sizeof...(I)) + I - s : I)...);
  b = __builtin_shufflevector(a, b, ((I & s) ? int(sizeof...(I)) + I : I + s)...);
#else
  typedef std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t> Index
      __attribute__((vector_size(sizeof(V))));
  const V low = __builtin_shuffle(a, b, Index{((I & s) ? int(sizeof...(I)) + I - s : I)...});
  b = __builtin_shuffle(a, b, Index{((I & s) ? int(sizeof...(I)) + I : I + s)...});
#endif
  a = low;
}
template <int W, int s = 1, class V>
inline void transpose(V (&rows)[W]) {
  if constexpr (s < W) {
    constexpr int lanes = sizeof(V) / sizeof(rows[0][0]);
    for (int i = 0; i < W; ++i)
      if (!(i & s)) exchange<s>(rows[i], rows[i + s], std::make_integer_sequence<int, lanes>());
    transpose<W, 2 * s>(rows);
  }
}
// Calls f(width, first) with constant widths until n things are covered: as many as fit, then a half, a
// quarter ...
template <int W, class F>
inline void by_width(int64_t n, const F& f, int64_t first = 0) {
  for (; first + W <= n; first += W) f(std::integral_constant<int, W>(), first);
  if constexpr (W > 1) by_width<W / 2>(n, f, first);
}

// series[a][t] = frames[t * frame_stride + a]: from channels side by side to time side by side ...
// Units of any type are moved; where each series begins is counted in bytes.
template <class U>
void frames_to_series(const U* frames, int64_t frame_stride, int64_t channels, int64_t n, void* series,
                      int64_t series_bytes) {
  using V = typename Vector<U>::type;
  constexpr int lanes = kVector / sizeof(U);
  for (int64_t t = 0; t < n; t += lanes)
    by_width<lanes>(channels, [&](auto width, int64_t a) {
      constexpr int W = width;
      const int64_t here = std::min<int64_t>(n - t, lanes);
      V rows[W];
      for (int i = 0; i < W; ++i)
        for (int h = 0; h < lanes; h += W)
          if (h + i < here)
            std::memcpy(reinterpret_cast<U*>(&rows[i]) + h, frames + (t + h + i) * frame_stride + a,
                        W * sizeof(U));
      transpose<W>(rows);
      for (int i = 0; i < W; ++i) {
        char* to = static_cast<char*>(series) + (a + i) * series_bytes + t * sizeof(U);
        if (here == lanes)
          std::memcpy(to, &rows[i], sizeof(V));
        else
          std::memcpy(to, &rows[i], here * sizeof(U));
      }
    });
}

// ... and back: frames[t * frame_stride + a] = series[a][t].
template <class U>
void series_to_frames(const void* series, int64_t series_bytes, int64_t channels, int64_t n, U* frames,
                      int64_t frame_stride) {
  using V = typename Vector<U>::type;
  constexpr int lanes = kVector / sizeof(U);
  for (int64_t t = 0; t < n; t += lanes)
    by_width<lanes>(channels, [&](auto width, int64_t a) {
      constexpr int W = width;
      const int64_t here = std::min<int64_t>(n - t, lanes);
      V rows[W];
      for (int i = 0; i < W; ++i) {
        const char* from = static_cast<const char*>(series) + (a + i) * series_bytes + t * sizeof(U);
        if (here == lanes)
          rows[i] = load<V>(from);
        else
          std::memcpy(&rows[i], from, here * sizeof(U));
      }
      transpose<W>(rows);
      for (int i = 0; i < W; ++i)
        for (int h = 0; h < lanes; h += W)
          if (h + i < here)
            std::memcpy(frames + (t + h + i) * frame_stride + a, reinterpret_cast<U*>(&rows[i]) + h,
                        W * sizeof(U));
    });
}

}  // namespace
