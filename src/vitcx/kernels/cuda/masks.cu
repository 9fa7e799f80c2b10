// Kernels and launchers of masks.cuh. One block of one warp per channel or cluster where extremes are
// wanted (their work is small and there are hundreds of channels), one thread per element elsewhere.
#include "masks.cuh"

namespace vitcx {

__device__ __forceinline__ extremes warp_extremes(extremes e) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    e = merge(e, extremes{__shfl_xor_sync(0xffffffffu, e.low, offset),
                          __shfl_xor_sync(0xffffffffu, e.high, offset)});
  }
  return e;
}

}  // namespace vitcx

extern "C" __global__ void __launch_bounds__(32)
    vitcx_normalise(const float* __restrict__ embedding, float* __restrict__ masks,
                    int32_t* __restrict__ kept, int grid_height, int grid_width, int height,
                    int width) {
  const int cells = grid_height * grid_width;
  const float* channel = embedding + static_cast<int64_t>(blockIdx.x) * cells;
  float* mask = masks + static_cast<int64_t>(blockIdx.x) * cells;
  const vitcx::grid_shape shape{grid_height, grid_width, height, width};
  const vitcx::extremes found = vitcx::warp_extremes(
      vitcx::surface_extremes(channel, shape, static_cast<int>(threadIdx.x), 32));
  const float others =
      vitcx::has_others_than_numbers(channel, cells, static_cast<int>(threadIdx.x), 32) ? 1.0f
                                                                                        : 0.0f;
  const bool refused = vitcx::warp_extremes(vitcx::extremes{others, others}).high > 0.0f;
  const int keeps = vitcx::kept_as(refused, vitcx::varies(found));
  for (int i = static_cast<int>(threadIdx.x); i < cells; i += 32) {
    mask[i] = keeps > 0 ? vitcx::normalised(channel[i], found) : 0.0f;
  }
  if (kept != nullptr && threadIdx.x == 0) kept[blockIdx.x] = keeps;
}

extern "C" __global__ void __launch_bounds__(256)
    vitcx_gram_apply(const float* __restrict__ masks, const float* __restrict__ gram_rows,
                     const float* __restrict__ gram_columns, float* __restrict__ out, int count,
                     int grid_height, int grid_width) {
  const int cells = grid_height * grid_width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<int64_t>(count) * cells) return;
  const int64_t channel = i / cells;
  const int cell = static_cast<int>(i - channel * cells);
  out[i] = vitcx::gram_element(masks + channel * cells, gram_rows, gram_columns, grid_height,
                               grid_width, cell / grid_width, cell % grid_width);
}

extern "C" __global__ void __launch_bounds__(256)
    vitcx_cosine_distance(float* products, int count) {
  const int row = static_cast<int>(blockIdx.y);
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column <= row || column >= count) return;
  vitcx::distance_of_pair(products + static_cast<int64_t>(blockIdx.z) * count * count, row, column,
                          count);
}

extern "C" __global__ void __launch_bounds__(32)
    vitcx_cluster_masks(const float* __restrict__ masks, const int32_t* __restrict__ members,
                        const int32_t* __restrict__ offsets, const int32_t* __restrict__ clusters,
                        const int32_t* __restrict__ modes, float* out, int count, int grid_height,
                        int grid_width, int height, int width) {
  const int cluster = static_cast<int>(blockIdx.x), picture = static_cast<int>(blockIdx.y);
  if (cluster >= clusters[picture]) return;
  const int cells = grid_height * grid_width;
  const int64_t first = static_cast<int64_t>(picture) * count;
  const int32_t* begins = offsets + first + picture + cluster;
  float* mask = out + (first + cluster) * cells;
  for (int i = static_cast<int>(threadIdx.x); i < cells; i += 32) {
    mask[i] = vitcx::cluster_mean(masks + first * cells, members + first, begins[0], begins[1],
                                  cells, i);
  }
  if (modes[picture] != VITCX_CLUSTER_RENORMALISED) return;
  __syncwarp();  // the extremes read what other lanes wrote
  const vitcx::grid_shape shape{grid_height, grid_width, height, width};
  const vitcx::extremes found = vitcx::warp_extremes(
      vitcx::surface_extremes(mask, shape, static_cast<int>(threadIdx.x), 32));
  if (!vitcx::varies(found)) return;
  __syncwarp();  // all have read before any overwrites
  for (int i = static_cast<int>(threadIdx.x); i < cells; i += 32) {
    mask[i] = vitcx::normalised(mask[i], found);
  }
}

#ifndef __CUDACC_RTC__

#include "launch.cuh"

int vitcx_normalise_launch(const float* embedding, float* masks, int32_t* kept, int32_t count,
                           int32_t grid_height, int32_t grid_width, int32_t height, int32_t width,
                           void* stream) {
  if (embedding == nullptr || masks == nullptr || count < 0 ||
      !vitcx::is_grid(grid_height, grid_width, height, width)) {
    return VITCX_INVALID_ARGUMENT;
  }
  if (count == 0) return VITCX_SUCCESS;
  vitcx_normalise<<<static_cast<unsigned>(count), 32, 0, static_cast<cudaStream_t>(stream)>>>(
      embedding, masks, kept, grid_height, grid_width, height, width);
  return static_cast<int>(cudaGetLastError());
}

int vitcx_gram_apply_launch(const float* masks, const float* gram_rows, const float* gram_columns,
                            float* out, int32_t count, int32_t grid_height, int32_t grid_width,
                            void* stream) {
  if (masks == nullptr || gram_rows == nullptr || gram_columns == nullptr || out == nullptr ||
      count < 0 || grid_height <= 0 || grid_width <= 0) {
    return VITCX_INVALID_ARGUMENT;
  }
  if (count == 0) return VITCX_SUCCESS;
  const unsigned blocks = vitcx::blocks_for(int64_t{count} * grid_height * grid_width, 256);
  vitcx_gram_apply<<<blocks, 256, 0, static_cast<cudaStream_t>(stream)>>>(
      masks, gram_rows, gram_columns, out, count, grid_height, grid_width);
  return static_cast<int>(cudaGetLastError());
}

int vitcx_cosine_distance_launch(float* products, int32_t pictures, int32_t count, void* stream) {
  if (products == nullptr || pictures < 0 || pictures > vitcx::kMostInGrid || count < 0 ||
      count > vitcx::kMostInGrid) {
    return VITCX_INVALID_ARGUMENT;
  }
  if (count < 2 || pictures == 0) return VITCX_SUCCESS;
  const dim3 grid(vitcx::blocks_for(count, 256), static_cast<unsigned>(count - 1),
                  static_cast<unsigned>(pictures));
  vitcx_cosine_distance<<<grid, 256, 0, static_cast<cudaStream_t>(stream)>>>(products, count);
  return static_cast<int>(cudaGetLastError());
}

int vitcx_cluster_masks_launch(const float* masks, const int32_t* members, const int32_t* offsets,
                               const int32_t* clusters, const int32_t* modes, float* out,
                               int32_t pictures, int32_t count, int32_t grid_height,
                               int32_t grid_width, int32_t height, int32_t width, void* stream) {
  if (masks == nullptr || members == nullptr || offsets == nullptr || clusters == nullptr ||
      modes == nullptr || out == nullptr || pictures < 0 || pictures > vitcx::kMostInGrid ||
      count < 0 || !vitcx::is_grid(grid_height, grid_width, height, width)) {
    return VITCX_INVALID_ARGUMENT;
  }
  if (count == 0 || pictures == 0) return VITCX_SUCCESS;
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(pictures));
  vitcx_cluster_masks<<<grid, 32, 0, static_cast<cudaStream_t>(stream)>>>(
      masks, members, offsets, clusters, modes, out, count, grid_height, grid_width, height, width);
  return static_cast<int>(cudaGetLastError());
}

#endif  // __CUDACC_RTC__
