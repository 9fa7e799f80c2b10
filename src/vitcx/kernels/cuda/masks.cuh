// Embedding -> low-resolution masks, their inner products at full resolution, cluster masks.
//
// Masks stay on the patch grid: U is linear and keeps constants, so min-max normalisation of the
// upsampled channel is an affine map of the low-resolution one, (e - a) / (b - a). The extremes a and
// b of a bilinear surface on a grid of samples are found without visiting all samples: within one
// cell it is monotone along each axis, so each cell's first and last sample per axis suffice.
#ifndef VITCX_MASKS_CUH
#define VITCX_MASKS_CUH

#include "bilinear.cuh"

namespace vitcx {

struct extremes {
  float low, high;
};

struct grid_shape {
  int grid_height, grid_width, height, width;
};

VITCX_HD extremes merge(const extremes& a, const extremes& b) {
  return extremes{a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}

// Corner `which` of 2 * cells on one axis: the first (even) or last (odd) sample of a cell. False
// where the cell holds no sample, as happens when the grid is finer than the image.
VITCX_HD bool corner_sample(int which, int size, int cells, sample& out) {
  const int cell = which >> 1;
  const int first = first_sample(cell, size, cells);
  const int end = first_sample(cell + 1, size, cells);
  if (first >= end) return false;
  out = axis_walk((which & 1) != 0 ? end - 1 : first, size, cells).here();
  return true;
}

// Extremes of U e over the samples lane, lane + lanes, ...: merge all lanes' for the whole channel.
VITCX_HD extremes surface_extremes(const float* low, const grid_shape& g, int lane, int lanes) {
  const float infinity = bits_float(0x7f800000u);
  extremes found{infinity, -infinity};
  const int columns = 2 * g.grid_width;
  for (int i = lane; i < 2 * g.grid_height * columns; i += lanes) {
    sample row, column;
    if (!corner_sample(i / columns, g.height, g.grid_height, row)) continue;
    if (!corner_sample(i % columns, g.width, g.grid_width, column)) continue;
    const float value = interpolate(low, g.grid_width, row, column);
    found = merge(found, extremes{value, value});
  }
  return found;
}

// Whether a map's range is more than the rounding of float32. A constant channel says nothing of
// where, and normalising it would only magnify rounding. The bound is runtime/method/masks.py's.
VITCX_HD bool varies(const extremes& e) {
  const float magnitude = fabsf(e.low) > fabsf(e.high) ? fabsf(e.low) : fabsf(e.high);
  return e.high - e.low > 1e-6f * magnitude;
}

// Whether some of the values lane, lane + lanes, ... are infinite or no numbers.
VITCX_HD bool has_others_than_numbers(const float* values, int count, int lane, int lanes) {
  bool found = false;
  for (int i = lane; i < count; i += lanes) {
    found = found || (float_bits(values[i]) & 0x7f800000u) == 0x7f800000u;
  }
  return found;
}

// What `kept` says of a channel: 1, 0 where it is constant, -1 where it has others than numbers.
VITCX_HD int kept_as(bool refused, bool varies) { return refused ? VITCX_REFUSED : varies ? 1 : 0; }

VITCX_HD float normalised(float value, const extremes& e) {
  return (value - e.low) / (e.high - e.low);
}

// Element (y, x) of G_y m G_x. G = U^T U of an axis is tridiagonal: each sample touches two
// neighbouring cells.
VITCX_HD float gram_element(const float* mask, const float* gram_rows, const float* gram_columns,
                            int grid_height, int grid_width, int y, int x) {
  float sum = 0.0f;
  for (int j = y > 0 ? y - 1 : 0; j <= y + 1 && j < grid_height; ++j) {
    float line = 0.0f;
    for (int i = x > 0 ? x - 1 : 0; i <= x + 1 && i < grid_width; ++i) {
      line = fmaf(gram_columns[i * grid_width + x], mask[j * grid_width + i], line);
    }
    sum = fmaf(gram_rows[y * grid_height + j], line, sum);
  }
  return sum;
}

// 1 - cosine. A mask that is 0 everywhere has no direction: it is at distance 1 from any other.
VITCX_HD float cosine_distance(float product, float square_a, float square_b) {
  const float scale = sqrtf(square_a) * sqrtf(square_b);
  if (!(scale > 0.0f)) return 1.0f;
  const float distance = 1.0f - product / scale;
  return distance > 0.0f ? distance : 0.0f;
}

// Products to distances in place, of one pair, row < column: both places get the same number. The
// diagonal, which everybody reads, is left.
VITCX_HD void distance_of_pair(float* products, int row, int column, int count) {
  const int64_t line = static_cast<int64_t>(row) * count, other = static_cast<int64_t>(column) * count;
  products[line + column] = products[other + row] =
      cosine_distance(products[line + column], products[line + row], products[other + column]);
}

// The mean over a cluster's members of one cell.
VITCX_HD float cluster_mean(const float* masks, const int32_t* members, int begin, int end,
                            int cells, int cell) {
  float sum = 0.0f;
  for (int i = begin; i < end; ++i) {
    sum += masks[static_cast<int64_t>(members[i]) * cells + cell];
  }
  return end > begin ? sum / static_cast<float>(end - begin) : 0.0f;
}

}  // namespace vitcx

#endif  // VITCX_MASKS_CUH
