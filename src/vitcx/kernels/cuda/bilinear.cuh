// Bilinear upsampling of a patch grid: half-pixel centres, edges clamped (align_corners=False).
//
// Sample i of `size` lies at (i + 1/2) cells / size - 1/2 in units of cells, clamped at 0 below. As
// a fraction that is ((2 i + 1) cells - size) / (2 size): integers, so cell and remainder are exact
// for any scale factor, up or down. Requires size * cells < 2^29.
#ifndef VITCX_BILINEAR_CUH
#define VITCX_BILINEAR_CUH

#include "numeric.cuh"

namespace vitcx {

// Where one sample lies on one axis.
struct sample {
  int left, right;  // cells
  float fraction;   // weight of `right`
};

// Walks along an axis: one division at the start, then additions.
struct axis_walk {
  int cell, rest;      // position = cell + rest / (2 size)
  int step, two_size;  // step = 2 cells
  float inverse;       // 1 / (2 size)
  int last;            // cells - 1

  VITCX_HD axis_walk(int i, int size, int cells)
      : step(2 * cells), two_size(2 * size), inverse(1.0f / (2.0f * static_cast<float>(size))),
        last(cells - 1) {
    const int numerator = (2 * i + 1) * cells - size;
    // Before the first centre the position is negative; `rest` keeps it so that `next` stays right.
    cell = numerator >= 0 ? numerator / two_size : 0;
    rest = numerator - cell * two_size;
  }

  VITCX_HD sample here() const {
    sample s;
    s.left = cell < last ? cell : last;
    s.right = s.left < last ? s.left + 1 : last;
    s.fraction = rest > 0 ? static_cast<float>(rest) * inverse : 0.0f;
    return s;
  }

  VITCX_HD void next() {
    rest += step;
    while (rest >= two_size) {
      rest -= two_size;
      ++cell;
    }
  }
};

VITCX_HD float mix(float left, float right, float fraction) {
  return fmaf(fraction, right - left, left);
}

// One value of U m at (row, column).
VITCX_HD float interpolate(const float* low, int grid_width, const sample& row,
                           const sample& column) {
  const float* top = low + row.left * grid_width;
  const float* bottom = low + row.right * grid_width;
  return mix(mix(top[column.left], bottom[column.left], row.fraction),
             mix(top[column.right], bottom[column.right], row.fraction), column.fraction);
}

// `COUNT` neighbouring values of U m in one row, from column x0 on. The two columns of the grid in
// use change rarely, so their vertical interpolation is kept from pixel to pixel.
template <int COUNT>
VITCX_HD void interpolate_run(const float* low, int grid_width, const sample& row, int x0, int width,
                              float* values) {
  const float* top = low + row.left * grid_width;
  const float* bottom = low + row.right * grid_width;
  axis_walk walk(x0, width, grid_width);
  int held = -1;
  float left = 0.0f, right = 0.0f;
  VITCX_UNROLL
  for (int i = 0; i < COUNT; ++i) {
    const sample column = walk.here();
    if (column.left != held) {
      held = column.left;
      left = mix(top[column.left], bottom[column.left], row.fraction);
      right = mix(top[column.right], bottom[column.right], row.fraction);
    }
    values[i] = mix(left, right, column.fraction);
    walk.next();
  }
}

// The cell that sample i of an axis lies in.
VITCX_HD int cell_of(int i, int size, int cells) {
  return static_cast<int>(static_cast<int64_t>(2 * i + 1) * cells / (2 * size));
}

// The first sample whose left cell is `cell`, or a later cell where none is; `size` past the end.
VITCX_HD int first_sample(int cell, int size, int cells) {
  if (cell <= 0) return 0;
  if (cell >= cells) return size;
  // The least i with (2 i + 1) cells - size >= 2 size cell.
  const int bound = size * (2 * cell + 1) - cells;
  const int i = bound > 0 ? (bound + 2 * cells - 1) / (2 * cells) : 0;
  return i < size ? i : size;
}

}  // namespace vitcx

#endif  // VITCX_BILINEAR_CUH
