"""How far the intrinsics of a camera are from the ones that its images fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.localization.covariance import inverse_of

Array = NDArray[np.float64]

#: The unknowns: logarithms of the focal length and of fx over fy, the principal point in focal
#: lengths, and the radial distortion of the ideal image.
NAMES = ('focal length', 'fx over fy', 'cx', 'cy', 'k1')
#: The focal length has a check of its own, which is told from less (`focal_length`).
FOCAL_LENGTH = 0
#: Standard deviations of intrinsics that are wrong.
PRIOR = np.array([0.1, 0.1, 0.06, 0.06, 0.2])
#: Errors that matter as much as one of the focal length: k1 bends the edge of the image only.
_IMPORTANCE = np.array([1.0, 1.0, 1.0, 1.0, 0.5])
#: What a map and other lens models make of right intrinsics, in each image anew.
_SYSTEMATIC = 0.005


@dataclass(frozen=True, eq=False)
class IntrinsicsError:
    """What images say of the intrinsics that they were localized with.

    Attributes:
        information: (5, 5) float64 of the unknowns (`NAMES`), whatever the pose is; may be
            singular.
        evidence: (5,) float64, the information times the change that fits best.
        focal_px: Focal length that was given, px.
        gain: How much more likely the correspondences are that pose and these intrinsics explain,
            natural logarithm. Where an object was moved, other intrinsics explain it instead of
            what stands around it: they fit as well, and not better.
    """

    information: Array
    evidence: Array
    focal_px: float
    gain: float = float('inf')

    def scaled(self, factor: float) -> IntrinsicsError:
        """Return it with the covariance multiplied by a factor."""
        return replace(self, information=self.information / factor, evidence=self.evidence / factor)

    @property
    def change(self) -> Array:
        """What must be added to the unknowns to fit best; 0 where nothing is known, (5,)."""
        return np.asarray(self._covariance() @ self.evidence)

    @property
    def sigmas(self) -> Array:
        """Standard deviations (5,) of the change."""
        return np.sqrt(np.diag(self._covariance()))

    def _covariance(self) -> Array:
        return inverse_of(self.information + np.diag(1.0 / np.square(PRIOR)))

    def excess(self, max_error: float, sigmas: float) -> Array:
        """Return how large the change is (5,), 1.0 being the largest that is allowed.

        Args:
            max_error: Change that is allowed, whatever is known of it.
            sigmas: Standard deviations that are.
        """
        allowed = np.hypot(max_error / _IMPORTANCE, sigmas * self.sigmas)
        return np.abs(self.change) / allowed

    def significance(self) -> float:
        """Return by how many standard deviations the unknown that stands out most is changed."""
        return float(np.max(np.abs(self.change) / self.sigmas))

    def describe(self, excess: Array) -> str:
        """Return one line for people, about the unknowns whose excess (5,) is above 1."""
        change, sigmas = self.change, self.sigmas
        parts = []
        for index in np.flatnonzero(excess > 1.0):
            value, sigma, name = float(change[index]), float(sigmas[index]), NAMES[index]
            if name in ('cx', 'cy'):
                text = f'{value * self.focal_px:+.0f} px (sigma {sigma * self.focal_px:.0f} px)'
            elif name == 'k1':
                text = f'{value:+.2f} (sigma {sigma:.2f})'
            else:
                text = f'{100 * np.expm1(value):+.1f} % (sigma {100 * sigma:.1f} %)'
            parts.append(f'{name} by {text}')
        if not parts:
            return 'the image fits the intrinsics of camera_info'
        hint = 'check camera_info, or calibrate the camera'
        if excess[4] > 1.0:
            hint += (
                '; are these raw images with the camera_info of rectified ones?'
                if change[4] < 0
                else '; are these images rectified already?'
            )
        return f'the image fits other intrinsics, {", ".join(parts)}: {hint}'


def together(errors: Sequence[IntrinsicsError]) -> IntrinsicsError:
    """Return what several images of one camera say: one at least.

    Each may be wrong by a little beyond its noise. Where they disagree by more than their sigmas,
    what they say together is as uncertain.
    """
    floor = np.diag(np.square(_IMPORTANCE / _SYSTEMATIC))
    parts = []
    for one in errors:
        share = floor @ inverse_of(one.information + floor)
        parts.append((share @ one.information, share @ one.evidence))
    information, evidence = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
    found = IntrinsicsError(information, evidence, errors[-1].focal_px)
    change = found.change
    disagreement = 0.0
    for information, evidence in parts:
        rest = evidence - information @ change
        known = information + 1e-3 * np.diag(1.0 / np.square(PRIOR))
        disagreement += float(rest @ np.linalg.solve(known, rest))
    return found.scaled(max(1.0, disagreement / (len(PRIOR) * max(1, len(parts) - 1))))
