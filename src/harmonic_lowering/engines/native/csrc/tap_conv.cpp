// Convolution over frequency taps on the CPU: the native core, behind the engine "native".
//
//   dst[b,o,d,t] = bias[o] + sum_j sum_s P_j[d,s] sum_c sum_k weight[o,c,j,k] src[b,c,s,u]
//   u = t*stride + k*dilation - padding
//
// P_j is the sparse matrix of tap j: which rows s bin d reads, and with what weights (one row where the
// position is whole, two where it lies between bins, none where it is outside). The input gradient is the
// same sum with the transposed matrices and the flipped kernel, so apply() serves both; the weight gradient
// is grad_weight().
//
// What makes it fast:
//  - P_j acts on frequency, the kernel on channels and time, so they may be applied in either order. Tap by
//  tap the
//    order that convolves fewer rows is taken (`blend_first`).
//  - A source row is copied once, zero-padded, into the cache, in the layout that the caller's tensors have;
//  nothing is
//    gathered or unfolded.
//  - A tile of registers sums over all taps, channels and kernel columns before it is written, once.
// Tasks are (batch item, group, stretch of time) on threads that the caller lends. The order of every sum is
// fixed by the geometry, so results do not depend on the number of threads.
//
// It is a C library: it throws nothing, needs no C++ runtime and no threads of its own. Each instruction set
// has its own library, because one library with several would keep one copy of what they have in common, for
// any of them.
//
//   call.h         the interface
//   tasks.h        memory, tasks
//   scalars.h      half types
//   vectors.h      registers: types, transposing
//   rows.h         packing and blending of rows
//   apply.h        output, gradient of the input
//   grad_weight.h  gradient of the weight
#include "apply.h"
#include "grad_weight.h"

namespace {

constexpr int64_t kMost = INT64_C(1) << 60;  // of any size or distance: sums of a few of them do not overflow

// Whether the product of positive numbers is at most kMost.
template <class... N>
bool product_fits(N... factors) {
  int64_t product = 1;
  return (... && (factors > 0 && factors <= kMost / product && (product *= factors, true)));
}

bool valid(const Rows& m, int64_t taps, int64_t rows) {
  if (!m.pointer || m.rows != rows) return false;
  const int64_t entries = m.pointer[taps * (rows + 1) - 1];
  return entries == 0 || (entries > 0 && m.column && m.value);
}

bool valid(const Call& c, bool needs_transposed) {
  const bool sizes = product_fits(c.batch, c.groups, c.in_channels, c.src_rows, c.src_len, 8) &&
                     product_fits(c.batch, c.groups, c.out_channels, c.dst_rows, c.dst_len, 8) &&
                     product_fits(c.groups, c.out_channels, c.in_channels, c.taps, c.kernel_time, 8);
  const bool time = product_fits(c.kernel_time, c.dilation) && product_fits(c.dst_len, c.stride) &&
                    product_fits(c.src_len, c.input_dilation) && c.padding >= -kMost && c.padding <= kMost &&
                    (c.stride == 1 || c.input_dilation == 1);
  const bool threads =
      c.threads >= 1 && c.threads <= 1 << 20 && (c.threads == 1 || c.parallel_for || c.gomp_parallel);
  return sizes && time && threads && c.src && c.dst && c.weight && c.blend_first &&
         valid(c.matrix, c.taps, c.dst_rows) &&
         (!needs_transposed || valid(c.transposed, c.taps, c.src_rows));
}

template <class F>
int dispatch(const Call* c, bool needs_transposed, const F& compute) {
  if (!c || !valid(*c, needs_transposed)) return TAP_CONV_INVALID;
  switch (c->dtype) {
    case TAP_CONV_FLOAT:
      return compute(float());
    case TAP_CONV_DOUBLE:
      return compute(double());
    case TAP_CONV_HALF:
      return compute(Half());
#if defined(__AVX512BF16__)  // elsewhere stock calls are as fast
    case TAP_CONV_BFLOAT16:
      return compute(BFloat16());
#endif
  }
  return TAP_CONV_NO_DTYPE;
}

}  // namespace

int tap_conv_apply(const Call* c) {
  return dispatch(c, false, [&](auto scalar) { return apply<decltype(scalar)>(*c); });
}
int tap_conv_grad_weight(const Call* c) {
  return dispatch(c, true, [&](auto scalar) { return grad_weight<decltype(scalar)>(*c); });
}
int tap_conv_abi() { return TAP_CONV_ABI; }
int tap_conv_call_size() { return sizeof(Call); }
const char* tap_conv_instruction_set() {
#if defined(__AVX512BF16__)
  return "x86-64-v4-bf16";
#elif defined(__AVX512F__)
  return "x86-64-v4";
#elif defined(__AVX2__)
  return "x86-64-v3";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "baseline";
#endif
}
