"""Every number that decides whether a pose is accepted, with where it comes from.

`d2s_ros.localization.acceptance` compares what is known of a pose with these; nothing else does.
Free of torch, so that a node reads them before it loads anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d2s_ros.config import from_dict, option, validate
from d2s_ros.errors import ConfigError

#: Of limits that have no row in docs/design/experiments.md.
NOT_LOGGED = 'chosen before the log began'
_EVALUATION = 'docs/design/evaluation.md, Which poses are published'
_PRIOR = 'docs/design/evaluation.md, With a prior'

#: (smaller, larger): of two limits for the same value, which one must not be above the other.
_ORDER = (
    ('min_inliers_with_ample_support', 'min_inliers'),
    ('min_inliers', 'min_inliers_without_support'),
    ('min_support', 'ample_support'),
    ('min_inlier_share_with_support', 'min_inlier_share'),
    ('min_spread_of_safe_extent', 'min_spread'),
    ('min_spread', 'support_spread'),
    ('min_spread_with_support', 'support_spread'),
    ('min_extent', 'support_extent'),
    ('expected_from_depth', 'expected_to_depth'),
    ('inside_object', 'outside_object'),
)


@dataclass(frozen=True)
class Limits:
    """What a pose must show to be accepted.

    `support` are landmarks that a pose finds beside its inliers. `spread` is the area of the
    two-sigma ellipse of the inliers over that of the image, `extent` the width of what they show
    over the scene depth of the map.
    """

    # ------------------------------------------------------------------ enough to see
    min_keypoints: int = option(
        20, 'Images with fewer keypoints are refused.', minimum=4, experiment=NOT_LOGGED
    )

    # ------------------------------------------------------------------ chance
    false_accept_rate: float = option(
        1e-4,
        'Share of images of other places whose pose may pass the test of chance, which is '
        'calibrated when the map is built.',
        minimum=1e-12,
        maximum=0.5,
        experiment='E003',
    )
    min_inliers: int = option(
        14,
        'Inliers that a pose needs, and usable correspondences that an image needs.',
        minimum=4,
        experiment='E003',
    )
    min_support: int = option(
        20, 'Landmarks of support from which on a pose has support.', minimum=1, experiment='E008'
    )
    ample_support: int = option(
        40, 'Landmarks of support that make up for few inliers.', minimum=1, experiment='E012'
    )
    min_inliers_with_ample_support: int = option(
        7, 'Inliers that a pose with ample support needs.', minimum=4, experiment='E012'
    )
    min_inliers_without_support: int = option(
        28,
        'Inliers that a pose needs which was asked for support and has none.',
        minimum=4,
        experiment=_EVALUATION,
    )
    min_inlier_share: float = option(
        0.25,
        'Inliers over those that the reliabilities of the correspondences promise.',
        minimum=0.0,
        maximum=1.0,
        experiment='E007',
    )
    min_inlier_share_with_support: float = option(
        0.2,
        'The same for a pose with support.',
        minimum=0.0,
        maximum=1.0,
        experiment=NOT_LOGGED,
    )
    hypotheses_divisor: float = option(
        6.0,
        'Inliers over all reliable keypoints, those of other hypotheses included, may be less by '
        'this factor.',
        minimum=1.0,
        experiment=NOT_LOGGED,
    )

    # ------------------------------------------------------------------ small objects
    min_extent: float = option(
        0.12,
        'Smallest extent of the inliers: a small object may stand elsewhere.',
        unit='scene depths',
        minimum=0.0,
        experiment='E004',
    )
    min_spread: float = option(
        0.09,
        'Smallest spread of the inliers.',
        minimum=0.0,
        maximum=1.0,
        experiment='E011',
    )
    safe_extent: float = option(
        0.3,
        'Extent from which on min_spread_of_safe_extent is enough; below it an object is small.',
        unit='scene depths',
        minimum=0.0,
        experiment='E011',
    )
    min_spread_of_safe_extent: float = option(
        0.045,
        'Smallest spread of inliers that show a safe extent.',
        minimum=0.0,
        maximum=1.0,
        experiment='E011',
    )
    min_spread_with_support: float = option(
        0.07,
        'Smallest spread of inliers and support together where min_spread_of_safe_extent is to be '
        'enough: one object that stands elsewhere has no support around it.',
        minimum=0.0,
        maximum=1.0,
        experiment='E015',
    )
    support_spread: float = option(
        0.15,
        'Spread of inliers and support that, with support_extent, makes up for inliers that lie '
        'close together.',
        minimum=0.0,
        experiment='E009',
    )
    support_extent: float = option(
        0.4,
        'Extent of inliers and support that, with support_spread, makes up for inliers that lie '
        'close together.',
        unit='scene depths',
        minimum=0.0,
        experiment='E009',
    )
    doubtful_spread: float = option(
        0.25,
        'Below this spread the correspondences that are no inliers are asked for another pose.',
        minimum=0.0,
        maximum=1.0,
        experiment='E002',
    )

    # ------------------------------------------------------------------ certainty
    max_rotation_sigma_deg: float = option(
        3.0,
        'Largest standard deviation of the rotation about any axis.',
        unit='deg',
        minimum=0.0,
        experiment=NOT_LOGGED,
    )
    max_relative_translation_sigma: float = option(
        0.05,
        'Largest standard deviation of the position over the depth of the inliers.',
        minimum=0.0,
        experiment=NOT_LOGGED,
    )

    # ------------------------------------------------------------------ moved objects
    max_flat_extent: float = option(
        0.4,
        'Flat objects from this extent on are not taken as moved; 0 takes none.',
        unit='scene depths',
        minimum=0.0,
        experiment='E005',
    )
    flat_tolerance: float = option(
        0.024,
        'Points this close to a plane lie on it.',
        unit='scene depths',
        minimum=0.0,
        experiment='E005',
    )
    min_off_plane: int = option(
        3, 'Inliers off the plane that make an object not flat.', minimum=1, experiment='E005'
    )
    min_off_plane_share: float = option(
        0.03,
        'Share of the inliers off the plane that makes an object not flat.',
        minimum=0.0,
        maximum=1.0,
        experiment='E005',
    )
    plane_rounds: int = option(
        6, 'Rounds in which the plane is fitted to what lies on it.', minimum=1, experiment='E005'
    )
    plane_quantile: float = option(
        0.6,
        'Share of the points that a round fits the plane to.',
        minimum=0.5,
        maximum=1.0,
        experiment='E005',
    )
    plane_tolerance_share: float = option(
        0.5,
        'Points within this share of flat_tolerance are fitted as well.',
        minimum=0.0,
        maximum=1.0,
        experiment='E005',
    )
    expected_from_depth: float = option(
        0.2,
        'Landmarks nearer than this are not expected to be inliers; over the depth of the inliers.',
        minimum=0.0,
        experiment='E005',
    )
    expected_to_depth: float = option(
        2.0,
        'Landmarks farther than this are not expected to be inliers; over the depth of the '
        'inliers.',
        minimum=0.0,
        experiment='E005',
    )
    object_margin_px: float = option(
        5.0,
        'Standard deviation that the ellipse of an object in the image is widened by.',
        unit='px',
        minimum=0.1,
        experiment='E005',
    )
    inside_object: float = option(
        6.0,
        'Squared Mahalanobis distance in the image within which a landmark is of the object.',
        minimum=0.0,
        experiment='E005',
    )
    outside_object: float = option(
        9.0,
        'Squared Mahalanobis distance in the image beyond which a landmark is around the object.',
        minimum=0.0,
        experiment='E005',
    )
    min_object_seen: float = option(
        0.25,
        "Share of the object's landmarks that must be found before much is expected around it.",
        minimum=0.0,
        maximum=1.0,
        experiment='E005',
    )
    min_expected_around: float = option(
        25.0,
        'Inliers that must be expected around the object before their absence counts.',
        minimum=0.0,
        experiment='E005',
    )
    min_found_around: float = option(
        0.02,
        'Support around the object over the inliers expected there.',
        minimum=0.0,
        maximum=1.0,
        experiment='E010',
    )
    min_found_around_small: float = option(
        0.1,
        'The same for a small object whose inliers alone are min_object_seen of it.',
        minimum=0.0,
        maximum=1.0,
        experiment=_EVALUATION,
    )

    # ------------------------------------------------------------------ focal length
    max_focal_error: float = option(
        0.02,
        'Largest share by which the focal length that fits the correspondences best may differ '
        'from that of the camera_info.',
        minimum=0.0,
        experiment='E013',
    )
    focal_sigmas: float = option(
        8.0,
        'Standard deviations within which the focal length may differ in any case: those of '
        'single images are too small in bad light.',
        minimum=0.0,
        experiment='E013',
    )

    # ------------------------------------------------------------------ other intrinsics
    max_intrinsics_error: float = option(
        0.025,
        'Largest error of the ratio of fx to fy, of cx and cy in focal lengths, and half of that '
        'of k1, by which the intrinsics that fit the image best may differ from the camera_info.',
        minimum=0.0,
        experiment='E019',
    )
    intrinsics_sigmas: float = option(
        1.0,
        'Standard deviations within which they may differ in any case.',
        minimum=0.0,
        experiment='E019',
    )
    min_intrinsics_gain: float = option(
        8.0,
        'How much more likely the correspondences that other intrinsics explain must be for an '
        'image to be refused, natural logarithm.',
        minimum=0.0,
        experiment='E019',
    )

    # ------------------------------------------------------------------ other places of an area
    max_rival_share: float = option(
        0.5,
        'Inliers that another place of an area may have, over those of the place whose pose is '
        'published.',
        minimum=0.0,
        maximum=1.0,
        experiment='E017',
    )

    # ------------------------------------------------------------------ objects that moved apart
    max_pose_focal_error: float = option(
        0.1,
        'A pose that fits another focal length by more than this share is taken for one of objects '
        'that moved apart, even where focal_sigmas allow it.',
        minimum=0.0,
        experiment='E014',
    )
    pose_focal_sigmas: float = option(
        2.0,
        'Standard deviations within which the focal length of a pose may differ from '
        'max_pose_focal_error on.',
        minimum=0.0,
        experiment='E014',
    )

    # ------------------------------------------------------------------ with a prior
    min_inliers_with_prior: int = option(
        21, 'Inliers of a pose that was looked for near a prior.', minimum=4, experiment=_PRIOR
    )
    prior_sigmas: float = option(
        4.0,
        'Standard deviations, of both together, by which a pose may differ from its prior.',
        minimum=0.0,
        experiment=_PRIOR,
    )

    def __post_init__(self) -> None:
        validate(self)
        for smaller, larger in _ORDER:
            if getattr(self, smaller) > getattr(self, larger):
                raise ConfigError(
                    f'{smaller} is {getattr(self, smaller)}, it must be at most {larger} '
                    f'({getattr(self, larger)})'
                )


def read_limits(path: str | os.PathLike[str], given: Mapping[str, Any] | None = None) -> Limits:
    """Return the limits of a YAML file; those that it does not name have their defaults.

    Args:
        path: The file: a mapping of fields of `Limits`.
        given: Limits that are set elsewhere; the file must not name them.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key or a wrong value.
    """
    given = given or {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is no text'
        raise ConfigError(f'cannot read the limits file {path}: {reason}') from error
    except yaml.YAMLError as error:
        raise ConfigError(f'the limits file {path} is not YAML: {error}') from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f'the limits file {path} must be a mapping of limits, found {values!r}')
    for name in given:
        if name in values:
            raise ConfigError(f'{name} is a parameter of the node: set it there, not in {path}')
    try:
        return from_dict(Limits, {**values, **given})
    except ConfigError as error:
        raise ConfigError(f'limits file {path}: {error}') from error
