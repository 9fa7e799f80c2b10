// The final map: S / K = U(mean s_k m_k) / rho with rho = U(mean m_k), and 0 where rho is 0.
//
// Both sums run over the patch grid, before upsampling: U is linear.
#ifndef VITCX_AGGREGATE_CUH
#define VITCX_AGGREGATE_CUH

#include "bilinear.cuh"

namespace vitcx {

// One cell of the mean of weights[k] m_k; without weights, of m_k.
VITCX_HD float weighted_mean(const float* weights, const float* masks, int count, int cells,
                             int cell) {
  float sum = 0.0f;
  for (int k = 0; k < count; ++k) {
    const float value = masks[static_cast<int64_t>(k) * cells + cell];
    sum = fmaf(weights != nullptr ? weights[k] : 1.0f, value, sum);
  }
  return sum / static_cast<float>(count);
}

// The masks' values lie in [0, 1]; rounding must not take their mean out of it.
VITCX_HD float clamped_coverage(float value) {
  return value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
}

// Below 1e-6 a coverage is the float32 rounding of zero. The bound is runtime/method/aggregation.py's.
VITCX_HD float corrected(float weighted, float coverage, bool correct_coverage) {
  if (!correct_coverage) return weighted;
  return coverage > 1e-6f ? weighted / coverage : 0.0f;
}

}  // namespace vitcx

#endif  // VITCX_AGGREGATE_CUH
