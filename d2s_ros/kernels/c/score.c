/* The network that scores candidate landmarks, where it has no attention layers.
 *
 * All that it computes of a keypoint before it looks at the candidates is linear then: one product,
 * and two rows of tables for the best and the second candidate. Tables are bfloat16. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { ROWS = 4, EVIDENCE = 4 };

static const double HALF_PI = 1.57079632679489661923;

/* What is the same for all images.
 *
 * dim, candidates, frequencies: shape of the inputs, which are descriptor, evidence of the
 *     candidates, normalized point with sines and cosines, logarithm of the scale.
 * width: of the candidates' hidden layer.
 * stride: width + 2 (constant and none) rounded up to a multiple of LANES.
 * product: (inputs, stride), bias: (stride).
 * of_best, of_second: (landmarks, stride) what best and second candidate add, bfloat16.
 * of_any: (landmarks, width) of the hidden layer, bfloat16; by_evidence: (EVIDENCE, width).
 * gain: of the cosine below the best candidate's. */
typedef struct {
    int64_t dim, candidates, frequencies, width, stride;
    const float *product, *bias;
    const uint16_t *of_best, *of_second, *of_any;
    const float *by_evidence;
    double gain;
} Network;

INLINED float widened(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* As `fourier` in tensors.py: values, sines, cosines of doubling frequencies. */
static void fourier_of(const float *values, int64_t count, int64_t frequencies, float *result)
{
    float *sines = result + count, *cosines = sines + count * frequencies;
    for (int64_t i = 0; i < count; i++) {
        result[i] = values[i];
        double sine = sin(values[i] * HALF_PI), cosine = cos(values[i] * HALF_PI);
        for (int64_t f = 0; f < frequencies; f++) {
            *sines++ = (float)sine;
            *cosines++ = (float)cosine;
            const double next = 2.0 * sine * cosine;
            cosine = 1.0 - 2.0 * sine * sine;
            sine = next;
        }
    }
}

/* Inputs of a keypoint; the evidence among them as `candidate_evidence` in tensors.py. */
static void inputs_of(const Network *network, const float *descriptor, const float *similarity,
                      const float *best_of_landmark, const float *normalized_point, float log_scale,
                      float *inputs)
{
    memcpy(inputs, descriptor, (size_t)network->dim * sizeof *inputs);
    inputs += network->dim;
    for (int64_t c = 0; c < network->candidates; c++, inputs += EVIDENCE) {
        const float distance = fmaxf(1.0f - similarity[c], 0.0f) + 1e-4f;
        inputs[0] = similarity[c];
        inputs[1] = 0.5f * logf(distance);
        inputs[2] = similarity[c] - similarity[0];
        inputs[3] = similarity[c] - best_of_landmark[c];
    }
    fourier_of(normalized_point, 2, network->frequencies, inputs);
    inputs[2 + 4 * network->frequencies] = log_scale;
}

/* Products of four rows of inputs, sixteen columns at a time. */
VECTORISED static void multiply(const Network *network, const float *inputs, int64_t num_inputs,
                                float *results)
{
    for (int64_t column = 0; column < network->stride; column += LANES) {
        const Lanes start = *(const Lanes *)(network->bias + column);
        Lanes a = start, b = start, c = start, d = start;
        const float *weights = network->product + column;
        for (int64_t i = 0; i < num_inputs; i++, weights += network->stride) {
            const Lanes weight = *(const Lanes *)weights;
            a += weight * inputs[i];
            b += weight * inputs[num_inputs + i];
            c += weight * inputs[2 * num_inputs + i];
            d += weight * inputs[3 * num_inputs + i];
        }
        float *result = results + column;
        *(Lanes *)result = a;
        *(Lanes *)(result + network->stride) = b;
        *(Lanes *)(result + 2 * network->stride) = c;
        *(Lanes *)(result + 3 * network->stride) = d;
    }
}

VECTORISED static void add_row(float *restrict sums, const uint16_t *restrict row, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        sums[i] += widened(row[i]);
}

/* The hidden layer of a candidate times the keypoint's query. */
VECTORISED static float learned_of(const uint16_t *restrict of_any, const float *restrict by,
                                   const float *restrict evidence, const float *restrict query,
                                   int64_t width)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) {
        const float hidden = widened(of_any[i]) + evidence[0] * by[i] + evidence[1] * by[width + i] +
                             evidence[2] * by[2 * width + i] + evidence[3] * by[3 * width + i];
        sum += (hidden > 0.0f ? hidden : 0.0f) * query[i];
    }
    return sum;
}

/* Softmax over the candidates and 'none': the largest share of a candidate, and which it is. */
static void choose(const float *logits, int64_t candidates, float none, float *reliability,
                   int64_t *choice)
{
    float most = none, total = 0.0f;
    int64_t best = 0;
    for (int64_t c = 0; c < candidates; c++) {
        best = logits[c] > logits[best] ? c : best;
        most = logits[c] > most ? logits[c] : most;
    }
    for (int64_t c = 0; c < candidates; c++)
        total += expf(logits[c] - most);
    total += expf(none - most);
    *reliability = expf(logits[best] - most) / total;
    *choice = best;
}

/* Score the candidates of keypoints.
 *
 * descriptors: (rows, dim), landmark_idx: (rows, candidates), similarity and best_of_landmark
 * likewise, normalized_points: (rows, 2), log_scales: (rows).
 * reliability, choice: (rows).
 * Returns 0, or -1 if there is no memory. */
int32_t d2s_score_candidates(const float *descriptors, const int64_t *landmark_idx,
                             const float *similarity, const float *best_of_landmark,
                             const float *normalized_points, const float *log_scales, int64_t rows,
                             int64_t dim, int64_t candidates, int64_t frequencies, int64_t width,
                             int64_t stride, const float *product, const float *bias,
                             const uint16_t *of_best, const uint16_t *of_second,
                             const uint16_t *of_any, const float *by_evidence, double gain,
                             int32_t threads, float *reliability, int64_t *choice)
{
    const Network network = {dim,     candidates, frequencies, width,  stride,      product,
                             bias,    of_best,    of_second,   of_any, by_evidence, gain};
    const int64_t num_inputs = dim + EVIDENCE * candidates + 3 + 4 * frequencies;
    const int64_t share = ROWS * (num_inputs + stride) + candidates;
    float *scratch = calloc((size_t)(threads * share), sizeof *scratch);
    if (!scratch)
        return -1;
#pragma omp parallel num_threads(threads)
    {
        float *inputs = scratch + omp_get_thread_num() * share;
        float *results = inputs + ROWS * num_inputs, *logits = results + ROWS * stride;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += ROWS) {
            const int64_t here = rows - first < ROWS ? rows - first : ROWS;
            for (int64_t i = 0; i < here; i++) {
                const int64_t row = first + i, at = row * candidates;
                inputs_of(&network, descriptors + row * dim, similarity + at,
                          best_of_landmark + at, normalized_points + 2 * row, log_scales[row],
                          inputs + i * num_inputs);
                for (int64_t c = 0; c < candidates; c++)
                    for (int64_t j = 0; j < width; j += 32)
                        __builtin_prefetch(of_any + landmark_idx[at + c] * width + j);
            }
            multiply(&network, inputs, num_inputs, results);
            for (int64_t i = 0; i < here; i++) {
                const int64_t row = first + i;
                const int64_t *landmarks = landmark_idx + row * candidates;
                float *query = results + i * stride;
                const float *evidence = inputs + i * num_inputs + dim;
                add_row(query, of_best + landmarks[0] * stride, stride);
                add_row(query, of_second + landmarks[candidates > 1] * stride, stride);
                for (int64_t c = 0; c < candidates; c++, evidence += EVIDENCE)
                    logits[c] = (float)gain * evidence[2] + query[width] +
                                learned_of(of_any + landmarks[c] * width, by_evidence, evidence,
                                           query, width);
                choose(logits, candidates, query[width + 1], reliability + row, choice + row);
            }
        }
    }
    free(scratch);
    return 0;
}
