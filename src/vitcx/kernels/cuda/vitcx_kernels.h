/* The C interface of vitcx's kernels: raw pointers in, a status out, no framework headers.
 *
 * A C or C++ program compiles blend.cu, masks.cu, linkage.cu and aggregate.cu with nvcc, includes this header and
 * links with the CUDA run-time library; it needs no Python. Every launcher
 *
 *   - works on the current device and queues its work on `stream` (a cudaStream_t, or NULL for the
 *     default stream); it returns before the work is done and never synchronises;
 *   - keeps nothing: every buffer belongs to the caller, must be in device memory, and must stay
 *     alive until the stream has passed the call;
 *   - may be recorded into a CUDA graph (the pointers are then part of the graph);
 *   - may be called from several threads at once;
 *   - returns 0, or VITCX_INVALID_ARGUMENT before anything was queued, or a cudaError_t.
 *     `vitcx_status_string` names either.
 *
 * Arrays are dense, C order. float32 unless it is said otherwise.
 */
#ifndef VITCX_KERNELS_H
#define VITCX_KERNELS_H

#ifdef __CUDACC_RTC__ /* NVRTC has no system headers */
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { VITCX_SUCCESS = 0, VITCX_INVALID_ARGUMENT = -1 };

/* What a row is made of: X w + e with e = scale (1 - w) Z, and these flags, added up. */
enum {
  VITCX_UNMASKED = 1,   /* X for X w */
  VITCX_MINUS = 2,      /* - e for + e */
  VITCX_COMPLEMENT = 4, /* 1 - w for w */
  VITCX_MOST_ROWS = 4   /* rows of one perturbation */
};

/* A place in `rows` that a perturbation leaves out. */
enum { VITCX_SKIP = -1 };

/* One mask of one image with one draw of noise. 48 bytes, no padding. */
typedef struct vitcx_perturbation {
  int32_t image;                  /* index into images */
  int32_t mask;                   /* index into masks */
  uint32_t noise;                 /* k of Z_k: the mask's index within its own explanation */
  float scale;                    /* sigma; 0 draws no noise */
  uint64_t seed;                  /* of the noise */
  int32_t rows[VITCX_MOST_ROWS];  /* batch rows, or VITCX_SKIP */
  uint8_t kinds[VITCX_MOST_ROWS]; /* what each row is: a sum of flags */
  uint32_t sharp;                 /* w is 0: U m, bilinear; 1: the value of the patch a pixel is in */
} vitcx_perturbation;

typedef struct vitcx_blend_params {
  const float *images; /* (N, channels, height, width), normalised as the model wants them */
  const float *masks;  /* (K, grid_height, grid_width), upsampled values in [0, 1] */
  const vitcx_perturbation *perturbations; /* (count); no two name the same row */
  float *out;          /* (B, channels, height, width); rows not named are left */
  int32_t count;
  int32_t channels, height, width;
  int32_t grid_height, grid_width;
} vitcx_blend_params;

/* What a cluster's mask is: the mean of its members, or that stretched to [0, 1] again (a constant
 * mean is left). */
enum { VITCX_CLUSTER_MEAN = 0, VITCX_CLUSTER_RENORMALISED = 1 };

/* What is said of a channel, or of a picture's clusters, where there are infinite values or NaN. */
enum { VITCX_REFUSED = -1 };

#ifndef __CUDACC_RTC__ /* NVRTC compiles the kernels alone */

/* The masked and noised rows of a batch: one pass over each perturbation's noise, nothing between. */
int vitcx_blend_launch(const vitcx_blend_params *params, void *stream);

/* Embedding (count, h, w) -> masks (count, h, w): (e - a) / (b - a), a and b being the extremes of
 * the channel upsampled to (height, width). A channel that is constant (its range is rounding:
 * b - a <= 1e-6 of its magnitude), or has infinite values or NaN, becomes 0 everywhere. kept (count),
 * or NULL: 0 for constant ones, VITCX_REFUSED for those that are no numbers, 1 for the others. */
int vitcx_normalise_launch(const float *embedding, float *masks, int32_t *kept, int32_t count,
                           int32_t grid_height, int32_t grid_width, int32_t height, int32_t width,
                           void *stream);

/* masks (count, h, w) -> out (count, h, w) = G_y m G_x, with G = U^T U per axis, both given. Then
 * <U m_i, U m_j> is the plain dot product of m_i and out_j. */
int vitcx_gram_apply_launch(const float *masks, const float *gram_rows, const float *gram_columns,
                            float *out, int32_t count, int32_t grid_height, int32_t grid_width,
                            void *stream);

/* Dot products (pictures, count, count) -> 1 - cosine, in place, clamped at 0 below. Where one of the
 * two masks is 0 everywhere: 1. The upper triangles are read, and the diagonals are left as they are. */
int vitcx_cosine_distance_launch(float *products, int32_t pictures, int32_t count, void *stream);

/* Complete linkage of each picture's masks, cut at thresholds (pictures): clusters are merged until no
 * two are within the threshold. count is 32768 at the most.
 *
 * distances (pictures, count, count): symmetric; used up. kept (pictures, count): as above; masks with
 * 0 are in no cluster. room (pictures, 6, count): for the kernel. members (pictures, count) and offsets
 * (pictures, count + 1): written; the members of cluster c, which are numbered by their first members,
 * are members[offsets[c]] ... members[offsets[c + 1] - 1]. clusters (pictures): written; how many there
 * are, or VITCX_REFUSED where a mask is refused or a distance is NaN. */
int vitcx_complete_linkage_launch(float *distances, const int32_t *kept, const float *thresholds,
                                  int32_t *room, int32_t *members, int32_t *offsets,
                                  int32_t *clusters, int32_t pictures, int32_t count, void *stream);

/* Cluster masks (pictures, count, h, w), of which each picture's first are written: members, offsets
 * and clusters as above, modes (pictures) what a cluster's mask is. */
int vitcx_cluster_masks_launch(const float *masks, const int32_t *members, const int32_t *offsets,
                               const int32_t *clusters, const int32_t *modes, float *out,
                               int32_t pictures, int32_t count, int32_t grid_height,
                               int32_t grid_width, int32_t height, int32_t width, void *stream);

/* impacts (targets, count), masks (count, cells) -> low (targets + 1, cells): the means over the
 * masks of s_k m_k for each target and, last, of m_k. */
int vitcx_weighted_masks_launch(const float *impacts, const float *masks, float *low,
                                int32_t targets, int32_t count, int32_t cells, void *stream);

/* low as above -> coverage (height, width) = U low_last within [0, 1], unless it is NULL, and
 * saliency (targets, height, width) = U low_t / coverage, 0 where the coverage is (1e-6 or less);
 * with correct_coverage = 0, U low_t. */
int vitcx_saliency_launch(const float *low, float *saliency, float *coverage, int32_t targets,
                          int32_t grid_height, int32_t grid_width, int32_t height, int32_t width,
                          int32_t correct_coverage, void *stream);

/* A status in words; never NULL, never to be freed. */
const char *vitcx_status_string(int status);

#endif /* __CUDACC_RTC__ */

#ifdef __cplusplus
}
#endif

#endif /* VITCX_KERNELS_H */
