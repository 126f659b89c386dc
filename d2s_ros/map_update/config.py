"""Options of map updates: the only home of their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from d2s_ros.config import option, validate
from d2s_ros.localization.limits import Limits

RECIPES = ('verified', 'paper')


@dataclass(frozen=True)
class KeyframeConfig:
    """Which frames of a log are worth labelling."""

    max_keyframes: int = option(200, 'Most keyframes of one log.', minimum=1)
    min_keypoints: int = option(200, 'Frames with fewer keypoints are dropped.', minimum=4)
    min_sharpness: float = option(
        0.25, 'Frames less sharp than this share of the log median are dropped.', minimum=0.0
    )
    min_motion: float = option(
        0.02,
        'Frames whose matches moved less than this share of the image diagonal since the last '
        'keyframe are dropped.',
        minimum=0.0,
        maximum=1.0,
    )

    def __post_init__(self) -> None:
        validate(self)


#: Of poses that labels imply. Labels are many and made from several images: less than this is
#: wrong, and what is accepted teaches the map (E006 of docs/design/experiments.md).
LABEL_LIMITS = Limits(
    min_inliers=30,
    min_inliers_without_support=30,
    min_inlier_share=0.12,
    min_inlier_share_with_support=0.12,
    min_spread=0.08,
    max_rotation_sigma_deg=0.5,
    max_relative_translation_sigma=0.02,
)


@dataclass(frozen=True)
class LabelConfig:
    """How labels are copied, and when a pose counts as verified."""

    neighbours: int = option(10, 'Mapping images that labels are copied from.', minimum=1)
    ratio: float = option(0.9, 'Ratio test of the matching.', minimum=0.1, maximum=1.0)
    search_px: float = option(
        12.0,
        'Where a pose is known, points are looked for this close to where they project, at 1000 px '
        'focal length.',
        unit='px',
        minimum=1.0,
    )
    min_search_similarity: float = option(
        0.6, 'Smallest cosine of what is found there.', minimum=0.0, maximum=1.0
    )
    min_labels: int = option(50, 'Frames with fewer copied labels are dropped.', minimum=4)
    rounds: int = option(
        3, 'Verified frames serve as mapping images for the others in so many rounds.', minimum=1
    )
    limits: Limits = field(default_factory=lambda: LABEL_LIMITS)
    min_agreeing_images: int = option(
        2, 'Mapping images that must each support the pose.', minimum=1
    )
    min_support: int = option(6, 'Inliers that make a mapping image support a pose.', minimum=1)
    max_incumbent_difference: float = option(
        0.1, 'Largest distance to the pose of the incumbent, over the scene depth.', minimum=0.0
    )
    jump_factor: float = option(
        6.0,
        'Poses of successive frames are connected if they differ by at most this many usual steps.',
        minimum=1.0,
    )
    min_confirmed: int = option(
        2,
        'Frames with poses of the live map that a stretch without connection to the rest needs.',
        minimum=1,
    )
    max_focal_error: float = option(
        0.04,
        'A log whose focal length seems wrong by more than this share is dropped.',
        minimum=0.0,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class GrowthConfig:
    """How verified frames become part of the map."""

    rounds: int = option(5, 'What was learned labels further frames, in so many rounds.', minimum=1)
    old_neighbours: int = option(6, 'Mapping images matched with each new frame.', minimum=1)
    new_neighbours: int = option(6, 'New frames matched with each new frame.', minimum=0)
    label_px: float = option(
        4.0, 'Labels further from their keypoint are dropped, at 1000 px focal length.', unit='px'
    )
    prototype_similarity: float = option(
        0.85, 'Observations less similar to a landmark get a landmark of their own.', minimum=0.0
    )
    max_prototypes: int = option(4, 'Landmarks with the same point.', minimum=1)
    min_track: int = option(2, 'Frames that a new point must be seen in.', minimum=2)
    landmark_growth: float = option(
        1.5, 'Landmarks of the new map over those of the old one.', minimum=1.0
    )
    max_landmarks: int = option(32768, 'Landmarks of the new map at most.', minimum=64)
    forget_chance: float = option(
        1e-3,
        'A point is forgotten when its misses would be this unlikely were it still there.',
        minimum=0.0,
        maximum=1.0,
    )
    forget_min_frames: int = option(
        6, 'Frames that must have missed a point before it is forgotten.', minimum=1
    )
    forget_min_logs: int = option(
        3, 'Logs in a row that must have missed a point before it is forgotten.', minimum=1
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class GateConfig:
    """When a candidate may replace the incumbent."""

    max_error_m: float = option(
        0.05, 'A frame counts as localized well within this distance.', unit='m', minimum=0.0
    )
    max_error_deg: float = option(
        5.0, 'A frame counts as localized well within this angle.', unit='deg', minimum=0.0
    )
    relative_error: float = option(
        0.01,
        'Replaces max_error_m for maps of arbitrary scale: share of the map size.',
        minimum=0.0,
    )
    max_old_loss: float = option(
        0.02,
        'Largest loss of recall on old frames, all and of each log, against the best ever.',
        minimum=0.0,
        maximum=1.0,
    )
    min_frames_for_chance: int = option(
        10, 'Of so many old frames one may always be lost.', minimum=2
    )
    max_old_loss_bound: float = option(
        0.06, 'Largest loss at the lower end of the confidence interval.', minimum=0.0, maximum=1.0
    )
    max_error_growth: float = option(
        1.25, 'Largest growth of the median error on frames of the old map.', minimum=1.0
    )
    min_new_frames: int = option(
        3, 'Held-out frames with a reference that a verdict needs.', minimum=1
    )
    max_old_images: int = option(
        120, 'Frames of the old map that are tried, shared evenly by its logs.', minimum=1
    )
    max_old_logs: int = option(
        10,
        'Logs compared one by one; with more, those between the first and the latest are one.',
        minimum=3,
    )
    confidence: float = option(0.9, 'Of the bootstrap interval.', minimum=0.5, maximum=0.999)
    resamples: int = option(2000, 'Of the bootstrap.', minimum=10)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class UpdateConfig:
    """Everything an update depends on besides the map and the logs."""

    recipe: str = option('verified', 'How frames are labelled.', choices=RECIPES)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    holdout_every: int = option(
        4, 'Every n-th keyframe is never labelled; the candidate is compared on it.', minimum=2
    )
    steps: int = option(300, 'Training steps.', minimum=0)
    steps_per_image: int = option(5, 'Fewer steps where this times the images is less.', minimum=1)
    learning_rate: float = option(1e-3, 'Peak of the training from the incumbent.', minimum=0.0)
    max_update_images: int = option(600, 'Images kept for later updates.', minimum=2)
    keep_versions: int = option(5, 'Versions kept beside the live one and its parent.', minimum=0)
    keep_megabytes: int = option(2000, 'Size of all versions kept.', unit='MB', minimum=1)
    min_free_megabytes: int = option(
        200, 'Updates are refused with less free disk.', unit='MB', minimum=0
    )
    seed: int = option(0, 'Seed of all randomness.', minimum=0)

    def __post_init__(self) -> None:
        validate(self)
