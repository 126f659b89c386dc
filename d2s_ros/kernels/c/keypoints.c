/* From the score map of a detector to its keypoints, and to the cells that describe them.
 *
 * The formulas are those of kernels/tensors.py. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { CELL = 8, LOGITS = CELL * CELL + 1, FEW_PIXELS = 512, NOT_THIS_WAY = -2 };

/* exp of what is not positive, within 2e-7. */
INLINED Lanes exp_of(Lanes x)
{
    const Integers small = x < -87.0f;
    x = (Lanes)((~small & (Integers)x) | (small & (Integers)(x * 0.0f - 87.0f)));
    const Integers whole = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);
    const Lanes power = __builtin_convertvector(whole, Lanes);
    const Lanes rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
    Lanes y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    return y * (Lanes)((whole + 127) << 23);
}

/* Softmax over the logits of a cell, without that of 'no keypoint' in the end. */
VECTORISED static void softmax(const float *restrict logits, float *restrict shares)
{
    float most = logits[LOGITS - 1], none[LANES], total = 0.0f;
#pragma omp simd reduction(max : most)
    for (int i = 0; i < LOGITS - 1; i++)
        most = logits[i] > most ? logits[i] : most;
    for (int i = 0; i < LOGITS - 1; i += LANES)
        *(Lanes *)(shares + i) = exp_of(*(const Lanes *)(logits + i) - most);
    for (int i = 0; i < LANES; i++)
        none[i] = logits[LOGITS - 1] - most;
    *(Lanes *)none = exp_of(*(const Lanes *)none);
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < LOGITS - 1; i++)
        total += shares[i];
    const float scale = 1.0f / (total + none[0]);
#pragma omp simd
    for (int i = 0; i < LOGITS - 1; i++)
        shares[i] *= scale;
}

/* The score map (height, width) from logits (cells in rows and columns, 65), without padding. */
int32_t d2s_score_map(const float *logits, int64_t cell_rows, int64_t cell_columns, int64_t height,
                      int64_t width, int32_t threads, float *scores)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < cell_rows; row++) {
        float shares[LOGITS - 1];
        for (int64_t column = 0; column < cell_columns; column++) {
            softmax(logits + (row * cell_columns + column) * LOGITS, shares);
            const int64_t left = column * CELL, length = width - left < CELL ? width - left : CELL;
            for (int64_t i = 0; i < CELL && row * CELL + i < height && length > 0; i++)
                memcpy(scores + (row * CELL + i) * width + left, shares + i * CELL,
                       (size_t)length * sizeof *scores);
        }
    }
    return 0;
}

/* The largest of each value and those up to `radius` beside it; `values` has them at both ends. */
VECTORISED static void largest_beside(const float *restrict values, int64_t count, int64_t radius,
                                      float *restrict result)
{
    for (int64_t i = 0; i < count; i++)
        result[i] = values[i];
    for (int64_t shift = 1; shift <= 2 * radius; shift++)
#pragma omp simd
        for (int64_t i = 0; i < count; i++)
            result[i] = values[i + shift] > result[i] ? values[i + shift] : result[i];
}

VECTORISED static void raise(float *restrict result, const float *restrict values, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        result[i] = values[i] > result[i] ? values[i] : result[i];
}

/* 1 where both are equal and more than a threshold. */
VECTORISED static void mark_maxima(const float *restrict scores, const float *restrict largest,
                                   float threshold, int64_t count, uint8_t *restrict marks)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        marks[i] = (scores[i] == largest[i]) & (scores[i] > threshold);
}

/* 1 where a score is at least `least` and nothing is marked near. */
VECTORISED static void mark_free(const float *restrict scores, float least,
                                 const uint8_t *restrict near, int64_t count,
                                 uint8_t *restrict marks)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        marks[i] = (scores[i] >= least) & !near[i];
}

/* The first mark from `at` on, `count` if there is none; most are 0. */
INLINED int64_t next_mark(const uint8_t *marks, int64_t count, int64_t at)
{
    for (; at < count; at++) {
        uint64_t eight;
        if (at + 8 <= count) {
            memcpy(&eight, marks + at, 8);
            if (!eight) {
                at += 7;
                continue;
            }
        }
        if (marks[at])
            break;
    }
    return at;
}

/* A pixel and its score as one number: higher scores are more, of equal ones the first pixel. */
INLINED uint64_t key_of(float score, int64_t index)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return (uint64_t)bits << 32 | (UINT32_MAX - (uint32_t)index);
}

static int compare_keys(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

/* Move the `count` largest keys to the front, the least of them to the end of these. */
static void select_largest(uint64_t *keys, int64_t size, int64_t count)
{
    int64_t low = 0, high = size - 1;
    while (low < high) {
        const uint64_t middle = keys[(low + high) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (keys[i] > middle)
                i++;
            while (keys[j] < middle)
                j--;
            if (i <= j) {
                const uint64_t other = keys[i];
                keys[i++] = keys[j];
                keys[j--] = other;
            }
        }
        if (count - 1 <= j)
            high = j;
        else if (count - 1 >= i)
            low = i;
        else
            break;
    }
}

typedef struct {
    const float *scores;
    const uint8_t *allowed;
    int64_t height, width, border;
} Map;

static int eligible(const Map *map, int64_t index)
{
    const int64_t row = index / map->width, column = index % map->width, edge = map->border;
    return row >= edge && row < map->height - edge && column >= edge &&
           column < map->width - edge && (!map->allowed || map->allowed[index]);
}

static int are_near(int32_t a, int32_t b, int64_t width, int64_t radius)
{
    return labs(a / width - b / width) <= radius && labs(a % width - b % width) <= radius;
}

/* Add which of some pixels the second and third round of suppression keep; returns how many. */
static int64_t late_maxima(const Map *map, const int32_t *pixels, int64_t count, int64_t radius,
                           uint64_t *keys)
{
    uint8_t kept[FEW_PIXELS] = {0}, is_free[FEW_PIXELS];
    memset(is_free, 1, sizeof is_free);
    for (int round = 0; round < 2; round++) {
        uint8_t maximum[FEW_PIXELS], next[FEW_PIXELS];
        for (int64_t i = 0; i < count; i++) {
            maximum[i] = is_free[i];
            for (int64_t j = 0; j < count && maximum[i]; j++)
                if (is_free[j] && map->scores[pixels[j]] > map->scores[pixels[i]] &&
                    are_near(pixels[i], pixels[j], map->width, radius))
                    maximum[i] = 0;
        }
        for (int64_t i = 0; i < count; i++)
            kept[i] |= maximum[i];
        for (int64_t i = 0; i < count; i++) {
            next[i] = 1;
            for (int64_t j = 0; j < count && next[i]; j++)
                if (kept[j] && are_near(pixels[i], pixels[j], map->width, radius))
                    next[i] = 0;
        }
        memcpy(is_free, next, sizeof is_free);
    }
    int64_t num_kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (kept[i] && eligible(map, pixels[i]))
            keys[num_kept++] = key_of(map->scores[pixels[i]], pixels[i]);
    return num_kept;
}

/* The strongest maxima of a score map, as `strongest_maxima` in reference.py.
 *
 * radius: positive. allowed: (height, width) non-zero where maxima count, or none.
 * border: none are closer to it. threshold: their scores are larger; not negative.
 * index: (count) flat indices, best first.
 * Returns how many there are, -1 if there is no memory, NOT_THIS_WAY where the first round of
 * suppression leaves too few, or too much undecided. */
int32_t d2s_strongest_maxima(const float *scores, int64_t height, int64_t width, int64_t radius,
                             int64_t border, float threshold, const uint8_t *allowed, int32_t count,
                             int32_t threads, int64_t *index)
{
    const Map map = {scores, allowed, height, width, border};
    const int64_t size = height * width, padded = width + 2 * radius;
    float *beside = malloc((size_t)size * sizeof *beside);
    float *scratch = malloc((size_t)(threads * (padded + width)) * sizeof *scratch);
    uint8_t *marks = malloc((size_t)size), *near = calloc((size_t)size, 1);
    uint64_t *keys = malloc((size_t)(size + FEW_PIXELS) * sizeof *keys);
    int32_t left[FEW_PIXELS];
    int64_t num_keys = 0, num_left = 0, result = -1;
    if (!beside || !scratch || !marks || !near || !keys)
        goto end;
#pragma omp parallel num_threads(threads)
    {
        float *line = scratch + omp_get_thread_num() * (padded + width), *largest = line + padded;
        for (int64_t i = 0; i < radius; i++)
            line[i] = line[padded - 1 - i] = -INFINITY;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < height; row++) {
            memcpy(line + radius, scores + row * width, (size_t)width * sizeof *line);
            largest_beside(line, width, radius, beside + row * width);
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < height; row++) {
            const int64_t first = row > radius ? row - radius : 0;
            const int64_t last = row + radius < height ? row + radius : height - 1;
            memcpy(largest, beside + first * width, (size_t)width * sizeof *largest);
            for (int64_t other = first + 1; other <= last; other++)
                raise(largest, beside + other * width, width);
            mark_maxima(scores + row * width, largest, threshold, width, marks + row * width);
        }
    }
    for (int64_t at = 0; (at = next_mark(marks, size, at)) < size; at++)
        if (eligible(&map, at))
            keys[num_keys++] = key_of(scores[at], at);
    result = NOT_THIS_WAY;
    if (num_keys < count)
        goto end;
    select_largest(keys, num_keys, count);
    /* A pixel gives way to none that is weaker: later rounds look at strong ones alone, near no
     * strong maximum of the first. */
    const float least = scores[UINT32_MAX - (uint32_t)keys[count - 1]];
    for (int64_t at = 0; (at = next_mark(marks, size, at)) < size; at++) {
        if (scores[at] < least)
            continue;
        const int64_t row = at / width, column = at % width;
        const int64_t first = column > radius ? column - radius : 0;
        const int64_t last = column + radius < width ? column + radius : width - 1;
        for (int64_t r = row > radius ? row - radius : 0; r <= row + radius && r < height; r++)
            memset(near + r * width + first, 1, (size_t)(last - first + 1));
    }
    mark_free(scores, least, near, size, marks);
    for (int64_t at = 0; (at = next_mark(marks, size, at)) < size; at++) {
        if (num_left == FEW_PIXELS)
            goto end;
        left[num_left++] = (int32_t)at;
    }
    num_keys = count + late_maxima(&map, left, num_left, radius, keys + count);
    select_largest(keys, num_keys, count);
    qsort(keys, (size_t)count, sizeof *keys, compare_keys);
    for (int32_t i = 0; i < count; i++)
        index[i] = (int64_t)(UINT32_MAX - (uint32_t)keys[i]);
    result = count;
end:
    free(beside);
    free(scratch);
    free(marks);
    free(near);
    free(keys);
    return (int32_t)result;
}

/* The tops of parabolas through the logarithms of the scores around pixels, as
 * `refine_keypoints` in tensors.py. keypoints: (count, 2) x, y. */
int32_t d2s_refine_keypoints(const float *scores, int64_t width, const int64_t *index,
                             int64_t count, float floor, float *keypoints)
{
    for (int64_t n = 0; n < count; n++) {
        float window[3][3];
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++)
                window[i][j] = logf(scores[index[n] + (i - 1) * width + j - 1] + floor);
        const float middle = 2.0f * window[1][1];
        const float x = 0.5f * (window[1][2] - window[1][0]);
        const float y = 0.5f * (window[2][1] - window[0][1]);
        const float xx = window[1][2] + window[1][0] - middle;
        const float yy = window[2][1] + window[0][1] - middle;
        const float xy = 0.25f * (window[2][2] + window[0][0] - window[0][2] - window[2][0]);
        const float determinant = xx * yy - xy * xy;
        float offset[2] = {0.0f, 0.0f};
        /* A saddle or a plateau says nothing about where the top is. */
        if (determinant > 1e-6f && xx < 0.0f) {
            offset[0] = (xy * y - yy * x) / determinant;
            offset[1] = (xy * x - xx * y) / determinant;
        }
        for (int i = 0; i < 2; i++)
            offset[i] = offset[i] > 0.75f ? 0.75f : offset[i] < -0.75f ? -0.75f : offset[i];
        keypoints[2 * n] = (float)(index[n] % width) + offset[0];
        keypoints[2 * n + 1] = (float)(index[n] / width) + offset[1];
    }
    return 0;
}

INLINED float between(float value, float most)
{
    return value < 0.0f ? 0.0f : value > most ? most : value;
}

/* The four cells around each keypoint and their weights, as `neighbouring_cells` in
 * tensors.py, and which cells these are.
 *
 * neighbours: (count, 4) places among the cells; weights: (count, 4).
 * cells: up to min(4 count, rows * columns), ascending.
 * Returns the number of cells, -1 if there is no memory. */
int32_t d2s_cells_around(const float *keypoints, int64_t count, int64_t rows, int64_t columns,
                         int64_t *neighbours, float *weights, int64_t *cells)
{
    int32_t *place = calloc((size_t)(rows * columns), sizeof *place);
    if (!place)
        return -1;
    const int64_t right = columns > 1, below = rows > 1 ? columns : 0;
    for (int64_t n = 0; n < count; n++) {
        const float middle = (CELL - 1) / 2.0f;
        const float u = between((keypoints[2 * n] - middle) / CELL, (float)(columns - 1));
        const float v = between((keypoints[2 * n + 1] - middle) / CELL, (float)(rows - 1));
        const float left = between(floorf(u), (float)(columns > 1 ? columns - 2 : 0));
        const float top = between(floorf(v), (float)(rows > 1 ? rows - 2 : 0));
        const float a = u - left, b = v - top;
        const int64_t first = (int64_t)top * columns + (int64_t)left;
        const int64_t four[4] = {first, first + right, first + below, first + right + below};
        const float shares[4] = {(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b};
        for (int i = 0; i < 4; i++) {
            neighbours[4 * n + i] = four[i];
            weights[4 * n + i] = shares[i];
            place[four[i]] = 1;
        }
    }
    int32_t used = 0;
    for (int64_t cell = 0; cell < rows * columns; cell++)
        if (place[cell]) {
            cells[used] = cell;
            place[cell] = used++;
        }
    for (int64_t i = 0; i < 4 * count; i++)
        neighbours[i] = place[neighbours[i]];
    free(place);
    return used;
}

/* The nine cells around each of some cells, row after row: (count, 9 channels), zeros beyond the
 * edge. map: (rows, columns, channels) bytes. */
int32_t d2s_gather_around(const uint8_t *map, int64_t rows, int64_t columns, int64_t channels,
                          const int64_t *cells, int64_t count, int32_t threads, uint8_t *result)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < count; n++) {
        const int64_t row = cells[n] / columns, column = cells[n] % columns;
        uint8_t *out = result + n * 9 * channels;
        const int64_t first = column > 0 ? column - 1 : 0;
        const int64_t last = column + 1 < columns ? column + 1 : columns - 1;
        for (int64_t r = row - 1; r <= row + 1; r++, out += 3 * channels) {
            if (r < 0 || r >= rows || last - first < 2)
                memset(out, 0, (size_t)(3 * channels));
            if (r >= 0 && r < rows)
                memcpy(out + (first - column + 1) * channels, map + (r * columns + first) * channels,
                       (size_t)((last - first + 1) * channels));
        }
    }
    return 0;
}
