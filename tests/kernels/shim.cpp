// A C face on the device logic for ctypes: the .cuh files compiled by a host compiler.
#include "host.hpp"

extern "C" {

void shim_philox(const uint32_t *counter, const uint32_t *key, uint32_t *out) {
  const vitcx::words4 words =
      vitcx::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  for (int i = 0; i < 4; ++i) out[i] = words.v[i];
}

void shim_four_normals(uint64_t seed, uint32_t mask, uint32_t channel, uint32_t y, uint32_t quad,
                       float *out) {
  vitcx::four_normals(seed, mask, channel, y, quad, out);
}

// The largest errors over every 24-bit argument: of the logarithm relative to its value, of the
// cosine and the sine absolute.
void shim_function_errors(double *out) {
  for (int i = 0; i < 3; ++i) out[i] = 0.0;
  for (uint32_t n = 0; n < (1u << 24); ++n) {
    const double u = n / 16777216.0;
    const double log_true = log1p(-u);
    const double log_error = fabs(vitcx::log_of_complement(n) - log_true);
    if (n != 0) out[0] = fmax(out[0], log_error / fabs(log_true));
    float cosine, sine;
    vitcx::cosine_sine(n, cosine, sine);
    out[1] = fmax(out[1], fabs(cosine - cos(2 * M_PI * u)));
    out[2] = fmax(out[2], fabs(sine - sin(2 * M_PI * u)));
  }
}

int shim_blend(const vitcx_blend_params *params) { return vitcx::blend_on_host(*params); }

int shim_blend_arguments(const float *images, const float *masks,
                         const vitcx_perturbation *perturbations, float *out, int count,
                         int channels, int height, int width, int grid_height, int grid_width) {
  return vitcx::blend_on_host(vitcx_blend_params{images, masks, perturbations, out, count, channels,
                                                 height, width, grid_height, grid_width});
}

void shim_upsample(const float *low, float *out, int grid_height, int grid_width, int height,
                   int width) {
  for (int y = 0; y < height; ++y) {
    const vitcx::sample row = vitcx::axis_walk(y, height, grid_height).here();
    for (int x = 0; x < width; ++x) {
      out[y * width + x] = vitcx::interpolate(low, grid_width, row,
                                              vitcx::axis_walk(x, width, grid_width).here());
    }
  }
}

void shim_extremes(const float *low, int grid_height, int grid_width, int height, int width,
                   int lanes, float *out) {
  const vitcx::grid_shape shape{grid_height, grid_width, height, width};
  vitcx::extremes found = vitcx::surface_extremes(low, shape, 0, lanes);
  for (int lane = 1; lane < lanes; ++lane) {
    found = vitcx::merge(found, vitcx::surface_extremes(low, shape, lane, lanes));
  }
  out[0] = found.low;
  out[1] = found.high;
}

void shim_normalise(const float *embedding, float *masks, int32_t *kept, int count,
                    int grid_height, int grid_width, int height, int width) {
  vitcx::normalise_on_host(embedding, masks, kept, count,
                           {grid_height, grid_width, height, width});
}

void shim_gram_apply(const float *masks, const float *rows, const float *columns, float *out,
                     int count, int grid_height, int grid_width) {
  vitcx::gram_apply_on_host(masks, rows, columns, out, count, grid_height, grid_width);
}

void shim_cosine_distance(float *products, int pictures, int count) {
  vitcx::cosine_distance_on_host(products, pictures, count);
}

void shim_complete_linkage(float *distances, const int32_t *kept, const float *thresholds,
                           int32_t *room, int32_t *members, int32_t *offsets, int32_t *clusters,
                           int pictures, int count) {
  vitcx::complete_linkage_on_host(distances, kept, thresholds, room, members, offsets, clusters,
                                  pictures, count);
}

void shim_cluster_masks(const float *masks, const int32_t *members, const int32_t *offsets,
                        const int32_t *clusters, const int32_t *modes, float *out, int pictures,
                        int count, int grid_height, int grid_width, int height, int width) {
  vitcx::cluster_masks_on_host(masks, members, offsets, clusters, modes, out, pictures, count,
                               {grid_height, grid_width, height, width});
}

void shim_weighted_masks(const float *impacts, const float *masks, float *low, int targets,
                         int count, int cells) {
  vitcx::weighted_masks_on_host(impacts, masks, low, targets, count, cells);
}

void shim_saliency(const float *low, float *saliency, float *coverage, int targets,
                   int grid_height, int grid_width, int height, int width,
                   int correct_coverage) {
  vitcx::saliency_on_host(low, saliency, coverage, targets,
                          {grid_height, grid_width, height, width}, correct_coverage != 0);
}
}
