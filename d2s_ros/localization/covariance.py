"""How certain a refined pose is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.kernels.interface import Linearised, Residuals

Array = NDArray[np.float64]

#: Correspondences that the noise of the given size counts for beside what the residuals show.
_PRIOR_COUNT = 50
#: Covariances grow where the share of reliable keypoints is below so much of the usual one.
_USUAL_SHARE = 0.7
#: Published covariances over what the map's own images promise. Errors have heavier tails than
#: normal ones, and a place changes: by this the region of 90 % holds as many errors in every light
#: and quarter of difficulty of buildings 1 and 2 (experiment E020). What decides about a pose is
#: not multiplied by it.
COVERAGE_MARGIN = 2.0


class PoseUncertainty:
    """Covariance of a refined pose, computed when it is asked for.

    Args:
        compute: Returns what `covariance_of_pose` returns.
    """

    def __init__(self, compute: Callable[[], tuple[Array, bool]]) -> None:
        self._compute = compute

    @cached_property
    def found(self) -> tuple[Array, bool]:
        """The covariance (6, 6) and whether the information was rank deficient."""
        return self._compute()


def gradient_scatter(
    problem: Residuals,
    pose: RigidTransform,
    at: Linearised,
    inverse: Array,
    count: int,
    cauchy_scale: float,
) -> Array:
    """Return the covariance (P, P) of the cost's gradient that `count` residuals tell.

    Where they are few it is drawn towards that of normal noise of the given size.
    """
    found = problem.gradient_scatter(pose.rotation, pose.translation, at.slope, inverse)
    return blended_scatter(found, at.information, count, cauchy_scale)


def blended_scatter(found: Array, information: Array, count: int, cauchy_scale: float) -> Array:
    """Return a scatter (P, P) that few residuals tell, drawn towards that of normal noise."""
    expected = information * robust_inflation(cauchy_scale)
    return np.asarray((count * found + _PRIOR_COUNT * expected) / (count + _PRIOR_COUNT))


def inverse_of(information: Array) -> Array:
    """Return the inverse, or the pseudo-inverse of a singular matrix."""
    try:
        return np.asarray(np.linalg.inv(information))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.pinv(information))


@lru_cache(maxsize=16)
def robust_inflation(cauchy_scale: float) -> float:
    """Return the covariance of a Cauchy estimate over the inverse of its weighted information.

    With whitened residuals r of two normal components, s = |r|^2, weights w = 1 / (1 + s / c^2)
    and psi = w r, an M-estimator has the covariance E[psi psi^T] / E[dpsi / dr]^2 (J^T J)^-1, while
    the weighted information is E[w] J^T J.
    """
    # s / 2 is exponentially distributed: the midpoint rule over its quantiles.
    squared = -2.0 * np.log1p(-(np.arange(100_000) + 0.5) / 100_000)
    weight = 1.0 / (1.0 + squared / cauchy_scale**2)
    spread = float(np.mean(squared * weight**2))
    slope = float(np.mean(weight)) - spread / cauchy_scale**2
    return 0.5 * spread / slope**2 * float(np.mean(weight))


def covariance_of_pose(
    camera_from_map: RigidTransform, information: Array, scatter: Array | None = None
) -> tuple[Array, bool]:
    """Turn the information of the left tangent into the covariance of map_from_camera.

    Args:
        camera_from_map: The pose at the optimum.
        information: (6, 6) in the left tangent (rotation, translation; camera axes).
        scatter: (6, 6) covariance of the cost's gradient there; without, the information itself,
            as it is for normal noise of the given size.

    Returns:
        (6, 6) covariance in ROS order (centre along map axes, rotation about fixed map axes), and
        whether the information was rank deficient (the covariance is then huge, never small).
    """
    # Units differ between rotation and translation: scale to a unit diagonal before judging rank.
    diagonal = np.diag(information)
    diagonal = np.sqrt(np.maximum(diagonal, max(1e-18 * diagonal.max(), 1e-30)))
    values, vectors = np.linalg.eigh(information / np.outer(diagonal, diagonal))
    floor = 1e-10
    rank_deficient = bool(values[0] < floor)
    inverse = (vectors / np.maximum(values, floor)) @ vectors.T / np.outer(diagonal, diagonal)
    if scatter is not None and not rank_deficient:
        # The scatter knows nothing of directions that nothing was observed in.
        inverse = inverse @ scatter @ inverse
    # With x_camera = Exp(w) (R x_map + t) + v the camera's centre -R^T t moves by -R^T v, and its
    # axes turn about the fixed axes of the map by -R^T w, to first order.
    transport = np.zeros((6, 6))
    transport[:3, 3:] = -camera_from_map.rotation.T
    transport[3:, :3] = -camera_from_map.rotation.T
    covariance = transport @ inverse @ transport.T
    return 0.5 * (covariance + covariance.T), rank_deficient


def covariance_scale(calibrated: float, usual_share: float, reliable_share: float) -> float:
    """Return what the solver's covariance is multiplied by.

    Where far fewer keypoints are recognised than in the mapping images, the place looks
    different, and what moves keypoints (shadows, light) moves neighbours alike: errors are
    larger than the residuals tell.

    Args:
        calibrated: What makes covariances of mapping images agree with their errors.
        usual_share: Share of a mapping image's keypoints that are reliable; 0 if unknown.
        reliable_share: That of the image.
    """
    change = max(1.0, _USUAL_SHARE * usual_share / max(reliable_share, 1e-3)) ** 0.5
    return calibrated * change
