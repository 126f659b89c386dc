/* Calls kernels with numbers that are the same everywhere, and writes what they give.
 *
 * Each result is a line of its kind (i: whole numbers, f: others), its name and its numbers. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

static uint32_t state = 7;

/* Whole numbers from 0 to below `end`. */
static int32_t drawn(int32_t end)
{
    state = state * 1664525u + 1013904223u;
    return (int32_t)((state >> 8) % (uint32_t)end);
}

static float *floats(int64_t count, float scale)
{
    float *result = malloc((size_t)count * sizeof *result);
    for (int64_t i = 0; i < count; i++)
        result[i] = scale * (float)(drawn(2001) - 1000) / 1000.0f;
    return result;
}

static void write_floats(const char *name, const float *values, int64_t count)
{
    printf("f %s", name);
    for (int64_t i = 0; i < count; i++)
        printf(" %.9g", (double)values[i]);
    printf("\n");
}

static void products(void)
{
    enum { STRIDE = 192, GROUPS = 16 };
    static uint8_t queries[QUERIES * 4 * GROUPS], bytes[QUERIES * STRIDE];
    static int8_t packed[STRIDE * 4 * GROUPS];
    static int32_t offsets[STRIDE];
    for (int64_t i = 0; i < (int64_t)sizeof queries; i++)
        queries[i] = (uint8_t)(i < 64 ? 255 : 1 + drawn(255));
    for (int64_t i = 0; i < (int64_t)sizeof packed; i++)
        packed[i] = (int8_t)(i < 256 ? -127 : drawn(255) - 127);
    for (int64_t block = 0; block < STRIDE / 8; block++)
        for (int64_t group = 0; group < GROUPS; group++)
            for (int64_t i = 0; i < 32; i++)
                offsets[8 * block + i / 4] -= 128 * packed[(block * GROUPS + group) * 32 + i];
    for (int32_t kind = 0; kind < 5; kind++) {
        if (d2s_products(kind, queries, packed, offsets, STRIDE, GROUPS, 4, 9000, bytes))
            continue;
        printf("i products%d", kind);
        for (int64_t i = 0; i < (int64_t)sizeof bytes; i++)
            printf(" %d", bytes[i]);
        printf("\n");
    }
    enum { ROWS = 19, DIM = 24, COUNT = 5 };
    static int64_t idx[ROWS * COUNT];
    static float similarity[ROWS * COUNT], best[ROWS * COUNT];
    float *keys = floats(STRIDE * DIM, 0.3f), *asked = floats(ROWS * DIM, 0.3f);
    float *directions = floats(DIM * 4 * GROUPS, 0.2f);
    d2s_search(asked, keys, ROWS, DIM, directions, 60.0f, packed, offsets, STRIDE, STRIDE, GROUPS, 4,
               9000, 11, COUNT, 2, idx, similarity, best);
    printf("i search");
    for (int64_t i = 0; i < ROWS * COUNT; i++)
        printf(" %d", (int)idx[i]);
    printf("\n");
    write_floats("similarity", similarity, ROWS * COUNT);
    write_floats("best", best, ROWS * COUNT);
}

static void convolutions(void)
{
    enum { ROWS = 10, COLUMNS = 14, INPUTS = 32, OUTPUTS = 48 };
    static float result[ROWS * COLUMNS * OUTPUTS];
    float *map = floats(ROWS * COLUMNS * INPUTS, 1.0f), *bias = floats(OUTPUTS, 1.0f);
    float *weights = floats(36 * INPUTS * OUTPUTS, 0.05f);
    d2s_convolve(map, ROWS, COLUMNS, INPUTS, 2, 6, weights, bias, OUTPUTS, 0, 2, result);
    write_floats("convolve", result, 6 * COLUMNS * OUTPUTS);
    d2s_convolve(map, ROWS, COLUMNS, INPUTS, 0, ROWS, weights, bias, OUTPUTS, 1, 2, result);
    write_floats("pool", result, ROWS / 2 * COLUMNS / 2 * OUTPUTS);
    uint8_t image[ROWS * COLUMNS];
    for (int64_t i = 0; i < ROWS * COLUMNS; i++)
        image[i] = (uint8_t)drawn(256);
    d2s_convolve_image(image, ROWS, COLUMNS, 1, 8, weights, bias, OUTPUTS, 2, result);
    write_floats("image", result, 8 * COLUMNS * OUTPUTS);
    d2s_multiply(map, 20, INPUTS, weights, bias, OUTPUTS, 2, result);
    write_floats("multiply", result, 20 * OUTPUTS);
}

static void keypoints(void)
{
    enum { ROWS = 6, COLUMNS = 8, SIDE = 8, COUNT = 12 };
    static float scores[ROWS * SIDE * COLUMNS * SIDE], refined[2 * COUNT];
    int64_t index[COUNT];
    float *logits = floats(ROWS * COLUMNS * 65, 4.0f);
    d2s_score_map(logits, ROWS, COLUMNS, ROWS * SIDE, COLUMNS * SIDE, 2, scores);
    write_floats("scores", scores, ROWS * SIDE * COLUMNS * SIDE);
    const int32_t found = d2s_strongest_maxima(scores, ROWS * SIDE, COLUMNS * SIDE, 4, 4, 0.0f, 0,
                                               COUNT, 2, index);
    printf("i maxima");
    for (int32_t i = 0; i < found; i++)
        printf(" %d", (int)index[i]);
    printf("\n");
    if (found > 0) {
        d2s_refine_keypoints(scores, COLUMNS * SIDE, index, found, 1e-3f, refined);
        write_floats("refined", refined, 2 * found);
    }
}

int main(void)
{
    products();
    convolutions();
    keypoints();
    return 0;
}
