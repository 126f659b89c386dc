/* The nearest landmarks of each keypoint.
 *
 * Integer products of a few components tell which keys are near, exact cosines of these in which
 * order. Eight keypoints at a time: what is computed for them stays in the cache. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { BLOCK = 64, MOST_FOUND = 64 };

typedef struct {
    int32_t column[MOST_FOUND];
    uint8_t value[MOST_FOUND];
    int32_t count;
} Found;

/* The largest byte of each block of a row; the row's bytes also raise `column_best`. */
VECTORISED static void block_maxima(const uint8_t *restrict row, int64_t num_blocks,
                                    uint8_t *restrict column_best, uint8_t *restrict maxima)
{
    for (int64_t block = 0; block < num_blocks; block++) {
        const uint8_t *bytes = row + block * BLOCK;
        uint8_t *best = column_best + block * BLOCK;
        uint8_t largest = 0;
#pragma omp simd reduction(max : largest)
        for (int i = 0; i < BLOCK; i++) {
            best[i] = bytes[i] > best[i] ? bytes[i] : best[i];
            largest = bytes[i] > largest ? bytes[i] : largest;
        }
        maxima[block] = largest;
    }
}

/* The largest value that at least `most` of the values reach. */
VECTORISED static int32_t rank_value(const uint8_t *values, int64_t count, int32_t most)
{
    int32_t low = 0;
    for (int32_t bit = 128; bit; bit >>= 1) {
        const uint8_t middle = (uint8_t)(low + bit);
        int32_t reached = 0;
#pragma omp simd reduction(+ : reached)
        for (int64_t i = 0; i < count; i++)
            reached += values[i] >= middle;
        if (reached >= most)
            low = middle;
    }
    return low;
}

/* Bit i of the result: whether byte i of a block is at least `least`. */
VECTORISED static uint64_t reached_in_block(const uint8_t *restrict bytes, uint8_t least)
{
    uint8_t flags[BLOCK];
    uint64_t result = 0, word;
#pragma omp simd
    for (int i = 0; i < BLOCK; i++)
        flags[i] = bytes[i] >= least;
    for (int i = 0; i < BLOCK / 8; i++) {
        memcpy(&word, flags + 8 * i, 8);
        /* Gathers the lowest bits of eight bytes. */
        result |= ((word * 0x0102040810204080ULL) >> 56) << (8 * i);
    }
    return result;
}

/* The `most` largest bytes of a row, of equal ones the first; columns from `width` on are none.
 *
 * values, columns: room for those of the whole row. */
static void largest_of_row(const uint8_t *row, const uint8_t *maxima, int64_t width,
                           int64_t num_blocks, int32_t most, uint8_t *values, int32_t *columns,
                           Found *found)
{
    /* They are in blocks whose maximum is at least the most-th largest of the maxima. */
    int32_t least = num_blocks >= most ? rank_value(maxima, num_blocks, most) : 0;
    int64_t count = 0;
    for (int64_t block = 0; block < num_blocks; block++) {
        if (maxima[block] < least)
            continue;
        uint64_t reached = reached_in_block(row + block * BLOCK, (uint8_t)least);
        if ((block + 1) * BLOCK > width)
            reached &= ~0ULL >> ((block + 1) * BLOCK - width);
        for (; reached; reached &= reached - 1) {
            const int32_t column = (int32_t)(block * BLOCK + __builtin_ctzll(reached));
            values[count] = row[column];
            columns[count++] = column;
        }
    }
    least = rank_value(values, count, most);
    int32_t equal = most;
    for (int64_t i = 0; i < count; i++)
        equal -= values[i] > least;
    found->count = 0;
    for (int64_t i = 0; i < count; i++)
        if (values[i] > least || (values[i] == least && equal-- > 0)) {
            found->value[found->count] = values[i];
            found->column[found->count++] = columns[i];
        }
}

VECTORISED static float dot(const float *restrict a, const float *restrict b, int64_t count)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Products (rows, size) of values (rows, dim) and directions (dim, size), without a BLAS: its
 * threads keep spinning for a while after each. */
VECTORISED static void project(const float *restrict values, int64_t rows, int64_t dim,
                               const float *restrict directions, int64_t size,
                               float *restrict result)
{
    memset(result, 0, (size_t)(rows * size) * sizeof *result);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < dim; i++) {
            const float value = values[row * dim + i];
#pragma omp simd
            for (int64_t j = 0; j < size; j++)
                result[row * size + j] += value * directions[i * size + j];
        }
}

int32_t d2s_project(const float *values, int64_t rows, int64_t dim, const float *directions,
                    int64_t size, float *result)
{
    project(values, rows, dim, directions, size, result);
    return 0;
}

/* Components as bytes around 128. */
VECTORISED static void quantise(const float *restrict values, float scale, int64_t count,
                                uint8_t *restrict bytes)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float x = values[i] * scale;
        x = x > 127.0f ? 127.0f : x < -127.0f ? -127.0f : x;
        bytes[i] = (uint8_t)(int32_t)(x + 128.5f);
    }
}

/* Write the `count` best by exact cosines of what was found for a query. */
static void order_found(const Found *found, const float *query, const float *keys, int64_t dim,
                        int32_t count, int64_t *idx, float *similarity, uint8_t *bytes)
{
    float exact[MOST_FOUND];
    int32_t order[MOST_FOUND];
    for (int32_t i = 0; i < found->count; i++) {
        exact[i] = dot(query, keys + found->column[i] * dim, dim);
        int32_t place = i;
        for (; place > 0 && exact[order[place - 1]] < exact[i]; place--)
            order[place] = order[place - 1];
        order[place] = i;
    }
    for (int32_t i = 0; i < count; i++) {
        idx[i] = found->column[order[i]];
        similarity[i] = exact[order[i]];
        bytes[i] = found->value[order[i]];
    }
}

/* Find the `count` nearest keys of each query: `most` by integer products, of these the best.
 *
 * queries: (rows, dim), exact_keys: (width, dim) float.
 * directions: (dim, 4 groups) of the components, `scale` times which are rounded to bytes.
 * packed, offsets, ...: see Keys.
 * idx, similarity: (rows, count), best first.
 * best: (rows, count) about the highest cosine of any query to each key.
 * Returns 0, or -1 if there is no memory. */
int32_t d2s_search(const float *queries, const float *exact_keys, int64_t rows, int64_t dim,
                   const float *directions, float scale, const int8_t *packed,
                   const int32_t *offsets, int64_t width, int64_t stride, int32_t groups,
                   int32_t shift, int32_t factor, int32_t most, int32_t count, int32_t threads,
                   int64_t *idx, float *similarity, float *best)
{
    const Keys keys = {packed, offsets, width, stride, groups, shift, (int16_t)factor};
    const Product product = fastest_product();
    const int64_t num_blocks = stride / BLOCK, num_components = 4 * groups;
    /* Of each thread: components and columns of a row, bytes of eight rows and of their queries,
     * values of a row, maxima of blocks and of columns. */
    const int64_t floats = QUERIES * num_components * (int64_t)sizeof(float);
    const int64_t wide = floats + stride * (int64_t)sizeof(int32_t);
    const int64_t before_best = wide + QUERIES * (stride + num_components) + stride + num_blocks;
    const int64_t share = (before_best + stride + 63) / 64 * 64;
    uint8_t *scratch = calloc((size_t)threads, (size_t)share);
    uint8_t *bytes = malloc((size_t)(rows * count + 1));
    if (!scratch || !bytes) {
        free(scratch);
        free(bytes);
        return -1;
    }
    /* Those of the first thread, in the end of all. */
    uint8_t *column_best = scratch + before_best;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *own = scratch + omp_get_thread_num() * share;
        float *components = (float *)own;
        int32_t *columns = (int32_t *)(own + floats);
        uint8_t *rows_of_bytes = own + wide, *small = rows_of_bytes + QUERIES * stride;
        uint8_t *values = small + QUERIES * num_components, *maxima = values + stride;
        uint8_t *own_best = own + before_best;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += QUERIES) {
            const int64_t here = rows - first < QUERIES ? rows - first : QUERIES;
            Found found[QUERIES];
            project(queries + first * dim, here, dim, directions, num_components, components);
            quantise(components, scale, here * num_components, small);
            product(small, &keys, rows_of_bytes);
            for (int64_t i = 0; i < here; i++) {
                const uint8_t *row = rows_of_bytes + i * stride;
                block_maxima(row, num_blocks, own_best, maxima);
                largest_of_row(row, maxima, width, num_blocks, most, values, columns, &found[i]);
                for (int32_t j = 0; j < found[i].count; j++)
                    for (int64_t k = 0; k < dim; k += 16)
                        __builtin_prefetch(exact_keys + found[i].column[j] * dim + k);
            }
            for (int64_t i = 0; i < here; i++) {
                const int64_t out = (first + i) * count;
                order_found(&found[i], queries + (first + i) * dim, exact_keys, dim, count,
                            idx + out, similarity + out, bytes + out);
            }
        }
        for (int32_t other = 1; other < omp_get_num_threads(); other++) {
#pragma omp for schedule(static)
            for (int64_t column = 0; column < stride; column++) {
                uint8_t *mine = column_best + column;
                const uint8_t theirs = column_best[other * share + column];
                *mine = theirs > *mine ? theirs : *mine;
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * count; i++)
            /* Both are bytes: exactly the cosine for mutual neighbours. */
            best[i] = similarity[i] + (float)(column_best[idx[i]] - bytes[i]) / 255.0f;
    }
    free(scratch);
    free(bytes);
    return 0;
}
