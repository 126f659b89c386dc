/* Convolutions of a network without PyTorch: maps are (rows, columns, channels), channels in 16s.
 *
 * 3x3 by Winograd's F(4x4, 3x3): 36 products of each channel give 16 outputs, instead of 144. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { TILE = 4, SIDE = TILE + 2, POINTS = SIDE * SIDE, MOST_TILES = 32, FEW = 4 };

/* As wide as the registers, not as `Lanes`: sums then stay in them. */
#if defined(__aarch64__)
enum { WIDE = 4, BESIDE = 4 };
#else
enum { WIDE = 8, BESIDE = 2 };
#endif
typedef float Wide __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(WIDE * sizeof(int32_t)), may_alias));

INLINED Wide larger(Wide a, Wide b)
{
    const Mask first = a > b;
    return (Wide)(((Mask)a & first) | ((Mask)b & ~first));
}

/* B^T of six values. */
INLINED void into(const Wide *x, int64_t step, Wide *y)
{
    const Wide x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step];
    const Wide x5 = x[5 * step];
    const Wide a = x4 - 4.0f * x2, b = x3 - 4.0f * x1, c = x4 - x2, d = 2.0f * (x3 - x1);
    y[0] = 4.0f * x0 - 5.0f * x2 + x4;
    y[1] = a + b;
    y[2] = a - b;
    y[3] = c + d;
    y[4] = c - d;
    y[5] = 4.0f * x1 - 5.0f * x3 + x5;
}

/* A^T of six values. */
INLINED void out_of(const Wide *x, int64_t step, Wide *y)
{
    const Wide x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step];
    const Wide a = x1 + x2, b = x1 - x2, c = x3 + x4, d = x3 - x4;
    y[0] = x[0] + a + c;
    y[1] = b + 2.0f * d;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * d + x[5 * step];
}

typedef struct {
    int64_t rows, columns, inputs, first, count, outputs;
    const float *map, *weights, *bias;
    int32_t pool;
    float *result;
} Convolution;

/* Some channels of a tile's surroundings, transformed: one number of each of the 36 points. */
INLINED void transform_input(const Convolution *c, int64_t row, int64_t column, int64_t channel,
                             float *points, int64_t step)
{
    Wide given[POINTS], half[POINTS], whole[SIDE];
    for (int64_t i = 0; i < SIDE; i++)
        for (int64_t j = 0; j < SIDE; j++) {
            const int64_t y = row + i - 1, x = column + j - 1;
            const int inside = y >= 0 && y < c->rows && x >= 0 && x < c->columns;
            const Wide zero = {0};
            given[SIDE * i + j] =
                inside ? *(const Wide *)(c->map + (y * c->columns + x) * c->inputs + channel)
                       : zero;
        }
    for (int64_t j = 0; j < SIDE; j++) {
        into(given + j, SIDE, whole);
        for (int64_t i = 0; i < SIDE; i++)
            half[SIDE * i + j] = whole[i];
    }
    for (int64_t i = 0; i < SIDE; i++) {
        into(half + SIDE * i, 1, whole);
        for (int64_t j = 0; j < SIDE; j++)
            *(Wide *)(points + (SIDE * i + j) * step + channel) = whole[j];
    }
}

/* Some channels of a tile of outputs, with bias and ReLU, pooled by twos where asked for. */
INLINED void write_output(const Convolution *c, int64_t row, int64_t column, int64_t channel,
                          const float *points, int64_t step)
{
    Wide given[POINTS], half[TILE * SIDE], tile[TILE * TILE], whole[TILE];
    const Wide bias = *(const Wide *)(c->bias + channel), zero = {0};
    const int64_t last = c->first + c->count;
    for (int64_t i = 0; i < POINTS; i++)
        given[i] = *(const Wide *)(points + i * step + channel);
    for (int64_t j = 0; j < SIDE; j++) {
        out_of(given + j, SIDE, whole);
        for (int64_t i = 0; i < TILE; i++)
            half[SIDE * i + j] = whole[i];
    }
    for (int64_t i = 0; i < TILE; i++) {
        out_of(half + SIDE * i, 1, whole);
        for (int64_t j = 0; j < TILE; j++)
            tile[TILE * i + j] = larger(whole[j] + bias, zero);
    }
    const int64_t by = c->pool ? 2 : 1, columns = c->columns / by;
    for (int64_t i = 0; i < TILE; i += by)
        for (int64_t j = 0; j < TILE; j += by) {
            const int64_t y = row + i, x = column + j;
            if (y + by > last || x + by > c->columns)
                continue;
            Wide value = tile[TILE * i + j];
            if (c->pool)
                value = larger(larger(value, tile[TILE * i + j + 1]),
                               larger(tile[TILE * (i + 1) + j], tile[TILE * (i + 1) + j + 1]));
            float *at = c->result + ((y - c->first) / by * columns + x / by) * c->outputs;
            *(Wide *)(at + channel) = value;
        }
}

/* Products of four rows (inputs each) and the matrix (inputs, outputs), sixteen columns at a time. */
INLINED void multiply_four(const float *rows, int64_t inputs, const float *matrix, int64_t outputs,
                           const float *start, float *results)
{
    const float *r0 = rows, *r1 = r0 + inputs, *r2 = r1 + inputs, *r3 = r2 + inputs;
    for (int64_t column = 0; column < outputs; column += BESIDE * WIDE) {
        Wide a[BESIDE], b[BESIDE], c[BESIDE], d[BESIDE];
        for (int32_t j = 0; j < BESIDE; j++) {
            const Wide zero = {0};
            a[j] = start ? *(const Wide *)(start + column + j * WIDE) : zero;
            b[j] = c[j] = d[j] = a[j];
        }
        const float *weights = matrix + column;
        for (int64_t i = 0; i < inputs; i++, weights += outputs)
            for (int32_t j = 0; j < BESIDE; j++) {
                const Wide weight = *(const Wide *)(weights + j * WIDE);
                a[j] += weight * r0[i];
                b[j] += weight * r1[i];
                c[j] += weight * r2[i];
                d[j] += weight * r3[i];
            }
        for (int32_t j = 0; j < BESIDE; j++) {
            float *result = results + column + j * WIDE;
            *(Wide *)result = a[j];
            *(Wide *)(result + outputs) = b[j];
            *(Wide *)(result + 2 * outputs) = c[j];
            *(Wide *)(result + 3 * outputs) = d[j];
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* The same by fused multiplication and addition; -std=c11 lets compilers fuse nothing. */
__attribute__((target("avx2,fma"))) static void multiply_fused(const float *rows, int64_t inputs,
                                                               const float *matrix, int64_t outputs,
                                                               const float *start, float *results)
{
    const float *r0 = rows, *r1 = r0 + inputs, *r2 = r1 + inputs, *r3 = r2 + inputs;
    for (int64_t column = 0; column < outputs; column += 16) {
        __m256 a0 = start ? _mm256_loadu_ps(start + column) : _mm256_setzero_ps();
        __m256 a1 = start ? _mm256_loadu_ps(start + column + 8) : _mm256_setzero_ps();
        __m256 b0 = a0, b1 = a1, c0 = a0, c1 = a1, d0 = a0, d1 = a1;
        const float *weights = matrix + column;
        for (int64_t i = 0; i < inputs; i++, weights += outputs) {
            const __m256 left = _mm256_loadu_ps(weights), right = _mm256_loadu_ps(weights + 8);
            __m256 value = _mm256_broadcast_ss(r0 + i);
            a0 = _mm256_fmadd_ps(value, left, a0);
            a1 = _mm256_fmadd_ps(value, right, a1);
            value = _mm256_broadcast_ss(r1 + i);
            b0 = _mm256_fmadd_ps(value, left, b0);
            b1 = _mm256_fmadd_ps(value, right, b1);
            value = _mm256_broadcast_ss(r2 + i);
            c0 = _mm256_fmadd_ps(value, left, c0);
            c1 = _mm256_fmadd_ps(value, right, c1);
            value = _mm256_broadcast_ss(r3 + i);
            d0 = _mm256_fmadd_ps(value, left, d0);
            d1 = _mm256_fmadd_ps(value, right, d1);
        }
        float *result = results + column;
        _mm256_storeu_ps(result, a0);
        _mm256_storeu_ps(result + 8, a1);
        _mm256_storeu_ps(result + outputs, b0);
        _mm256_storeu_ps(result + outputs + 8, b1);
        _mm256_storeu_ps(result + 2 * outputs, c0);
        _mm256_storeu_ps(result + 2 * outputs + 8, c1);
        _mm256_storeu_ps(result + 3 * outputs, d0);
        _mm256_storeu_ps(result + 3 * outputs + 8, d1);
    }
}
#endif

VECTORISED static void multiply_plain(const float *rows, int64_t inputs, const float *matrix,
                                      int64_t outputs, const float *start, float *results)
{
    multiply_four(rows, inputs, matrix, outputs, start, results);
}

typedef void (*Multiply)(const float *rows, int64_t inputs, const float *matrix, int64_t outputs,
                         const float *start, float *results);

static Multiply fastest_multiply(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return multiply_fused;
#endif
    return multiply_plain;
}

VECTORISED static void transform_inputs(const Convolution *c, int64_t tile, int64_t across,
                                        float *points, int64_t step)
{
    for (int64_t channel = 0; channel < c->inputs; channel += WIDE)
        transform_input(c, c->first + tile / across * TILE, tile % across * TILE, channel, points,
                        step);
}

VECTORISED static void write_outputs(const Convolution *c, int64_t tile, int64_t across,
                                     const float *points, int64_t step)
{
    for (int64_t channel = 0; channel < c->outputs; channel += WIDE)
        write_output(c, c->first + tile / across * TILE, tile % across * TILE, channel, points,
                     step);
}

/* Some tiles. before: (POINTS, MOST_TILES, inputs), after: the same of outputs. */
static void convolve_tiles(const Convolution *c, Multiply multiply, int64_t first, int64_t tiles,
                           int64_t across, float *before, float *after)
{
    const int64_t step = MOST_TILES * c->inputs, result_step = MOST_TILES * c->outputs;
    for (int64_t i = 0; i < tiles; i++)
        transform_inputs(c, first + i, across, before + i * c->inputs, step);
    for (int64_t point = 0; point < POINTS; point++)
        for (int64_t i = 0; i < tiles; i += FEW)
            multiply(before + point * step + i * c->inputs, c->inputs,
                     c->weights + point * c->inputs * c->outputs, c->outputs, 0,
                     after + point * result_step + i * c->outputs);
    for (int64_t i = 0; i < tiles; i++)
        write_outputs(c, first + i, across, after + i * c->outputs, result_step);
}

/* A 3x3 convolution with ReLU of some rows of a map; beyond the map there are zeros.
 *
 * map: (rows, columns, inputs); first, count: rows of the output, multiples of 2 with `pool`.
 * weights: (36, inputs, outputs), transformed; bias: (outputs).
 * result: (count, columns, outputs), with `pool` the maxima of 2x2 of it.
 * Returns 0, or -1 if there is no memory. */
int32_t d2s_convolve(const float *map, int64_t rows, int64_t columns, int64_t inputs, int64_t first,
                     int64_t count, const float *weights, const float *bias, int64_t outputs,
                     int32_t pool, int32_t threads, float *result)
{
    const Convolution c = {rows, columns, inputs,  first, count, outputs,
                           map,  weights, bias, pool,  result};
    const int64_t across = (columns + TILE - 1) / TILE, down = (count + TILE - 1) / TILE;
    const int64_t tiles = across * down, blocks = (tiles + MOST_TILES - 1) / MOST_TILES;
    const Multiply multiply = fastest_multiply();
    const int64_t share = POINTS * MOST_TILES * (inputs + outputs);
    float *scratch = calloc((size_t)(threads * share), sizeof *scratch);
    if (!scratch)
        return -1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t block = 0; block < blocks; block++) {
        float *before = scratch + omp_get_thread_num() * share;
        const int64_t start = block * MOST_TILES, left = tiles - start;
        convolve_tiles(&c, multiply, start, left < MOST_TILES ? left : MOST_TILES, across, before,
                       before + POINTS * MOST_TILES * inputs);
    }
    free(scratch);
    return 0;
}

VECTORISED static void convolve_row(const uint8_t *image, int64_t rows, int64_t columns, int64_t y,
                                    const float *weights, const float *bias, int64_t outputs,
                                    float *result)
{
    for (int64_t x = 0; x < columns; x++)
        for (int64_t channel = 0; channel < outputs; channel += WIDE) {
            Wide sum = *(const Wide *)(bias + channel);
            const Wide zero = {0};
            for (int64_t i = 0; i < 9; i++) {
                const int64_t v = y + i / 3 - 1, u = x + i % 3 - 1;
                if (v >= 0 && v < rows && u >= 0 && u < columns)
                    sum += *(const Wide *)(weights + i * outputs + channel) *
                           (float)image[v * columns + u];
            }
            *(Wide *)(result + x * outputs + channel) = larger(sum, zero);
        }
}

/* A 3x3 convolution with ReLU of an image (rows, columns): rows `first` to `first + count` of it.
 *
 * weights: (9, outputs), bias: (outputs); result: (count, columns, outputs). */
int32_t d2s_convolve_image(const uint8_t *image, int64_t rows, int64_t columns, int64_t first,
                           int64_t count, const float *weights, const float *bias, int64_t outputs,
                           int32_t threads, float *result)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < count; row++)
        convolve_row(image, rows, columns, first + row, weights, bias, outputs,
                     result + row * columns * outputs);
    return 0;
}

/* Products of values (rows, inputs), a multiple of four rows, and weights (inputs, outputs), with
 * bias (outputs); result: (rows, outputs). */
int32_t d2s_multiply(const float *values, int64_t rows, int64_t inputs, const float *weights,
                     const float *bias, int64_t outputs, int32_t threads, float *result)
{
    const Multiply multiply = fastest_multiply();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row += FEW)
        multiply(values + row * inputs, inputs, weights, outputs, bias, result + row * outputs);
    return 0;
}
