// The masked and noised rows of one perturbation, a run of pixels at a time.
//
// One call makes WIDTH neighbouring pixels of one image row, in every channel and every row that the
// perturbation asks for. The mask is widened once for all channels, the noise drawn once for all
// rows. Nothing but the batch is written.
#ifndef VITCX_BLEND_CUH
#define VITCX_BLEND_CUH

#include "bilinear.cuh"
#include "philox.cuh"

namespace vitcx {

// How an image row is cut into runs of 16 stored bytes; the last may be short.
constexpr int kRun = 4;
VITCX_HD int runs_per_row(int width) { return (width + kRun - 1) / kRun; }

VITCX_HD void store_run(float* to, const float* values, int count, bool aligned) {
  if (aligned) {
    copy_aligned<float, kRun>(to, values);
  } else {
    VITCX_UNROLL
    for (int i = 0; i < kRun; ++i) {
      if (i < count) to[i] = values[i];
    }
  }
}

// The weights of pixels x0 ... x0 + kRun - 1 of image row y.
VITCX_HD void weight_run(const vitcx_blend_params& p, const vitcx_perturbation& one, int y, int x0,
                         float* weight) {
  const float* low = p.masks + static_cast<int64_t>(one.mask) * (p.grid_height * p.grid_width);
  if (!one.sharp) {
    interpolate_run<kRun>(low, p.grid_width, axis_walk(y, p.height, p.grid_height).here(), x0,
                          p.width, weight);
    return;
  }
  const float* row = low + cell_of(y, p.height, p.grid_height) * p.grid_width;
  VITCX_UNROLL
  for (int i = 0; i < kRun; ++i) {
    const int x = x0 + i < p.width ? x0 + i : p.width - 1;
    weight[i] = row[cell_of(x, p.width, p.grid_width)];
  }
}

// Pixels x0 ... x0 + kRun - 1 of image row y, channels first, first + stride, ...
//
// `aligned` says that width is a multiple of kRun and that images and out are aligned to 16 bytes:
// then all loads and stores are whole 16-byte pieces.
VITCX_HD void blend_run(const vitcx_blend_params& p, const vitcx_perturbation& one, int y, int x0,
                        int first_channel, int channel_stride, bool aligned) {
  static_assert(kRun == 4, "a Philox call makes four neighbours");
  float mask[kRun];
  weight_run(p, one, y, x0, mask);

  const int count = p.width - x0 < kRun ? p.width - x0 : kRun;
  const bool noisy = one.scale != 0.0f;
  for (int channel = first_channel; channel < p.channels; channel += channel_stride) {
    const int64_t pixel = (static_cast<int64_t>(channel) * p.height + y) * p.width + x0;
    const int64_t image_size = static_cast<int64_t>(p.channels) * p.height * p.width;
    const float* source = p.images + one.image * image_size + pixel;
    alignas(16) float image[kRun];
    if (aligned) {
      copy_aligned<float, kRun>(image, source);
    } else {
      VITCX_UNROLL
      for (int i = 0; i < kRun; ++i) image[i] = i < count ? source[i] : 0.0f;
    }

    float normals[kRun] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (noisy) {
      four_normals(one.seed, one.noise, static_cast<uint32_t>(channel), static_cast<uint32_t>(y),
                   static_cast<uint32_t>(x0 / kRun), normals);
    }

    VITCX_UNROLL
    for (int place = 0; place < VITCX_MOST_ROWS; ++place) {
      const int row = one.rows[place];
      if (row < 0) continue;
      const int kind = one.kinds[place];
      alignas(16) float values[kRun];
      VITCX_UNROLL
      for (int i = 0; i < kRun; ++i) {
        const float weight = kind & VITCX_COMPLEMENT ? 1.0f - mask[i] : mask[i];
        const float noise = normals[i] * (one.scale * (1.0f - weight));
        const float signed_noise = kind & VITCX_MINUS ? -noise : noise;
        values[i] = kind & VITCX_UNMASKED ? image[i] + signed_noise
                                          : fmaf(image[i], weight, signed_noise);
      }
      store_run(p.out + row * image_size + pixel, values, count, aligned);
    }
  }
}

// Whether every run of this call is whole and lies on 16-byte boundaries.
VITCX_HD bool runs_are_aligned(const vitcx_blend_params& p) {
  const uint64_t addresses =
      reinterpret_cast<uint64_t>(p.images) | reinterpret_cast<uint64_t>(p.out);
  return p.width % kRun == 0 && addresses % 16 == 0;
}

}  // namespace vitcx

#endif  // VITCX_BLEND_CUH
