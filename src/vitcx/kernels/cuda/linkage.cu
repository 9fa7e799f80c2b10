// Kernel and launcher of linkage.cuh: one block per picture, which meets after each step.
#include "linkage.cuh"

extern "C" __global__ void __launch_bounds__(768)
    vitcx_complete_linkage(float* distances, const int32_t* kept, const float* thresholds,
                           int32_t* room, int32_t* members, int32_t* offsets, int32_t* clusters,
                           int count) {
  __shared__ vitcx::linkage_counts counts;
  const int picture = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x), lanes = static_cast<int>(blockDim.x);
  const vitcx::linkage l =
      vitcx::linkage_of(distances, kept, thresholds[picture], room, picture, count);
  if (lane == 0) counts = vitcx::linkage_counts{{0, 0}, 0, 0};
  __syncthreads();
  vitcx::linkage_begin(l, counts, lane, lanes);
  __syncthreads();
  const int clustered = counts.lists[0];
  for (int round = 0;; ++round) {
    vitcx::linkage_nearest(l, counts, round, lane, lanes);
    __syncthreads();
    vitcx::linkage_pair(l, counts, round, lane, lanes);
    __syncthreads();
    if (counts.heads == 0 || counts.refused != 0) break;
    vitcx::linkage_merge(l, counts, round, false, lane, lanes);
    __syncthreads();
    vitcx::linkage_merge(l, counts, round, true, lane, lanes);
    __syncthreads();
    vitcx::linkage_next(l, counts, round, lane, lanes);
    __syncthreads();
  }
  if (counts.refused != 0) {
    if (lane == 0) clusters[picture] = VITCX_REFUSED;
    return;
  }
  vitcx::linkage_roots(l, lane, lanes);
  __syncthreads();
  int32_t* begins = offsets + static_cast<int64_t>(picture) * (count + 1);
  vitcx::linkage_members(l, counts, members + static_cast<int64_t>(picture) * count, begins, lane,
                         lanes);
  __syncthreads();
  if (lane == 0) {
    clusters[picture] = counts.heads;
    begins[counts.heads] = clustered;
  }
}

#ifndef __CUDACC_RTC__

#include "launch.cuh"

int vitcx_complete_linkage_launch(float* distances, const int32_t* kept, const float* thresholds,
                                  int32_t* room, int32_t* members, int32_t* offsets,
                                  int32_t* clusters, int32_t pictures, int32_t count,
                                  void* stream) {
  if (distances == nullptr || kept == nullptr || thresholds == nullptr || room == nullptr ||
      members == nullptr || offsets == nullptr || clusters == nullptr || pictures < 0 ||
      count <= 0 || count > vitcx::kMostClustered) {
    return VITCX_INVALID_ARGUMENT;
  }
  if (pictures == 0) return VITCX_SUCCESS;
  const unsigned lanes = count < 768 ? 32u * vitcx::blocks_for(count, 32) : 768u;
  vitcx_complete_linkage<<<static_cast<unsigned>(pictures), lanes, 0,
                           static_cast<cudaStream_t>(stream)>>>(
      distances, kept, thresholds, room, members, offsets, clusters, count);
  return static_cast<int>(cudaGetLastError());
}

#endif  // __CUDACC_RTC__
