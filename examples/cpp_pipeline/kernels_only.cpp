// A masked, noised batch from C++ alone: vitcx_kernels.h and the kernels, no Python.
//
// Built plainly, it runs the device logic on the CPU. Built with VITCX_USE_GPU and linked with
// blend.cu, it calls the launcher on a stream of its own. Both print the same sums.
#include <cstdint>
#include <cstdio>
#include <vector>

#ifdef VITCX_USE_GPU
#include <cuda_runtime.h>

#include "vitcx_kernels.h"
#else
#include "host.hpp"
#endif

namespace {

constexpr int kChannels = 3, kSide = 64, kGrid = 4, kMasks = 2, kRows = 2 * kMasks;
constexpr size_t kImage = size_t{kChannels} * kSide * kSide;

#ifdef VITCX_USE_GPU
int failed(int status, const char* what) {
  std::fprintf(stderr, "%s: %s\n", what, vitcx_status_string(status));
  return 1;
}

template <typename T>
T* to_device(const std::vector<T>& host, cudaStream_t stream) {
  void* device = nullptr;
  if (cudaMallocAsync(&device, host.size() * sizeof(T), stream) != cudaSuccess) return nullptr;
  cudaMemcpyAsync(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice, stream);
  return static_cast<T*>(device);
}
#endif

}  // namespace

int main() {
  std::vector<float> image(kImage), masks(size_t{kMasks} * kGrid * kGrid);
  for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<float>(i % 97) / 48.0f - 1.0f;
  for (size_t i = 0; i < masks.size(); ++i) masks[i] = static_cast<float>(i % 5) / 4.0f;

  std::vector<vitcx_perturbation> perturbations;
  for (int k = 0; k < kMasks; ++k) {
    perturbations.push_back({0, k, static_cast<uint32_t>(k), 0.1f, 2026,
                             {2 * k, 2 * k + 1, VITCX_SKIP, VITCX_SKIP},
                             {0, VITCX_UNMASKED, 0, 0}, 0});
  }
  std::vector<float> batch(kRows * kImage);

  vitcx_blend_params params{};
  params.count = kMasks;
  params.channels = kChannels;
  params.height = params.width = kSide;
  params.grid_height = params.grid_width = kGrid;

#ifdef VITCX_USE_GPU
  cudaStream_t stream = nullptr;
  if (int status = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
    return failed(status, "making a stream");
  }
  params.images = to_device(image, stream);
  params.masks = to_device(masks, stream);
  params.perturbations = to_device(perturbations, stream);
  params.out = to_device(batch, stream);
  if (int status = vitcx_blend_launch(&params, stream)) return failed(status, "the kernel");
  cudaMemcpyAsync(batch.data(), params.out, batch.size() * sizeof(float), cudaMemcpyDeviceToHost,
                  stream);
  if (int status = cudaStreamSynchronize(stream)) return failed(status, "the stream");
  for (const void* p : {static_cast<const void*>(params.images), static_cast<const void*>(params.masks),
                        static_cast<const void*>(params.perturbations),
                        static_cast<const void*>(params.out)}) {
    cudaFreeAsync(const_cast<void*>(p), stream);
  }
  cudaStreamDestroy(stream);
#else
  params.images = image.data();
  params.masks = masks.data();
  params.perturbations = perturbations.data();
  params.out = batch.data();
  if (vitcx::blend_on_host(params) != VITCX_SUCCESS) return 1;
#endif

  for (int row = 0; row < kRows; ++row) {
    double sum = 0.0;
    for (size_t i = 0; i < kImage; ++i) sum += batch[row * kImage + i];
    std::printf("row %d: sum %.4f, first %.6f\n", row, sum, static_cast<double>(batch[row * kImage]));
  }
  return 0;
}
