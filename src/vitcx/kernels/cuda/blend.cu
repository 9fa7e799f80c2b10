// The blend kernel, one per element type, and its launcher.
//
// Grid: x covers the runs of one image (16 stored bytes each), y the jobs, z the channels, by
// channel_stride = gridDim.z: one thread takes all channels where there are jobs enough to fill the
// device, because then the mask is upsampled once for them, and one channel where there are few.
#include "blend.cuh"

namespace vitcx {

template <typename T>
__device__ __forceinline__ void blend_block(const vitcx_blend_params& p) {
  constexpr int width = vector_width<T>::value;
  const int per_row = runs_per_row(p.width, width);
  const int run = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (run >= per_row * p.height) return;
  const int y = run / per_row;
  blend_run<T, width>(p, p.jobs[blockIdx.y], y, (run - y * per_row) * width,
                      static_cast<int>(blockIdx.z), static_cast<int>(gridDim.z),
                      runs_are_aligned<width>(p));
}

}  // namespace vitcx

// Plain arguments rather than the struct: any binding can pass them.
#define VITCX_BLEND_KERNEL(NAME, TYPE, DTYPE)                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                \
      NAME(const float* __restrict__ images, const float* __restrict__ masks,                      \
           const vitcx_blend_job* __restrict__ jobs, void* __restrict__ out, int job_count,        \
           int channels, int height, int width, int grid_height, int grid_width) {                 \
    vitcx::blend_block<TYPE>(vitcx_blend_params{images, masks, jobs, out, job_count, channels,     \
                                                height, width, grid_height, grid_width, DTYPE});   \
  }

VITCX_BLEND_KERNEL(vitcx_blend_float32, float, VITCX_FLOAT32)
VITCX_BLEND_KERNEL(vitcx_blend_float16, vitcx::float16, VITCX_FLOAT16)
VITCX_BLEND_KERNEL(vitcx_blend_bfloat16, vitcx::bfloat16, VITCX_BFLOAT16)

#ifndef __CUDACC_RTC__

#include "launch.cuh"

namespace {

bool is_valid(const vitcx_blend_params* p) {
  return p != nullptr && p->images != nullptr && p->masks != nullptr && p->jobs != nullptr &&
         p->out != nullptr && p->job_count >= 0 && p->channels > 0 &&
         vitcx::is_grid(p->grid_height, p->grid_width, p->height, p->width) &&
         p->dtype >= VITCX_FLOAT32 && p->dtype <= VITCX_BFLOAT16;
}

}  // namespace

int vitcx_blend_launch(const vitcx_blend_params* params, void* stream) {
  if (!is_valid(params)) return VITCX_INVALID_ARGUMENT;
  const vitcx_blend_params& p = *params;
  const int run = p.dtype == VITCX_FLOAT32 ? 4 : 8;
  const int64_t runs = int64_t{vitcx::runs_per_row(p.width, run)} * p.height;
  const auto kernel = p.dtype == VITCX_FLOAT32   ? vitcx_blend_float32
                      : p.dtype == VITCX_FLOAT16 ? vitcx_blend_float16
                                                 : vitcx_blend_bfloat16;
  vitcx::device_shape device;
  int status = vitcx::query_device(reinterpret_cast<const void*>(kernel), 256, &device);
  if (status != VITCX_SUCCESS) return status;

  const unsigned blocks = vitcx::blocks_for(runs, 256);
  for (int32_t first = 0; first < p.job_count; first += vitcx::kMostJobs) {
    const int32_t left = p.job_count - first;
    const int32_t count = left < vitcx::kMostJobs ? left : vitcx::kMostJobs;
    const bool fills = int64_t{blocks} * count >= device.resident_blocks;
    const dim3 grid(blocks, static_cast<unsigned>(count),
                    fills ? 1u : static_cast<unsigned>(p.channels < 64 ? p.channels : 64));
    kernel<<<grid, 256, 0, static_cast<cudaStream_t>(stream)>>>(
        p.images, p.masks, p.jobs + first, p.out, count, p.channels, p.height, p.width,
        p.grid_height, p.grid_width);
    status = static_cast<int>(cudaGetLastError());
    if (status != VITCX_SUCCESS) return status;
  }
  return VITCX_SUCCESS;
}

const char* vitcx_status_string(int status) {
  if (status == VITCX_SUCCESS) return "success";
  if (status == VITCX_INVALID_ARGUMENT) return "invalid argument: a null pointer or a size out of range";
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

#endif  // __CUDACC_RTC__
