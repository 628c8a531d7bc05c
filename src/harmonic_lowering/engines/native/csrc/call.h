// The interface of the core: plain C. `Call` says what is computed and on whose threads.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define TAP_CONV_API __declspec(dllexport)
#else
#define TAP_CONV_API __attribute__((visibility("default")))
#endif

enum { TAP_CONV_ABI = 2 };  // raised with every change of this file; library.py has the same number

typedef enum {
  TAP_CONV_OK = 0,
  TAP_CONV_INVALID = 1,
  TAP_CONV_NO_MEMORY = 2,
  TAP_CONV_NO_DTYPE = 3
} TapConvStatus;
typedef enum {
  TAP_CONV_FLOAT = 0,
  TAP_CONV_DOUBLE = 1,
  TAP_CONV_HALF = 2,
  TAP_CONV_BFLOAT16 = 3
} TapConvDtype;

// All P_j in compressed rows: entries pointer[j*(rows+1)+d] .. pointer[j*(rows+1)+d+1] belong to row d.
typedef struct {
  const int64_t* pointer;
  const int64_t* column;
  const double* value;
  int64_t rows;
} Rows;

typedef struct {  // mirrored field by field in library.py
  int64_t dtype, batch, groups, in_channels, out_channels, taps, kernel_time;  // channels of one group
  int64_t src_rows, src_len, dst_rows, dst_len;
  int64_t stride, input_dilation, dilation, padding;  // in time; stride or input_dilation is 1
  const void* src;
  int64_t src_stride[4];  // batch, channel, row, time; counted in elements
  void* dst;              // for grad_weight: the gradient of the output, which is read
  int64_t dst_stride[4];
  void* weight;
  int64_t weight_stride[5];  // group, out, in, tap, time
  void* bias;                // null for none; for grad_weight: its gradient, which is written
  Rows matrix, transposed;
  const int64_t* blend_first;  // per tap: 1 = blend the rows, then convolve; 0 = convolve, then blend
  int64_t transforms;  // whether float sums may be those of transforms along time, a little less exact
  // The threads to run on: how many, and torch_parallel_for (libtorch), or GOMP_parallel (an OpenMP library),
  // or null for both, which needs threads == 1.
  int64_t threads;
  int (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*)(int64_t, int64_t, void*), void*);
  void (*gomp_parallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
} Call;

TAP_CONV_API int tap_conv_apply(const Call* call);
TAP_CONV_API int tap_conv_grad_weight(const Call* call);
TAP_CONV_API int tap_conv_abi(void);
TAP_CONV_API int tap_conv_call_size(void);
TAP_CONV_API const char* tap_conv_instruction_set(void);

#ifdef __cplusplus
}
#endif
