// The device logic run by plain loops: every entry point of vitcx_kernels.h, on host memory.
//
// For tests without a GPU and for C++ programs that want the same numbers on the CPU. It is written
// to be read and compared, not to be fast.
#ifndef VITCX_HOST_HPP
#define VITCX_HOST_HPP

#include "aggregate.cuh"
#include "blend.cuh"
#include "masks.cuh"

namespace vitcx {

inline int blend_on_host(const vitcx_blend_params& p) {
  const bool aligned = runs_are_aligned(p);
  for (int i = 0; i < p.count; ++i) {
    for (int y = 0; y < p.height; ++y) {
      for (int run = 0; run < runs_per_row(p.width); ++run) {
        blend_run(p, p.perturbations[i], y, run * kRun, 0, 1, aligned);
      }
    }
  }
  return VITCX_SUCCESS;
}

inline void normalise_on_host(const float* embedding, float* masks, int32_t* kept, int count,
                              const grid_shape& g) {
  const int cells = g.grid_height * g.grid_width;
  for (int64_t i = 0; i < count; ++i) {
    const extremes found = surface_extremes(embedding + i * cells, g, 0, 1);
    const bool keeps = varies(found);
    for (int64_t j = i * cells; j < (i + 1) * cells; ++j) {
      masks[j] = keeps ? normalised(embedding[j], found) : 0.0f;
    }
    if (kept != nullptr) kept[i] = keeps ? 1 : 0;
  }
}

inline void gram_apply_on_host(const float* masks, const float* gram_rows,
                               const float* gram_columns, float* out, int count, int grid_height,
                               int grid_width) {
  const int cells = grid_height * grid_width;
  for (int64_t i = 0; i < count; ++i) {
    for (int cell = 0; cell < cells; ++cell) {
      out[i * cells + cell] = gram_element(masks + i * cells, gram_rows, gram_columns, grid_height,
                                           grid_width, cell / grid_width, cell % grid_width);
    }
  }
}

inline void cosine_distance_on_host(const float* products, float* condensed, int count) {
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t column = row + 1; column < count; ++column) {
      condensed[condensed_index(static_cast<int>(row), static_cast<int>(column), count)] =
          cosine_distance(products[row * count + column], products[row * count + row],
                          products[column * count + column]);
    }
  }
}

inline void cluster_masks_on_host(const float* masks, const int32_t* members,
                                  const int32_t* offsets, float* out, int clusters,
                                  const grid_shape& g, int mode) {
  const int cells = g.grid_height * g.grid_width;
  for (int64_t c = 0; c < clusters; ++c) {
    float* mask = out + c * cells;
    for (int i = 0; i < cells; ++i) {
      mask[i] = cluster_mean(masks, members, offsets[c], offsets[c + 1], cells, i);
    }
    if (mode != VITCX_CLUSTER_RENORMALISED) continue;
    const extremes found = surface_extremes(mask, g, 0, 1);
    if (!varies(found)) continue;
    for (int i = 0; i < cells; ++i) mask[i] = normalised(mask[i], found);
  }
}

inline void weighted_masks_on_host(const float* impacts, const float* masks, float* low, int targets,
                                   int count, int cells) {
  for (int64_t target = 0; target <= targets; ++target) {
    const float* weights = target < targets ? impacts + target * count : nullptr;
    for (int cell = 0; cell < cells; ++cell) {
      low[target * cells + cell] = weighted_mean(weights, masks, count, cells, cell);
    }
  }
}

inline void saliency_on_host(const float* low, float* saliency, float* coverage, int targets,
                             const grid_shape& g, bool correct_coverage) {
  const int64_t cells = int64_t{g.grid_height} * g.grid_width;
  const int64_t pixels = int64_t{g.height} * g.width;
  for (int y = 0; y < g.height; ++y) {
    const sample row = axis_walk(y, g.height, g.grid_height).here();
    for (int x = 0; x < g.width; ++x) {
      const sample column = axis_walk(x, g.width, g.grid_width).here();
      const int64_t pixel = int64_t{y} * g.width + x;
      const float covered =
          clamped_coverage(interpolate(low + targets * cells, g.grid_width, row, column));
      if (coverage != nullptr) coverage[pixel] = covered;
      for (int64_t target = 0; target < targets; ++target) {
        saliency[target * pixels + pixel] =
            corrected(interpolate(low + target * cells, g.grid_width, row, column), covered,
                      correct_coverage);
      }
    }
  }
}

}  // namespace vitcx

#endif  // VITCX_HOST_HPP
