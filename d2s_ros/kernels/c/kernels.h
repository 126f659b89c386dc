/* Every function that the compiled kernels export, and what their files share.
 *
 * Plain C behind ctypes: no Python inside, so one library serves every interpreter, and callers
 * hold no lock. Callers check shapes, types and ranges (compiled.py); nothing is checked here.
 * library.py declares the same signatures, and a test compares them with this file. */
#ifndef D2S_KERNELS_H
#define D2S_KERNELS_H

#include <stdint.h>

#define API __attribute__((visibility("default")))

/* The hot functions are compiled for several instruction sets; the loader takes the best one. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#else
#define VECTORISED __attribute__((noinline))
#endif

/* Sixteen numbers at once, wherever they lie. */
enum { LANES = 16 };
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t)), may_alias));

/* Called by these: compiled as they are. */
#define INLINED static inline __attribute__((always_inline))

/* digest.c */
API const char *d2s_source_digest(void);

/* keypoints.c */
API int32_t d2s_score_map(const float *logits, int64_t cell_rows, int64_t cell_columns,
                          int64_t height, int64_t width, int32_t threads, float *scores);
API int32_t d2s_strongest_maxima(const float *scores, int64_t height, int64_t width, int64_t radius,
                                 int64_t border, float threshold, const uint8_t *allowed,
                                 int32_t count, int32_t threads, int64_t *index);
API int32_t d2s_refine_keypoints(const float *scores, int64_t width, const int64_t *index,
                                 int64_t count, float floor, float *keypoints);
API int32_t d2s_cells_around(const float *keypoints, int64_t count, int64_t rows, int64_t columns,
                             int64_t *neighbours, float *weights, int64_t *cells);
API int32_t d2s_gather_around(const uint8_t *map, int64_t rows, int64_t columns, int64_t channels,
                              const int64_t *cells, int64_t count, int32_t threads,
                              uint8_t *result);

/* products.c */
API int32_t d2s_products(int32_t kind, const uint8_t *queries, const int8_t *packed,
                         const int32_t *offsets, int64_t stride, int32_t groups, int32_t shift,
                         int32_t factor, uint8_t *bytes);

/* Keys as bytes, eight of them interleaved by fours: (stride / 8, groups, 8, 4).
 *
 * width: number of keys; stride: the same rounded up to a multiple of 64, with zeros.
 * offsets: what the sums of each key begin with, as bytes of queries begin at 128.
 * shift, factor: a sum is shifted and multiplied by factor / 2^15 to make a byte of it. */
typedef struct {
    const int8_t *packed;
    const int32_t *offsets;
    int64_t width, stride;
    int32_t groups, shift;
    int16_t factor;
} Keys;

/* Bytes of the cosines of so many queries (QUERIES, 4 groups) and all keys: (QUERIES, stride). */
enum { QUERIES = 8 };
typedef void (*Product)(const uint8_t *queries, const Keys *keys, uint8_t *bytes);

/* The fastest for this processor; all give the same. */
Product fastest_product(void);

/* search.c */
API int32_t d2s_project(const float *values, int64_t rows, int64_t dim, const float *directions,
                        int64_t size, float *result);
API int32_t d2s_search(const float *queries, const float *exact_keys, int64_t rows, int64_t dim,
                       const float *directions, float scale, const int8_t *packed,
                       const int32_t *offsets, int64_t width, int64_t stride, int32_t groups,
                       int32_t shift, int32_t factor, int32_t most, int32_t count, int32_t threads,
                       int64_t *idx, float *similarity, float *best);

/* convolve.c */
API int32_t d2s_convolve(const float *map, int64_t rows, int64_t columns, int64_t inputs,
                         int64_t first, int64_t count, const float *weights, const float *bias,
                         int64_t outputs, int32_t pool, int32_t threads, float *result);
API int32_t d2s_convolve_image(const uint8_t *image, int64_t rows, int64_t columns, int64_t first,
                               int64_t count, const float *weights, const float *bias,
                               int64_t outputs, int32_t threads, float *result);
API int32_t d2s_multiply(const float *values, int64_t rows, int64_t inputs, const float *weights,
                         const float *bias, int64_t outputs, int32_t threads, float *result);

/* score.c */
API int32_t d2s_score_candidates(const float *descriptors, const int64_t *landmark_idx,
                                 const float *similarity, const float *best_of_landmark,
                                 const float *normalized_points, const float *log_scales,
                                 int64_t rows, int64_t dim, int64_t candidates, int64_t frequencies,
                                 int64_t width, int64_t stride, const float *product,
                                 const float *bias, const uint16_t *of_best,
                                 const uint16_t *of_second, const uint16_t *of_any,
                                 const float *by_evidence, double gain, int32_t threads,
                                 float *reliability, int64_t *choice);

/* pose.c */
API int32_t d2s_whiten(const double *points, const double *covariances, const double *variances,
                       int64_t count, const double *pose, double fx, double fy, double *whitening);
API int32_t d2s_squared_residuals(const double *keypoints, const double *points,
                                  const double *whitening, int64_t count, const double *pose,
                                  double fx, double fy, double cx, double cy, double *squared);
API int32_t d2s_linearise(const double *keypoints, const double *points, const double *whitening,
                          int64_t count, const double *pose, double fx, double fy, double cx,
                          double cy, double scale, int32_t parameters, double *result);
API int32_t d2s_squared_scores(const double *keypoints, const double *points,
                               const double *whitening, int64_t count, const double *pose,
                               double fx, double fy, double cx, double cy, double scale,
                               double slope, const double *inverse, int32_t parameters,
                               double *result);
API int32_t d2s_first_close(const double *keypoints, int64_t count, const double *landmarks,
                            const int64_t *landmark_idx, int64_t candidates, const double *pose,
                            double fx, double fy, double cx, double cy, double radius,
                            const uint8_t *skipped, const uint8_t *taken, int64_t *choice);

#endif
