// What the device logic stands on: fixed-size types, bit casts, 16-byte access.
//
// Plain C++ that g++, nvcc and NVRTC all take, so that the CPU tests run the very lines the GPU runs.
// Products that feed a sum are written as fmaf: then no compiler has a contraction left to choose,
// and host and device give the same bits.
#ifndef VITCX_NUMERIC_CUH
#define VITCX_NUMERIC_CUH

#include "vitcx_kernels.h"

#ifdef __CUDA_ARCH__
#define VITCX_UNROLL _Pragma("unroll")
#else
#define VITCX_UNROLL
#endif

#ifdef __CUDACC__
#define VITCX_HD __host__ __device__ __forceinline__
#else
#define VITCX_HD inline
#endif

#ifndef __CUDACC_RTC__
#include <math.h>
#include <string.h>
#endif

namespace vitcx {

VITCX_HD uint32_t float_bits(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

VITCX_HD float bits_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

struct alignas(16) sixteen_bytes {
  uint32_t words[4];
};

// Copy WIDTH elements (a multiple of 16 bytes) between places aligned to 16 bytes.
template <typename T, int WIDTH>
VITCX_HD void copy_aligned(T* to, const T* from) {
  static_assert(sizeof(T) * WIDTH % 16 == 0, "whole 16-byte pieces");
#ifdef __CUDA_ARCH__
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T) * WIDTH / 16); ++i) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
#else
  memcpy(to, from, sizeof(T) * WIDTH);
#endif
}

}  // namespace vitcx

#endif  // VITCX_NUMERIC_CUH
