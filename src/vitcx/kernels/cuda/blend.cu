// The blend kernel and its launcher.
//
// Grid: x covers the runs of one image (16 stored bytes each), y the perturbations, z the channels,
// by channel_stride = gridDim.z: one thread takes all channels where there are perturbations enough
// to fill the device, because then the mask is widened once for them, and one channel where there
// are few.
#include "blend.cuh"

// Plain arguments rather than the struct: any binding can pass them.
extern "C" __global__ void __launch_bounds__(256)
    vitcx_blend(const float* __restrict__ images, const float* __restrict__ masks,
                const vitcx_perturbation* __restrict__ perturbations, float* __restrict__ out,
                int count, int channels, int height, int width, int grid_height, int grid_width) {
  const vitcx_blend_params p{images,   masks,  perturbations, out,         count,
                             channels, height, width,         grid_height, grid_width};
  const int per_row = vitcx::runs_per_row(p.width);
  const int run = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (run >= per_row * p.height) return;
  const int y = run / per_row;
  vitcx::blend_run(p, p.perturbations[blockIdx.y], y, (run - y * per_row) * vitcx::kRun,
                   static_cast<int>(blockIdx.z), static_cast<int>(gridDim.z),
                   vitcx::runs_are_aligned(p));
}

#ifndef __CUDACC_RTC__

#include "launch.cuh"

namespace {

bool is_valid(const vitcx_blend_params* p) {
  return p != nullptr && p->images != nullptr && p->masks != nullptr &&
         p->perturbations != nullptr && p->out != nullptr && p->count >= 0 && p->channels > 0 &&
         vitcx::is_grid(p->grid_height, p->grid_width, p->height, p->width);
}

}  // namespace

int vitcx_blend_launch(const vitcx_blend_params* params, void* stream) {
  if (!is_valid(params)) return VITCX_INVALID_ARGUMENT;
  const vitcx_blend_params& p = *params;
  const int64_t runs = int64_t{vitcx::runs_per_row(p.width)} * p.height;
  vitcx::device_shape device;
  int status = vitcx::query_device(reinterpret_cast<const void*>(vitcx_blend), 256, &device);
  if (status != VITCX_SUCCESS) return status;

  const unsigned blocks = vitcx::blocks_for(runs, 256);
  for (int32_t first = 0; first < p.count; first += vitcx::kMostInGrid) {
    const int32_t left = p.count - first;
    const int32_t count = left < vitcx::kMostInGrid ? left : vitcx::kMostInGrid;
    const bool fills = int64_t{blocks} * count >= device.resident_blocks;
    const dim3 grid(blocks, static_cast<unsigned>(count),
                    fills ? 1u : static_cast<unsigned>(p.channels < 64 ? p.channels : 64));
    vitcx_blend<<<grid, 256, 0, static_cast<cudaStream_t>(stream)>>>(
        p.images, p.masks, p.perturbations + first, p.out, count, p.channels, p.height, p.width,
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
