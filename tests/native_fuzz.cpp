// Random calls of the native core, checked against plain loops in double. Not a part of the library.
//
//   native_fuzz [CALLS] [SEED]
//
// `make sanitize` runs it under sanitizers; built for another processor it runs in an emulator.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../src/harmonic_lowering/engines/native/csrc/tap_conv.cpp"

namespace {

std::mt19937_64 generator;
int64_t any(int64_t from, int64_t to) { return std::uniform_int_distribution<int64_t>(from, to)(generator); }
bool chance(int percent) { return any(1, 100) <= percent; }

int lend_threads(int64_t begin, int64_t end, int64_t, void (*work)(int64_t, int64_t, void*), void* data) {
  std::vector<std::thread> threads;
  for (int64_t i = begin + 1; i < end; ++i) threads.emplace_back(work, i, i + 1, data);
  work(begin, begin + 1, data);
  for (auto& thread : threads) thread.join();
  return 0;
}
int refuse_threads(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*) { return 1; }
void lend_as_openmp(void (*work)(void*), void* data, unsigned count, unsigned) {
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < count; ++i) threads.emplace_back(work, data);
  work(data);
  for (auto& thread : threads) thread.join();
}

// Numbers that every type can hold; sometimes a NaN, which must go where the plain loops take it and nowhere
// else.
double number(bool with_nan) {
  if (with_nan && chance(2)) return NAN;
  return static_cast<double>(any(-16, 16)) / 16;
}

template <class S>
struct Tensor {  // of four or five dimensions, in an order and with gaps of its own
  std::vector<int64_t> shape, stride;
  std::vector<S> data;

  Tensor(std::vector<int64_t> sizes, bool with_nan) : shape(sizes), stride(sizes.size()) {
    std::vector<size_t> order(shape.size());  // the last one is the innermost
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (chance(40))
      std::rotate(order.begin() + 1, order.begin() + 2, order.end());  // channels last
    else if (chance(20))
      std::shuffle(order.begin(), order.end(), generator);
    int64_t size = 1;
    for (size_t i = order.size(); i-- > 0;) {
      stride[order[i]] = size;
      size *= shape[order[i]];
      if (chance(5)) size += any(1, 3);
    }
    data.resize(size);
    for (S& x : data) x = static_cast<S>(static_cast<float>(number(with_nan)));
  }
  template <class... I>
  S& at(I... indices) {
    int64_t i = 0, position = 0;
    ((position += indices * stride[i++]), ...);
    return data[position];
  }
};

struct Matrices {  // compressed rows, and their transposes
  std::vector<int64_t> pointer, column;
  std::vector<double> value;
  Rows rows(int64_t n) const { return {pointer.data(), column.data(), value.data(), n}; }
};

Matrices compress(const std::vector<double>& dense, int64_t taps, int64_t rows, int64_t columns,
                  bool transpose) {
  Matrices m;
  for (int64_t j = 0; j < taps; ++j) {
    m.pointer.push_back(m.column.size());
    for (int64_t a = 0; a < (transpose ? columns : rows); ++a) {
      for (int64_t b = 0; b < (transpose ? rows : columns); ++b)
        if (const double v = dense[(j * rows + (transpose ? b : a)) * columns + (transpose ? a : b)]) {
          m.column.push_back(b);
          m.value.push_back(v);
        }
      m.pointer.push_back(m.column.size());
    }
  }
  m.column.reserve(1);
  m.value.reserve(1);
  return m;
}

struct Expected {
  double sum = 0, size = 0;
  void add(double x) { sum += x, size += std::isnan(x) ? 0 : std::fabs(x); }
};

bool close(double found, const Expected& expected, double precision) {
  if (std::isnan(expected.sum)) return std::isnan(found);
  return std::fabs(found - expected.sum) <= precision * (expected.size + 1e-3);
}

int complain(const char* what, const Call& c, double found, const Expected& expected) {
  std::printf("%s: found %.9g, expected %.9g (of terms %.3g)\n", what, found, expected.sum, expected.size);
  std::printf(
      "dtype %d batch %d groups %d channels %d -> %d taps %d kernel %d rows %d -> %d frames %d -> %d\n",
      int(c.dtype), int(c.batch), int(c.groups), int(c.in_channels), int(c.out_channels), int(c.taps),
      int(c.kernel_time), int(c.src_rows), int(c.dst_rows), int(c.src_len), int(c.dst_len));
  std::printf("stride %lld input_dilation %lld dilation %lld padding %lld threads %d transforms %d\n",
              (long long)c.stride, (long long)c.input_dilation, (long long)c.dilation, (long long)c.padding,
              int(c.threads), int(c.transforms));
  return 1;
}

template <class S>
int one_call(int64_t dtype, double precision) {
  Call c{};
  c.dtype = dtype;
  c.batch = any(1, 3), c.groups = chance(70) ? 1 : any(2, 3);
  c.in_channels = any(1, chance(20) ? 40 : 6), c.out_channels = any(1, chance(40) ? 40 : 6);
  c.taps = any(1, 4), c.kernel_time = any(1, chance(10) ? 9 : 4);
  c.src_rows = any(1, 7), c.dst_rows = any(1, 7);
  c.src_len = any(1, chance(30) ? 150 : 20), c.dst_len = any(1, chance(30) ? 150 : 20);
  c.stride = c.input_dilation = c.dilation = 1;
  const int64_t far = chance(5) ? any(1, INT64_C(1) << 40) : any(2, 5);
  if (chance(30)) (chance(50) ? c.stride : c.input_dilation) = far;
  if (chance(30)) c.dilation = chance(20) ? any(1, INT64_C(1) << 40) : chance(30) ? far : any(2, 40);
  c.padding = chance(80) ? any(-3, 8) : any(0, 2) * c.dilation + any(0, 1) * c.stride;
  c.transforms = dtype == TAP_CONV_FLOAT && chance(40);
  if (c.transforms && chance(80)) {  // a call that is large and plain enough for transforms along time
    c.in_channels = any(8, 20), c.out_channels = any(8, 40), c.kernel_time = any(3, 7);
    c.src_len = any(1, 150), c.dst_len = any(64, 150);
    c.stride = c.input_dilation = c.dilation = 1;
    c.padding = any(-3, 8);
  }
  c.threads = any(1, 4);
  if (chance(50))
    c.parallel_for = chance(95) ? lend_threads : refuse_threads;
  else
    c.gomp_parallel = lend_as_openmp;

  const bool with_nan = !c.transforms && chance(15);  // transforms spread a NaN over its block of frames
  Tensor<S> src({c.batch, c.groups * c.in_channels, c.src_rows, c.src_len}, with_nan);
  Tensor<S> dst({c.batch, c.groups * c.out_channels, c.dst_rows, c.dst_len}, false);
  Tensor<S> weight({c.groups, c.out_channels, c.in_channels, c.taps, c.kernel_time}, false);
  std::vector<S> bias(c.groups * c.out_channels);
  for (S& x : bias) x = static_cast<S>(static_cast<float>(number(false)));
  std::vector<double> dense(c.taps * c.dst_rows * c.src_rows);
  for (int64_t j = 0; j < c.taps; ++j)
    for (int64_t d = 0; d < c.dst_rows; ++d) {
      const int64_t n = std::min(any(0, 3), c.src_rows), s0 = any(0, c.src_rows - n);
      for (int64_t s = s0; s < s0 + n; ++s)
        dense[(j * c.dst_rows + d) * c.src_rows + s] =
            n == 1 && chance(50) ? 1 : static_cast<double>(any(1, 7)) / 8;
    }
  const Matrices matrix = compress(dense, c.taps, c.dst_rows, c.src_rows, false);
  const Matrices transposed = compress(dense, c.taps, c.dst_rows, c.src_rows, true);
  std::vector<int64_t> blend_first(c.taps);
  for (auto& first : blend_first) first = any(0, 1);

  c.src = src.data.data(), c.dst = dst.data.data(), c.weight = weight.data.data();
  c.bias = chance(60) ? bias.data() : nullptr;
  std::copy(src.stride.begin(), src.stride.end(), c.src_stride);
  std::copy(dst.stride.begin(), dst.stride.end(), c.dst_stride);
  std::copy(weight.stride.begin(), weight.stride.end(), c.weight_stride);
  c.matrix = matrix.rows(c.dst_rows), c.transposed = transposed.rows(c.src_rows);
  c.blend_first = blend_first.data();
  const bool flipped = chance(30);  // the kernel, as for the input's gradient
  if (flipped) {
    c.weight = weight.data.data() + (c.kernel_time - 1) * c.weight_stride[4];
    c.weight_stride[4] *= -1;
  }

  // f(b, g, o, d, t, i, j, s, k, u, P_j[d,s]) for every product that the sum has
  const auto every = [&](auto f) {
    for (int64_t j = 0; j < c.taps; ++j)
      for (int64_t d = 0; d < c.dst_rows; ++d)
        for (int64_t s = 0; s < c.src_rows; ++s) {
          const double p = dense[(j * c.dst_rows + d) * c.src_rows + s];
          if (p == 0) continue;
          for (int64_t t = 0; t < c.dst_len; ++t)
            for (int64_t k = 0; k < c.kernel_time; ++k) {
              const int64_t time = t * c.stride + k * c.dilation - c.padding;
              if (time < 0 || time % c.input_dilation || time / c.input_dilation >= c.src_len) continue;
              for (int64_t b = 0; b < c.batch; ++b)
                for (int64_t g = 0; g < c.groups; ++g)
                  for (int64_t o = 0; o < c.out_channels; ++o)
                    for (int64_t i = 0; i < c.in_channels; ++i)
                      f(b, g, o, d, t, i, j, s, k, time / c.input_dilation, p);
            }
        }
  };
  const auto value = [](S x) {
    return static_cast<double>(static_cast<std::conditional_t<sizeof(S) == 8, double, float>>(x));
  };
  const auto twice = [&](int (*run)(const Call*), auto& written) {  // the second time with other threads
    if (run(&c)) return false;
    const auto first = written;
    c.threads = any(1, 4);
    return !run(&c) && !std::memcmp(first.data(), written.data(), first.size() * sizeof(S));
  };

  if (c.input_dilation == 1 && !flipped) {
    std::vector<Expected> sums(weight.data.size()), of_bias(bias.size());
    const auto at = [&](int64_t g, int64_t o, int64_t i, int64_t j, int64_t k) {
      return &weight.at(g, o, i, j, k) - weight.data.data();
    };
    every([&](int64_t b, int64_t g, int64_t o, int64_t d, int64_t t, int64_t i, int64_t j, int64_t s,
              int64_t k, int64_t u, double p) {
      sums[at(g, o, i, j, k)].add(p * value(dst.at(b, g * c.out_channels + o, d, t)) *
                                  value(src.at(b, g * c.in_channels + i, s, u)));
    });
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t o = 0; o < c.groups * c.out_channels; ++o)
        for (int64_t d = 0; d < c.dst_rows; ++d)
          for (int64_t t = 0; t < c.dst_len; ++t) of_bias[o].add(value(dst.at(b, o, d, t)));
    if (!twice(tap_conv_grad_weight, weight.data))
      return complain("grad_weight: failed or not the same twice", c, 0, {});
    for (int64_t g = 0; g < c.groups; ++g)
      for (int64_t o = 0; o < c.out_channels; ++o) {
        const double found = value(bias[g * c.out_channels + o]);
        const Expected& expected = of_bias[g * c.out_channels + o];
        if (c.bias && !close(found, expected, precision))
          return complain("gradient of the bias", c, found, expected);
        for (int64_t i = 0; i < c.in_channels; ++i)
          for (int64_t j = 0; j < c.taps; ++j)
            for (int64_t k = 0; k < c.kernel_time; ++k) {
              const int64_t x = at(g, o, i, j, k);
              if (!close(value(weight.data[x]), sums[x], precision))
                return complain("grad_weight", c, value(weight.data[x]), sums[x]);
            }
      }
  }
  for (S& x : weight.data) x = static_cast<S>(static_cast<float>(number(false)));  // written by grad_weight
  std::vector<Expected> sums(dst.data.size());
  const auto at = [&](int64_t b, int64_t o, int64_t d, int64_t t) {
    return &dst.at(b, o, d, t) - dst.data.data();
  };
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t o = 0; o < c.groups * c.out_channels; ++o)
      for (int64_t d = 0; d < c.dst_rows; ++d)
        for (int64_t t = 0; t < c.dst_len; ++t)
          if (c.bias) sums[at(b, o, d, t)].add(value(bias[o]));
  every([&](int64_t b, int64_t g, int64_t o, int64_t d, int64_t t, int64_t i, int64_t j, int64_t s, int64_t k,
            int64_t u, double p) {
    const int64_t column = flipped ? c.kernel_time - 1 - k : k;
    sums[at(b, g * c.out_channels + o, d, t)].add(p * value(weight.at(g, o, i, j, column)) *
                                                  value(src.at(b, g * c.in_channels + i, s, u)));
  });
  // Transforms round as the largest numbers of a block do, not as the terms of one sum.
  if (c.transforms) {
    double largest = 0;
    for (const Expected& x : sums) largest = std::max(largest, x.size);
    for (Expected& x : sums) x.size = largest;
  }
  if (!twice(tap_conv_apply, dst.data)) return complain("apply: failed or not the same twice", c, 0, {});
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t o = 0; o < c.groups * c.out_channels; ++o)
      for (int64_t d = 0; d < c.dst_rows; ++d)
        for (int64_t t = 0; t < c.dst_len; ++t) {
          const int64_t x = at(b, o, d, t);
          if (!close(value(dst.data[x]), sums[x], precision))
            return complain("apply", c, value(dst.data[x]), sums[x]);
        }

  // What is out of range is refused before anything is read.
  Call bad = c;
  int64_t* const fields[] = {&bad.dtype,          &bad.batch,   &bad.groups,     &bad.in_channels,
                             &bad.taps,           &bad.src_len, &bad.stride,     &bad.dilation,
                             &bad.input_dilation, &bad.threads, &bad.matrix.rows};
  int64_t& field = *fields[any(0, std::size(fields) - 1)];
  field = chance(50) ? -1 : INT64_MAX;
  if (!tap_conv_apply(&bad) || !tap_conv_apply(nullptr)) return complain("a bad call was taken", bad, 0, {});
  return 0;
}

// Every half and every kind of float: the conversions are exact, and rounded to nearest even.
int conversions() {
  for (uint32_t i = 0; i < 1 << 16; ++i) {
    Half half;
    BFloat16 bfloat;
    half.bits = bfloat.bits = static_cast<uint16_t>(i);
    const int exponent = i >> 10 & 31, fraction = i & 1023;
    const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                       : std::ldexp(fraction, -24);
    const float wide = static_cast<float>(half), brain = static_cast<float>(bfloat);
    const bool nan = std::isnan(size);
    if (nan ? !std::isnan(wide) : wide != (i >> 15 ? -size : size)) return std::printf("half %x\n", i), 1;
    if (nan ? !std::isnan(static_cast<float>(Half(wide))) : Half(wide).bits != i)
      return std::printf("to half %x\n", i), 1;
    if (!std::isnan(brain) && BFloat16(brain).bits != i) return std::printf("bfloat16 %x\n", i), 1;
    if (exponent == 31) continue;
    // Halfway to the next one goes to the even one; a little beside it to the nearer one.
    Half next;
    next.bits = static_cast<uint16_t>(i + 1);
    const double other =
        exponent == 30 && fraction == 1023 ? (i >> 15 ? -65536. : 65536.) : static_cast<float>(next);
    const float middle = static_cast<float>((static_cast<double>(wide) + other) / 2);
    const uint32_t even = i & 1 ? i + 1 : i;
    if (Half(middle).bits != even || Half(std::nextafter(middle, wide)).bits != i ||
        Half(std::nextafter(middle, static_cast<float>(other))).bits != i + 1)
      return std::printf("rounding to half %x\n", i), 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t calls = argc > 1 ? std::atoll(argv[1]) : 2000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  if (conversions()) return 1;
  for (int64_t i = 0; i < calls; ++i) {
    generator.seed(seed * 1000003 + i);
    int failed = 0;
    switch (any(0, 3)) {
      case 0:
        failed = one_call<float>(TAP_CONV_FLOAT, 1e-5);
        break;
      case 1:
        failed = one_call<double>(TAP_CONV_DOUBLE, 1e-13);
        break;
      case 2:
        failed = one_call<Half>(TAP_CONV_HALF, 1e-3);
        break;
      case 3:
#if defined(__AVX512BF16__)
        failed = one_call<BFloat16>(TAP_CONV_BFLOAT16, 1e-2);
#endif
        break;
    }
    if (failed) return std::printf("call %lld of seed %llu\n", (long long)i, (unsigned long long)seed), 1;
  }
  std::printf("%s: %lld random calls agree with plain loops\n", tap_conv_instruction_set(), (long long)calls);
}
