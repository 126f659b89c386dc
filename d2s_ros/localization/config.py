"""Options of the localizer; free of torch, so that a node reads them before it loads anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from d2s_ros.config import option, validate
from d2s_ros.localization.pose_solver import PoseSolverConfig


@dataclass(frozen=True)
class LocalizerConfig:
    """Which correspondences are used, and which poses are good enough to be given out."""

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
    min_keypoints: int = option(20, 'Images with fewer keypoints are refused.', minimum=4)
    false_accept_rate: float = option(
        1e-4,
        'Share of images of other places whose pose may pass the test of chance, which is '
        'calibrated when the map is built.',
        minimum=1e-12,
        maximum=0.5,
    )
    min_inliers: int = option(
        14,
        'Poses with fewer inliers are refused; with guided_refinement half of them are enough with '
        'twice min_support, and twice as many are needed without min_support.',
        minimum=4,
    )
    min_support: int = option(
        20,
        'Landmarks that a pose must find beside its inliers where these are few or close together.',
        minimum=1,
    )
    min_inlier_share: float = option(
        0.25,
        'Poses with a smaller share of the inliers that the reliabilities promise are refused; so '
        'are those with less than a sixth of it among all reliable keypoints.',
        minimum=0.0,
        maximum=1.0,
    )
    min_spread: float = option(
        0.09,
        'Smallest share of the image that the ellipse of the inliers must cover.',
        minimum=0.0,
        maximum=1.0,
    )
    min_extent: float = option(
        0.12,
        'Smallest width of what the inliers show, over the depth of the scene: small things may '
        'stand elsewhere.',
        minimum=0.0,
    )
    safe_extent: float = option(
        0.3,
        'From this width on, half of min_spread is enough.',
        minimum=0.0,
    )
    max_flat_extent: float = option(
        0.4,
        'A flat thing up to this width that is seen well, with nothing of what should be around '
        'it, is taken as moved; 0 takes none.',
        minimum=0.0,
    )
    doubtful_spread: float = option(
        0.25,
        'Below this spread, the rest of the image is asked for another pose.',
        minimum=0.0,
        maximum=1.0,
    )
    max_rotation_sigma_deg: float = option(
        3.0, 'Less certain poses are refused.', unit='deg', minimum=0.0
    )
    max_relative_translation_sigma: float = option(
        0.05, 'Largest standard deviation of the position over the scene depth.', minimum=0.0
    )
    max_focal_error: float = option(
        0.02,
        'A pose whose correspondences clearly tell of a focal length that differs by this share is '
        'refused: the camera_info is wrong, or the pose.',
        minimum=0.0,
    )
    solver: PoseSolverConfig = field(default_factory=PoseSolverConfig)

    def __post_init__(self) -> None:
        validate(self)
