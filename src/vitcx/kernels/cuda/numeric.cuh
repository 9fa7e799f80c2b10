// What the device logic stands on: fixed-size types, bit casts, rounding to 16 bits, 16-byte access.
//
// Plain C++ that g++, nvcc and NVRTC all take, so that the CPU tests run the very lines the GPU runs.
// Products that feed a sum are written as fmaf: then no compiler has a contraction left to choose,
// and host and device give the same bits.
#ifndef VITCX_NUMERIC_CUH
#define VITCX_NUMERIC_CUH

#include "vitcx_kernels.h"

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

struct float16 {
  unsigned short bits;
};

struct bfloat16 {
  unsigned short bits;
};

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

// Round to the nearest float16, ties to even. Too large becomes infinity, NaN stays NaN.
VITCX_HD float16 to_float16(float value) {
#ifdef __CUDA_ARCH__
  float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;  // NaN
  } else if (magnitude >= 0x47800000u) {
    half = 0x7c00u;  // 65536 and above
  } else if (magnitude >= 0x38800000u) {
    // Normal: drop 13 bits, round, move the exponent's bias from 127 to 15. A carry out of the
    // significand raises the exponent, up to infinity, as it should.
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  } else {
    // Subnormal: near 0.5 a float's last place is 2^-24, so this sum rounds to the right place.
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  }
  return float16{static_cast<unsigned short>(sign | half)};
#endif
}

// Round to the nearest bfloat16, ties to even. NaN becomes the canonical one.
VITCX_HD bfloat16 to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bfloat16{0x7fff};
  return bfloat16{static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

VITCX_HD void convert(float value, float& out) { out = value; }
VITCX_HD void convert(float value, float16& out) { out = to_float16(value); }
VITCX_HD void convert(float value, bfloat16& out) { out = to_bfloat16(value); }

// Elements of one 16-byte store.
template <typename T>
struct vector_width {
  static const int value = static_cast<int>(16 / sizeof(T));
};

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
