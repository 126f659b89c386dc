"""The radius around a published position that holds the true one, with a stated probability."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.statistics import largest_sigma

#: Probability that the true position of a published pose lies within its protection level.
PROTECTION_PROBABILITY = 0.99
#: Protection level over the largest standard deviation of the position. Exact normal errors, alike
#: in all directions, would need 3.4; docs/integrate/integrity.md has the poses it was chosen on.
PROTECTION_SIGMAS = 4.25


def protection_level(covariance: NDArray[np.float64]) -> float:
    """Return the protection level of a pose, unit of the map.

    Args:
        covariance: (6, 6) of the pose, position first.
    """
    return PROTECTION_SIGMAS * largest_sigma(covariance[:3, :3])
