"""What several cameras of one robot see at one moment in, one pose or a refusal out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.localization.estimator import PoseEstimator
from d2s_ros.localization.extraction import TakenShots
from d2s_ros.localization.pose_prior import PriorSource, relative_to
from d2s_ros.localization.result import CameraShare, LocalizationResult, LocalizationStatus
from d2s_ros.localization.rig_agreement import CameraOnRig
from d2s_ros.localization.rig_estimator import RigEstimator
from d2s_ros.localization.stage_clock import StageClock
from d2s_ros.scene_models.base import Observer


class RigLocalizer:
    """Localizes rigs in one map: the chain of `Localizer` for several cameras.

    Args:
        observer: The scene model of the map, ready on the device.
        estimator: Finds the poses of single cameras in the map.
        origin: (3,) of the map.
    """

    def __init__(
        self, observer: Observer, estimator: PoseEstimator, origin: NDArray[np.float64]
    ) -> None:
        self._observer, self._origin = observer, origin
        self._estimator = RigEstimator(estimator)

    def localize(
        self, found: TakenShots, *, details: bool = False, prior: PriorSource | None = None
    ) -> LocalizationResult:
        """Localize from what the images of a rig show; arguments as for `Localizer.localize_rig`.

        Returns:
            map_from_camera is map_from_rig; `cameras` are all that were given, in their order.
        """
        clock = StageClock(found.features_ms)
        seen = [
            CameraOnRig(
                shot.name,
                self._observer.observe(found.taken[shot.name].view),
                shot.rig_from_camera.inverse(),
            )
            for shot in found.shots
            if shot.name in found.taken
        ]
        clock.end('network')
        if seen:
            outcome = self._estimator.estimate(seen, relative_to(self._origin, prior))
            clock.end('pose')
            best = seen[outcome.best]
            result = outcome.result(best.observation.view.features, {}, details=details)
            result = found.taken[best.name].at_full_size(result).moved(self._origin)
        else:
            no_image = LocalizationResult(
                LocalizationStatus.BAD_IMAGE, 'no camera of the rig gave an image'
            )
            result = next(iter(found.refused.values()), no_image)
        refused = [
            CameraShare(name, one.status.value, one.reason, one.num_keypoints)
            for name, one in found.refused.items()
        ]
        shares = {share.name: share for share in (*result.cameras, *refused)}
        return replace(
            result,
            latency_ms=clock.latency_ms,
            cameras=tuple(shares[shot.name] for shot in found.shots),
        )
