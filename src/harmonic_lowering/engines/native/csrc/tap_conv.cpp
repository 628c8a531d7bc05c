// Convolution over frequency taps on the CPU: the native core, behind the engine "native".
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
//  - A source row is copied once, zero-padded, into the cache, in the layout that the caller's tensors have; nothing is
//    gathered or unfolded.
//  - A tile of registers sums over all taps, channels and kernel columns before it is written, once.
// Tasks are (batch item, group, stretch of time) on torch's own threads. The order of every sum is fixed by the
// geometry, so results do not depend on the number of threads.
//
//   call.h         what is asked for, tasks, workspaces
//   vectors.h      registers: types, transposing
//   rows.h         packing and blending of rows
//   apply.h        output, gradient of the input
//   grad_weight.h  gradient of the weight
#include "apply.h"
#include "grad_weight.h"

namespace {

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
