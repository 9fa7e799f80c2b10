// The device logic run by plain loops: every entry point of vitcx_kernels.h, on host memory.
//
// For tests without a GPU and for C++ programs that want the same numbers on the CPU. It is written
// to be read and compared, not to be fast.
#ifndef VITCX_HOST_HPP
#define VITCX_HOST_HPP

#include "aggregate.cuh"
#include "blend.cuh"
#include "linkage.cuh"
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
    const bool refused = has_others_than_numbers(embedding + i * cells, cells, 0, 1);
    const int keeps = kept_as(refused, varies(found));
    for (int64_t j = i * cells; j < (i + 1) * cells; ++j) {
      masks[j] = keeps > 0 ? normalised(embedding[j], found) : 0.0f;
    }
    if (kept != nullptr) kept[i] = keeps;
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

inline void cosine_distance_on_host(float* products, int pictures, int count) {
  for (int64_t picture = 0; picture < pictures; ++picture) {
    for (int row = 0; row < count; ++row) {
      for (int column = row + 1; column < count; ++column) {
        distance_of_pair(products + picture * count * count, row, column, count);
      }
    }
  }
}

inline void complete_linkage_on_host(float* distances, const int32_t* kept, const float* thresholds,
                                     int32_t* room, int32_t* members, int32_t* offsets,
                                     int32_t* clusters, int pictures, int count) {
  for (int picture = 0; picture < pictures; ++picture) {
    const linkage l = linkage_of(distances, kept, thresholds[picture], room, picture, count);
    linkage_counts counts{{0, 0}, 0, 0};
    linkage_begin(l, counts, 0, 1);
    const int clustered = counts.lists[0];
    for (int round = 0;; ++round) {
      linkage_nearest(l, counts, round, 0, 1);
      linkage_pair(l, counts, round, 0, 1);
      if (counts.heads == 0 || counts.refused != 0) break;
      linkage_merge(l, counts, round, false, 0, 1);
      linkage_merge(l, counts, round, true, 0, 1);
      linkage_next(l, counts, round, 0, 1);
    }
    clusters[picture] = VITCX_REFUSED;
    if (counts.refused != 0) continue;
    int32_t* begins = offsets + int64_t{picture} * (count + 1);
    linkage_roots(l, 0, 1);
    linkage_members(l, counts, members + int64_t{picture} * count, begins, 0, 1);
    clusters[picture] = counts.heads;
    begins[counts.heads] = clustered;
  }
}

inline void cluster_masks_on_host(const float* masks, const int32_t* members,
                                  const int32_t* offsets, const int32_t* clusters,
                                  const int32_t* modes, float* out, int pictures, int count,
                                  const grid_shape& g) {
  const int cells = g.grid_height * g.grid_width;
  for (int64_t picture = 0; picture < pictures; ++picture) {
    const int64_t first = picture * count;
    for (int64_t c = 0; c < clusters[picture]; ++c) {
      const int32_t* begins = offsets + first + picture + c;
      float* mask = out + (first + c) * cells;
      for (int i = 0; i < cells; ++i) {
        mask[i] = cluster_mean(masks + first * cells, members + first, begins[0], begins[1], cells,
                               i);
      }
      if (modes[picture] != VITCX_CLUSTER_RENORMALISED) continue;
      const extremes found = surface_extremes(mask, g, 0, 1);
      if (!varies(found)) continue;
      for (int i = 0; i < cells; ++i) mask[i] = normalised(mask[i], found);
    }
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
