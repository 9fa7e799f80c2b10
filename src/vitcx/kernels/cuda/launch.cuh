// What the launchers share. Not for NVRTC: it needs the CUDA run-time library.
#ifndef VITCX_LAUNCH_CUH
#define VITCX_LAUNCH_CUH

#include <cuda_runtime.h>

#include "vitcx_kernels.h"

namespace vitcx {

constexpr int32_t kMostInGrid = 65535;  // the most blocks a grid can have in y

struct device_shape {
  int resident_blocks;  // of this kernel on the whole device at once
};

// How many blocks of `kernel` the current device holds at once. Three cheap attribute look-ups; none
// synchronises, and all are allowed while a CUDA graph is being recorded.
inline int query_device(const void* kernel, int threads, device_shape* shape) {
  int device = 0, processors = 0, per_processor = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, 0);
  }
  shape->resident_blocks = processors * per_processor;
  return static_cast<int>(status);
}

// The sizes that bilinear.cuh can count with, and an image that a 32-bit index can walk.
inline bool is_grid(int32_t grid_height, int32_t grid_width, int32_t height, int32_t width) {
  constexpr int64_t most = int64_t{1} << 29;
  return grid_height > 0 && grid_width > 0 && height > 0 && width > 0 &&
         int64_t{height} * grid_height < most && int64_t{width} * grid_width < most &&
         int64_t{height} * width < most;
}

inline unsigned blocks_for(int64_t items, int threads) {
  return static_cast<unsigned>((items + threads - 1) / threads);
}

}  // namespace vitcx

#endif  // VITCX_LAUNCH_CUH
