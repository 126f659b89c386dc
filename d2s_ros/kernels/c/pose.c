/* Whitened reprojection errors of a pose, their normal equations, and what a pose brings close.
 *
 * A pose is camera_from_map: a rotation (3, 3), then a translation (3). Pixels are those of a
 * camera without distortion. The formulas are those of reference.py. */
#include <math.h>
#include <string.h>

#include "kernels.h"

enum { MOST_PARAMETERS = 7 };

static const double LEAST_DEPTH = 1e-6;

typedef struct {
    double fx, fy, cx, cy;
} Camera;

/* a, b: x/z and y/z. */
typedef struct {
    double a, b, inverse_depth, depth;
} Ray;

INLINED Ray ray_of(const double *pose, const double *point)
{
    double in_camera[3];
    for (int i = 0; i < 3; i++)
        in_camera[i] = pose[3 * i] * point[0] + pose[3 * i + 1] * point[1] +
                       pose[3 * i + 2] * point[2] + pose[9 + i];
    const double depth = in_camera[2];
    const double inverse = 1.0 / (depth > LEAST_DEPTH ? depth : LEAST_DEPTH);
    return (Ray){in_camera[0] * inverse, in_camera[1] * inverse, inverse, depth};
}

/* Rows of a lower triangle W (w11, w21, w22) with W S W^T = 1 for each residual's covariance S.
 *
 * covariances: (count, 3, 3) of the points, or none. variances: (count, 3) of the pixels: uu, uv, vv.
 * whitening: (count, 3). */
int32_t d2s_whiten(const double *points, const double *covariances, const double *variances,
                   int64_t count, const double *pose, double fx, double fy, double *whitening)
{
    for (int64_t n = 0; n < count; n++) {
        double uu = variances[3 * n], uv = variances[3 * n + 1], vv = variances[3 * n + 2];
        if (covariances) {
            const Ray ray = ray_of(pose, points + 3 * n);
            const double *covariance = covariances + 9 * n;
            double by_u[3], by_v[3];
            for (int i = 0; i < 3; i++) {
                by_u[i] = fx * ray.inverse_depth * (pose[i] - ray.a * pose[6 + i]);
                by_v[i] = fy * ray.inverse_depth * (pose[3 + i] - ray.b * pose[6 + i]);
            }
            for (int i = 0; i < 3; i++)
                for (int j = 0; j < 3; j++) {
                    uu += by_u[i] * covariance[3 * i + j] * by_u[j];
                    uv += by_u[i] * covariance[3 * i + j] * by_v[j];
                    vv += by_v[i] * covariance[3 * i + j] * by_v[j];
                }
        }
        /* Closed form of the inverse of a 2x2 Cholesky factor. */
        const double first = sqrt(fmax(uu, 1e-12)), mixed = uv / first;
        const double second = sqrt(fmax(vv - mixed * mixed, 1e-12));
        whitening[3 * n] = 1.0 / first;
        whitening[3 * n + 1] = -mixed / (first * second);
        whitening[3 * n + 2] = 1.0 / second;
    }
    return 0;
}

INLINED void residual_of(const Ray *ray, const double *keypoint, const double *w,
                         const Camera *camera, double *residual)
{
    const double u = camera->fx * ray->a + camera->cx - keypoint[0];
    const double v = camera->fy * ray->b + camera->cy - keypoint[1];
    residual[0] = w[0] * u;
    residual[1] = w[1] * u + w[2] * v;
}

/* Two rows of derivatives by rotation and translation on the left of the pose, and by the
 * logarithm of the focal length. */
INLINED void jacobian_of(const Ray *ray, const double *w, const Camera *camera,
                         double rows[2][MOST_PARAMETERS])
{
    const double a = ray->a, b = ray->b, inverse = ray->inverse_depth;
    const double by_a[MOST_PARAMETERS] = {-a * b, 1.0 + a * a, -b, inverse, 0.0, -a * inverse, a};
    const double by_b[MOST_PARAMETERS] = {-1.0 - b * b, a * b, a, 0.0, inverse, -b * inverse, b};
    const double ua = w[0] * camera->fx, va = w[1] * camera->fx, vb = w[2] * camera->fy;
    for (int p = 0; p < MOST_PARAMETERS; p++) {
        rows[0][p] = ua * by_a[p];
        rows[1][p] = va * by_a[p] + vb * by_b[p];
    }
}

/* Squared lengths (count) of the whitened residuals. */
int32_t d2s_squared_residuals(const double *keypoints, const double *points,
                              const double *whitening, int64_t count, const double *pose, double fx,
                              double fy, double cx, double cy, double *squared)
{
    const Camera camera = {fx, fy, cx, cy};
    for (int64_t n = 0; n < count; n++) {
        const Ray ray = ray_of(pose, points + 3 * n);
        double residual[2];
        residual_of(&ray, keypoints + 2 * n, whitening + 3 * n, &camera, residual);
        squared[n] = residual[0] * residual[0] + residual[1] * residual[1];
    }
    return 0;
}

/* Cost, normal equations and sums under the Cauchy loss of the given squared scale.
 *
 * parameters: 6, or 7 with the focal length.
 * result: the cost, the sums of weights and of their squares, whether all points are in front of
 *     the camera, the gradient (parameters) and the information (parameters, parameters). */
int32_t d2s_linearise(const double *keypoints, const double *points, const double *whitening,
                      int64_t count, const double *pose, double fx, double fy, double cx, double cy,
                      double scale, int32_t parameters, double *result)
{
    const Camera camera = {fx, fy, cx, cy};
    double cost = 0.0, weights = 0.0, squared_weights = 0.0;
    double gradient[MOST_PARAMETERS] = {0.0};
    double information[MOST_PARAMETERS][MOST_PARAMETERS] = {{0.0}};
    int in_front = 1;
    for (int64_t n = 0; n < count; n++) {
        const Ray ray = ray_of(pose, points + 3 * n);
        double residual[2], rows[2][MOST_PARAMETERS];
        residual_of(&ray, keypoints + 2 * n, whitening + 3 * n, &camera, residual);
        jacobian_of(&ray, whitening + 3 * n, &camera, rows);
        const double squared = residual[0] * residual[0] + residual[1] * residual[1];
        const double growth = 1.0 + squared / scale, weight = 1.0 / growth;
        cost += log(growth);
        weights += weight;
        squared_weights += weight * weight;
        in_front &= ray.depth > 0.0;
        for (int p = 0; p < MOST_PARAMETERS; p++) {
            const double first = weight * rows[0][p], second = weight * rows[1][p];
            gradient[p] += first * residual[0] + second * residual[1];
            /* All of them, so that the loops are of fixed length. */
            for (int q = 0; q < MOST_PARAMETERS; q++)
                information[p][q] += first * rows[0][q] + second * rows[1][q];
        }
    }
    *result++ = scale * cost;
    *result++ = weights;
    *result++ = squared_weights;
    *result++ = in_front;
    for (int p = 0; p < parameters; p++)
        *result++ = gradient[p];
    for (int p = 0; p < parameters; p++)
        for (int q = 0; q < parameters; q++)
            *result++ = information[p][q];
    return 0;
}

/* The sum of squares (parameters, parameters) of what each residual adds to the gradient, as its
 * noise would: see gradient_scatter in reference.py. */
int32_t d2s_squared_scores(const double *keypoints, const double *points, const double *whitening,
                           int64_t count, const double *pose, double fx, double fy, double cx,
                           double cy, double scale, double slope, const double *inverse,
                           int32_t parameters, double *result)
{
    const Camera camera = {fx, fy, cx, cy};
    memset(result, 0, (size_t)(parameters * parameters) * sizeof *result);
    for (int64_t n = 0; n < count; n++) {
        const Ray ray = ray_of(pose, points + 3 * n);
        double residual[2], rows[2][MOST_PARAMETERS], scores[MOST_PARAMETERS];
        residual_of(&ray, keypoints + 2 * n, whitening + 3 * n, &camera, residual);
        jacobian_of(&ray, whitening + 3 * n, &camera, rows);
        const double squared = residual[0] * residual[0] + residual[1] * residual[1];
        const double weight = 1.0 / (1.0 + squared / scale);
        double share = 0.0;
        for (int p = 0; p < parameters; p++) {
            scores[p] = weight * (rows[0][p] * residual[0] + rows[1][p] * residual[1]);
            for (int q = 0; q < parameters; q++)
                share += weight * inverse[p * parameters + q] *
                         (rows[0][p] * rows[0][q] + rows[1][p] * rows[1][q]);
        }
        const double divisor = fmax(1.0 - share, 0.5) * slope;
        for (int p = 0; p < parameters; p++)
            scores[p] /= divisor;
        for (int p = 0; p < parameters; p++)
            for (int q = 0; q < parameters; q++)
                result[p * parameters + q] += scores[p] * scores[q];
    }
    return 0;
}

/* The first candidate of each keypoint that a pose brings within a radius of it, -1 for none.
 *
 * keypoints: (count, 2), not a number where there is no pixel. landmarks: (landmarks, 3).
 * landmark_idx: (count, candidates).
 * skipped: (count) keypoints, taken: (landmarks) landmarks that do not count; or none.
 * choice: (count). */
int32_t d2s_first_close(const double *keypoints, int64_t count, const double *landmarks,
                        const int64_t *landmark_idx, int64_t candidates, const double *pose,
                        double fx, double fy, double cx, double cy, double radius,
                        const uint8_t *skipped, const uint8_t *taken, int64_t *choice)
{
    const double most = radius * radius;
    for (int64_t n = 0; n < count; n++) {
        choice[n] = -1;
        if (skipped && skipped[n])
            continue;
        for (int64_t c = 0; c < candidates; c++) {
            const int64_t landmark = landmark_idx[n * candidates + c];
            const Ray ray = ray_of(pose, landmarks + 3 * landmark);
            const double u = fx * ray.a + cx - keypoints[2 * n];
            const double v = fy * ray.b + cy - keypoints[2 * n + 1];
            /* Comparisons with what is not a number fail. */
            if (ray.depth > LEAST_DEPTH && u * u + v * v <= most && !(taken && taken[landmark])) {
                choice[n] = c;
                break;
            }
        }
    }
    return 0;
}
