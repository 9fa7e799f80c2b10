// The masked and noised rows of one job, a run of pixels at a time.
//
// One call makes WIDTH neighbouring pixels of one image row, in every channel and every row kind
// that the job asks for. The mask is upsampled once for all channels, the noise drawn once for all
// kinds. Nothing but the batch is written.
#ifndef VITCX_BLEND_CUH
#define VITCX_BLEND_CUH

#include "bilinear.cuh"
#include "philox.cuh"

namespace vitcx {

// How an image row is cut into runs of 16 stored bytes; the last may be short.
VITCX_HD int runs_per_row(int width, int run) { return (width + run - 1) / run; }

template <typename T, int WIDTH>
VITCX_HD void store_run(T* to, const float* values, int count, bool aligned) {
  alignas(16) T converted[WIDTH];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int i = 0; i < WIDTH; ++i) convert(values[i], converted[i]);
  if (aligned) {
    copy_aligned<T, WIDTH>(to, converted);
  } else {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int i = 0; i < WIDTH; ++i) {
      if (i < count) to[i] = converted[i];
    }
  }
}

// Pixels x0 ... x0 + WIDTH - 1 of image row y, channels first, first + stride, ...
//
// `aligned` says that width is a multiple of WIDTH and that images and out are aligned to 16 bytes:
// then all loads and stores are whole 16-byte pieces.
template <typename T, int WIDTH>
VITCX_HD void blend_run(const vitcx_blend_params& p, const vitcx_blend_job& job, int y, int x0,
                        int first_channel, int channel_stride, bool aligned) {
  static_assert(WIDTH % 4 == 0, "a Philox call makes four neighbours");
  const int cells = p.grid_height * p.grid_width;
  float mask[WIDTH], amplitude[WIDTH];
  interpolate_run<WIDTH>(p.masks + static_cast<int64_t>(job.mask) * cells, p.grid_width,
                         axis_walk(y, p.height, p.grid_height).here(), x0, p.width, mask);
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int i = 0; i < WIDTH; ++i) amplitude[i] = job.scale * (1.0f - mask[i]);

  const int count = p.width - x0 < WIDTH ? p.width - x0 : WIDTH;
  const bool noisy = job.scale != 0.0f;
  for (int channel = first_channel; channel < p.channels; channel += channel_stride) {
    const int64_t pixel = (static_cast<int64_t>(channel) * p.height + y) * p.width + x0;
    const int64_t image_size = static_cast<int64_t>(p.channels) * p.height * p.width;
    const float* source = p.images + job.image * image_size + pixel;
    alignas(16) float image[WIDTH];
    if (aligned) {
      copy_aligned<float, WIDTH>(image, source);
    } else {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
      for (int i = 0; i < WIDTH; ++i) image[i] = i < count ? source[i] : 0.0f;
    }

    float noise[WIDTH];
    if (noisy) {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
      for (int quad = 0; quad < WIDTH / 4; ++quad) {
        four_normals(job.seed, job.noise, static_cast<uint32_t>(channel),
                     static_cast<uint32_t>(y), static_cast<uint32_t>(x0 / 4 + quad),
                     noise + 4 * quad);
      }
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
      for (int i = 0; i < WIDTH; ++i) noise[i] *= amplitude[i];
    } else {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
      for (int i = 0; i < WIDTH; ++i) noise[i] = 0.0f;
    }

    T* out = static_cast<T*>(p.out) + pixel;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int kind = 0; kind < VITCX_ROW_KINDS; ++kind) {
      const int row = job.rows[kind];
      if (row < 0) continue;
      const bool masked = kind == VITCX_MASKED || kind == VITCX_MASKED_MINUS;
      const bool minus = kind == VITCX_MASKED_MINUS || kind == VITCX_NOISY_MINUS;
      float values[WIDTH];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
      for (int i = 0; i < WIDTH; ++i) {
        const float signed_noise = minus ? -noise[i] : noise[i];
        values[i] = masked ? fmaf(image[i], mask[i], signed_noise) : image[i] + signed_noise;
      }
      store_run<T, WIDTH>(out + row * image_size, values, count, aligned);
    }
  }
}

// Whether every run of this call is whole and lies on 16-byte boundaries.
template <int WIDTH>
VITCX_HD bool runs_are_aligned(const vitcx_blend_params& p) {
  const uint64_t addresses = reinterpret_cast<uint64_t>(p.images) | reinterpret_cast<uint64_t>(p.out);
  return p.width % WIDTH == 0 && addresses % 16 == 0;
}

}  // namespace vitcx

#endif  // VITCX_BLEND_CUH
