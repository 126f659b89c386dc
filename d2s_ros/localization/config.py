"""Options of the localizer; free of torch, so that a node reads them before it loads anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from d2s_ros.config import option, validate
from d2s_ros.localization.limits import Limits
from d2s_ros.localization.pose_solver import PoseSolverConfig


@dataclass(frozen=True)
class LocalizerConfig:
    """Which correspondences are used, and which poses are accepted."""

    reliability_threshold: float = option(
        0.0, 'Keypoints below are not used; 0 takes the value stored in the map.', maximum=1.0
    )
    min_correspondences: int = option(
        80,
        'Below this many reliable keypoints, the best unreliable ones are tried too.',
        minimum=4,
    )
    guided_refinement: bool = option(
        True, 'Refine poses on all candidates close to their keypoint, not only on inliers.'
    )
    max_candidates: int = option(
        3, 'Places of an area that are asked about an image at most.', minimum=1
    )
    max_open_places: int = option(
        16,
        'Maps of an area that are kept in memory; of more, those not used for longest are dropped '
        'and read again when they are needed.',
        minimum=1,
    )
    limits: Limits = field(default_factory=Limits)
    solver: PoseSolverConfig = field(default_factory=PoseSolverConfig)

    def __post_init__(self) -> None:
        validate(self)
