// Counter-based noise: Philox4x32-10 and Box-Muller. The definition is in kernels/host/philox.py.
//
// Source of the generator: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3"
// (SC 2011). The logarithm, sine and cosine are polynomials of our own: their arguments are 24-bit
// integers, so the reduction is exact and short, there is no slow path for large arguments, and host
// and device agree to the last bit. Over every argument there is, the logarithm is within a
// relative 1e-7 of the true value, sine and cosine within 1e-7 (tests/kernels).
#ifndef VITCX_PHILOX_CUH
#define VITCX_PHILOX_CUH

#include "numeric.cuh"

namespace vitcx {

struct words4 {
  uint32_t v[4];
};

// Ten rounds of Philox4x32. A 64-bit product rather than __umulhi, which the host does not have; the
// compiler makes one wide multiplication of it.
VITCX_HD words4 philox4x32_10(words4 counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.v[0], c1 = counter.v[1], c2 = counter.v[2], c3 = counter.v[3];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return words4{{c0, c1, c2, c3}};
}

// log(1 - n / 2^24) for n in [0, 2^24): 0 at n = 0, -16.6 at the other end.
VITCX_HD float log_of_complement(uint32_t n) {
  // 1 - n / 2^24 is exact in float32. Split it into 2^e f with f in [2/3, 4/3).
  const float value = static_cast<float>(0x1000000u - n) * 5.9604644775390625e-08f;
  const uint32_t bits = float_bits(value);
  const uint32_t exponent = (bits - 0x3f2aaaabu) & 0xff800000u;
  const float t = bits_float(bits - exponent) - 1.0f;
  // e lies in the top bits; scaled by 2^-23 as a signed number it is the exponent.
  const float e = static_cast<float>(static_cast<int32_t>(exponent)) * 1.1920928955078125e-07f;
  float q = 0.14026351273059845f;
  q = fmaf(q, t, -0.15388540923595428f);
  q = fmaf(q, t, 0.13995808362960815f);
  q = fmaf(q, t, -0.1641596108675003f);
  q = fmaf(q, t, 0.20011168718338013f);
  q = fmaf(q, t, -0.2500782012939453f);
  q = fmaf(q, t, 0.33333197236061096f);
  q = fmaf(q, t, -0.49999937415122986f);
  const float square = t * t;
  return fmaf(e, 0.6931471824645996f, fmaf(square, q, t));
}

// Cosine and sine of 2 pi n / 2^24, for n in [0, 2^24).
VITCX_HD void cosine_sine(uint32_t n, float& cosine, float& sine) {
  // The nearest quarter turn, and what is left of it in turns: within [-1/8, 1/8], exact.
  const uint32_t quarter = (n + 0x200000u) >> 22;
  const int32_t rest = static_cast<int32_t>(n) - static_cast<int32_t>(quarter << 22);
  const float t = static_cast<float>(rest) * 5.9604644775390625e-08f;
  const float z = t * t;
  float s = -75.40206909179688f;
  s = fmaf(s, z, 81.5925521850586f);
  s = fmaf(s, z, -41.3416633605957f);
  s = fmaf(s, z, 6.2831854820251465f);
  s = s * t;
  float c = -83.66592407226562f;
  c = fmaf(c, z, 64.92322540283203f);
  c = fmaf(c, z, -19.739168167114258f);
  c = fmaf(c, z, 1.0f);
  const bool swapped = (quarter & 1u) != 0;
  const uint32_t cosine_sign = ((quarter + 1u) & 2u) << 30;
  const uint32_t sine_sign = (quarter & 2u) << 30;
  cosine = bits_float(float_bits(swapped ? s : c) ^ cosine_sign);
  sine = bits_float(float_bits(swapped ? c : s) ^ sine_sign);
}

// Four standard normals of one Philox call: Z_k(c, y, 4 quad) ... Z_k(c, y, 4 quad + 3).
VITCX_HD void four_normals(uint64_t seed, uint32_t mask_index, uint32_t channel, uint32_t y,
                           uint32_t quad, float* normals) {
  const words4 words =
      philox4x32_10(words4{{quad, y, channel, mask_index}}, static_cast<uint32_t>(seed),
                    static_cast<uint32_t>(seed >> 32));
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int pair = 0; pair < 4; pair += 2) {
    const float radius = sqrtf(-2.0f * log_of_complement(words.v[pair] >> 8));
    float cosine, sine;
    cosine_sine(words.v[pair + 1] >> 8, cosine, sine);
    normals[pair] = radius * cosine;
    normals[pair + 1] = radius * sine;
  }
}

}  // namespace vitcx

#endif  // VITCX_PHILOX_CUH
