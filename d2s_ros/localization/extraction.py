"""From an image and its camera to what the image shows, or the reason why it cannot be used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import CalibrationError, UnsupportedImageError
from d2s_ros.features.types import FeatureExtractor, to_grey
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.acceptance import check_keypoints
from d2s_ros.localization.compute_budget import ComputeBudget
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.scene_models.base import View
from d2s_ros.threads import num_threads


@dataclass(frozen=True, eq=False)
class TakenImage:
    """What was extracted of an image, its size as given and the time that took."""

    view: View
    given_shape: tuple[int, ...]
    elapsed_ms: float

    def at_full_size(self, result: LocalizationResult) -> LocalizationResult:
        """Return a result with its keypoints in px of the image as given."""
        assert self.view.image is not None
        shape = self.view.image.shape
        if result.details is None or shape == self.given_shape:
            return result
        ratio = np.array(self.given_shape[::-1], np.float32) / np.array(shape[::-1], np.float32)
        keypoints = ((result.details.keypoints + 0.5) * ratio - 0.5).astype(np.float32)
        return replace(result, details=replace(result.details, keypoints=keypoints))


@dataclass(frozen=True, eq=False)
class TakenShots:
    """What was extracted of the images of a rig.

    Attributes:
        shots: All of them.
        taken: By camera, those that show enough.
        refused: By camera, why others cannot be used.
        features_ms: Time that took.
    """

    shots: Sequence[RigShot]
    taken: dict[str, TakenImage] = field(default_factory=dict)
    refused: dict[str, LocalizationResult] = field(default_factory=dict)
    features_ms: float = 0.0


def take_image(
    image: NDArray[np.uint8] | None,
    camera: Camera | None,
    extractor: FeatureExtractor,
    budget: ComputeBudget,
    limits: Limits,
) -> TakenImage | LocalizationResult:
    """Return what an image shows, or why it cannot be used.

    Args:
        image: (H, W) grey or (H, W, 3) BGR uint8; None is refused as a bad image.
        camera: Its intrinsics; another size of the same aspect is scaled; None is refused.
        extractor: Of the features.
        budget: Less than full computes on a smaller image or with fewer keypoints.
        limits: For the fewest keypoints that are of use.
    """
    started = time.perf_counter()
    # A thread that never asked for it would run convolutions on all cores.
    num_threads()
    status = LocalizationStatus
    if image is None:
        return LocalizationResult(status.BAD_IMAGE, 'the image could not be read')
    if camera is None:
        return LocalizationResult(
            status.NO_CALIBRATION, 'there is no valid camera calibration for the image'
        )
    try:
        given = to_grey(image)
        grey = budget.shrunken(given)
        height, width = grey.shape
        if (camera.width, camera.height) != (width, height):
            camera = camera.resized(width, height)
        features = extractor.extract(grey)
    except UnsupportedImageError as error:
        return LocalizationResult(status.BAD_IMAGE, str(error))
    except CalibrationError as error:
        return LocalizationResult(status.CALIBRATION_MISMATCH, str(error))
    if not budget.is_full:
        count = round(budget.keypoints * extractor.config.max_keypoints)
        features = features.strongest(max(count, limits.min_keypoints))
    elapsed = 1e3 * (time.perf_counter() - started)
    return TakenImage(View(features, camera, grey), given.shape, elapsed)


def take_shots(
    shots: Sequence[RigShot], extractor: FeatureExtractor, budget: ComputeBudget, limits: Limits
) -> TakenShots:
    """Return what the images of a rig show; see `take_image`."""
    started = time.perf_counter()
    found = TakenShots(shots)
    for shot in shots:
        one = take_image(shot.image, shot.camera, extractor, budget, limits)
        if isinstance(one, TakenImage):
            enough = check_keypoints(len(one.view.features), limits)
            if enough.passed:
                found.taken[shot.name] = one
                continue
            one = LocalizationResult.of_too_few(enough, len(one.view.features))
        found.refused[shot.name] = one
    return replace(found, features_ms=1e3 * (time.perf_counter() - started))
