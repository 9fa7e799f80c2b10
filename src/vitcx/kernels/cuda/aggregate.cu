// Kernels and launchers of aggregate.cuh: one thread per element.
#include "aggregate.cuh"

extern "C" __global__ void __launch_bounds__(128)
    vitcx_weighted_masks(const float* __restrict__ impacts, const float* __restrict__ masks,
                         float* __restrict__ low, int targets, int count, int cells) {
  const int cell = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (cell >= cells) return;
  const int target = static_cast<int>(blockIdx.y);
  const float* weights =
      target < targets ? impacts + static_cast<int64_t>(target) * count : nullptr;
  low[static_cast<int64_t>(target) * cells + cell] =
      vitcx::weighted_mean(weights, masks, count, cells, cell);
}

extern "C" __global__ void __launch_bounds__(256)
    vitcx_saliency(const float* __restrict__ low, float* __restrict__ saliency,
                   float* __restrict__ coverage, int targets, int grid_height, int grid_width,
                   int height, int width, int correct_coverage) {
  const int pixel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (pixel >= height * width) return;
  const int cells = grid_height * grid_width;
  const vitcx::sample row = vitcx::axis_walk(pixel / width, height, grid_height).here();
  const vitcx::sample column = vitcx::axis_walk(pixel % width, width, grid_width).here();
  const float covered = vitcx::clamped_coverage(vitcx::interpolate(
      low + static_cast<int64_t>(targets) * cells, grid_width, row, column));
  if (coverage != nullptr) coverage[pixel] = covered;
  for (int target = 0; target < targets; ++target) {
    const float weighted = vitcx::interpolate(low + static_cast<int64_t>(target) * cells,
                                              grid_width, row, column);
    saliency[static_cast<int64_t>(target) * height * width + pixel] =
        vitcx::corrected(weighted, covered, correct_coverage != 0);
  }
}

#ifndef __CUDACC_RTC__

#include "launch.cuh"

int vitcx_weighted_masks_launch(const float* impacts, const float* masks, float* low,
                                int32_t targets, int32_t count, int32_t cells, void* stream) {
  if (impacts == nullptr || masks == nullptr || low == nullptr || targets < 0 ||
      targets >= vitcx::kMostInGrid || count <= 0 || cells <= 0) {
    return VITCX_INVALID_ARGUMENT;
  }
  const dim3 grid(vitcx::blocks_for(cells, 128), static_cast<unsigned>(targets + 1));
  vitcx_weighted_masks<<<grid, 128, 0, static_cast<cudaStream_t>(stream)>>>(impacts, masks, low,
                                                                            targets, count, cells);
  return static_cast<int>(cudaGetLastError());
}

int vitcx_saliency_launch(const float* low, float* saliency, float* coverage, int32_t targets,
                          int32_t grid_height, int32_t grid_width, int32_t height, int32_t width,
                          int32_t correct_coverage, void* stream) {
  if (low == nullptr || saliency == nullptr || targets < 0 ||
      !vitcx::is_grid(grid_height, grid_width, height, width)) {
    return VITCX_INVALID_ARGUMENT;
  }
  const unsigned blocks = vitcx::blocks_for(int64_t{height} * width, 256);
  vitcx_saliency<<<blocks, 256, 0, static_cast<cudaStream_t>(stream)>>>(
      low, saliency, coverage, targets, grid_height, grid_width, height, width, correct_coverage);
  return static_cast<int>(cudaGetLastError());
}

#endif  // __CUDACC_RTC__
