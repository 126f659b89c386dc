"""Which features a build takes where nobody has said: those that place more of its own images.

Both kinds are extracted and reconstructed. Of each a map is made without every n-th image, and
these are asked for in it: as they were taken, three stops darker, and blurred. The
stages of the kind that is taken are then those of the build, so that what a comparison costs is the
other kind, and the maps that only ask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.errors import InputError
from d2s_ros.features.degradations import Degradation, blurred, exposed
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.statistics import subsample
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.preparation import Clock, InputOptions, Prepared, prepare
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.reconstruction.reconstruction import Reconstruction

_logger = logging.getLogger(__name__)

#: What is taken unless the second kind places clearly more.
KINDS = ('superpoint', 'rootsift')
#: How the images that are asked for are changed.
CONDITIONS: dict[str, Degradation | None] = {
    'as taken': None,
    'dark': exposed(-3),
    'blurred': blurred(0.016),
}
#: Most images that are asked for, each in all conditions.
_FRAMES = 16
#: A pose is right within this and 5 degrees; in maps without metres within a share of the largest
#: distance between mapping cameras.
_RIGHT_M, _RIGHT_SHARE, _RIGHT_DEG = 0.05, 0.01, 5.0
#: Steps of the training of maps that only ask.
_STEPS = 60
#: The second kind must win a sign test at this level.
_LEVEL = 0.05

Asked = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FeatureChoice:
    """The features of a build, and what was prepared with them.

    Attributes:
        config: Of the build, with these features.
        extractor: Of these features.
        stages: Of this kind.
        prepared: What was reconstructed with them.
        report: Why these, for the manifest; empty where they were given.
    """

    config: BuildConfig
    extractor: FeatureExtractor
    stages: BuildStages
    prepared: Prepared
    report: dict[str, Any] = field(default_factory=dict)


def clearly_more(second: Asked, first: Asked) -> bool:
    """Return whether the second kind placed clearly more of the same images than the first.

    The sign test on the images that one kind alone placed.

    Args:
        second, first: (N,) whether each image was placed.
    """
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    count = gained + lost
    chance = sum(comb(count, wins) for wins in range(gained, count + 1)) / 2**count
    return gained > lost and chance <= _LEVEL


def extractors_of(
    config: BuildConfig, *, device: str, weights: str | None
) -> list[FeatureExtractor]:
    """Make the extractors of a build: one, or those that are compared, the preferred first.

    Raises:
        WeightsError: SuperPoint without weights, or weights of another architecture.
    """
    if not config.compare_features:
        return [create_extractor(config.features, device=device, weights=weights)]
    return [
        create_extractor(
            replace(config.features, name=kind),
            device=device,
            weights=weights if kind == 'superpoint' else None,
        )
        for kind in KINDS
    ]


def choose_features(
    source: FrameSource,
    extractors: Sequence[FeatureExtractor],
    config: BuildConfig,
    options: InputOptions,
    stages: BuildStages,
    clock: Clock,
) -> FeatureChoice:
    """Prepare a build with its features, or with those that place more images of the log.

    Raises:
        InputError: no map can be made of the log.
    """
    if not config.compare_features:
        prepared = prepare(source, extractors[0], config, options, stages, clock)
        why = config.features_reason
        report = {'taken': config.features.name, 'reason': why} if why else {}
        return FeatureChoice(config, extractors[0], stages, prepared, report)
    made: dict[str, FeatureChoice] = {}
    clocks: dict[str, Clock] = {}
    failures: dict[str, InputError] = {}
    for extractor in extractors:
        kind = extractor.config.name
        own = replace(config, features=extractor.config)
        part, clocks[kind] = stages.part(kind), Clock()
        try:
            prepared = prepare(source, extractor, own, options, part, clocks[kind])
        except InputError as error:
            if 'features' not in clocks[kind].seconds:
                # What is wrong with images and poses is so for the other kind.
                raise
            _logger.warning('no map can be made with %s: %s', kind, error)
            failures[kind] = error
            continue
        made[kind] = FeatureChoice(own, extractor, part, prepared)
    if not made:
        raise next(iter(failures.values()))
    if failures:
        (taken,) = made
        reason = f'no map can be made of the log with {next(iter(failures))}'
        report = {'taken': taken, 'reason': reason}
    else:
        report = _compared(source, made, config, options)
        taken = report['taken']
    spent = clocks[taken].seconds
    clock.seconds |= spent
    # What nobody pays who names the features.
    so_far = time.monotonic() - clock.started
    clock.seconds['comparison'] = round(so_far - sum(spent.values()), 2)
    return replace(made[taken], report=report)


def _compared(
    source: FrameSource,
    made: Mapping[str, FeatureChoice],
    config: BuildConfig,
    options: InputOptions,
) -> dict[str, Any]:
    """Return which kind is taken, the reason, and what each kind places by condition."""
    names = _asked_names(config, made)
    frames = {frame.name: frame for frame in source if frame.name in names}
    placed = {
        kind: _placed(one, [frames[name] for name in names], options.progress)
        for kind, one in made.items()
    }
    taken, reason = decide(placed)
    by_condition = {
        kind: dict(zip(CONDITIONS, found.sum(axis=1).tolist(), strict=True))
        for kind, found in placed.items()
    }
    return {'taken': taken, 'reason': reason, 'images': len(names), **by_condition}


def decide(placed: Mapping[str, Asked]) -> tuple[str, str]:
    """Return the kind that is taken, and why, by what each placed (conditions, frames)."""
    first, second = KINDS
    more = clearly_more(placed[second].ravel(), placed[first].ravel())
    counts = {kind: int(found.sum()) for kind, found in placed.items()}
    reason = (
        f'of {placed[first].size} left-out frames (as taken, dark, blurred) {first} places '
        f'{counts[first]}, {second} {counts[second]}: {"clearly" if more else "not clearly"} more'
    )
    return (second if more else first), reason


def _asked_names(config: BuildConfig, made: Mapping[str, FeatureChoice]) -> list[str]:
    """Return the names of the images that are asked for: every n-th that any kind can use."""
    usable = {image.name: image.stamp_ns for one in made.values() for image in one.prepared.images}
    ordered = sorted(usable, key=lambda name: (usable[name], name))
    every = ordered[config.holdout_every // 2 :: config.holdout_every]
    return subsample(every, _FRAMES)


def _placed(choice: FeatureChoice, frames: Sequence[Frame], progress: bool) -> Asked:
    """Return whether a map without the frames places each (conditions, frames)."""
    kind = choice.config.features.name
    log = choice.stages.log('comparison')
    known = log.get('placed')
    if known is not None:
        return known['placed'].astype(bool)
    whole = choice.prepared.reconstruction
    poses = {image.name: image.map_from_camera for image in whole.images}
    limit = _RIGHT_M if whole.metric else _RIGHT_SHARE * _extent(whole)
    localizer = _asking_map(choice, {frame.name for frame in frames})
    placed = np.zeros((len(CONDITIONS), len(frames)), bool)
    bar = tqdm(frames, desc=f'comparing {kind}', unit='image', disable=not progress)
    for column, frame in enumerate(bar):
        truth = poses.get(frame.name)
        if truth is None or frame.image is None:
            continue
        for row, change in enumerate(CONDITIONS.values()):
            # All kinds see the same changed image.
            rng = np.random.default_rng([row, column])
            image = frame.image if change is None else change(frame.image, rng)
            found = localizer.localize(image, frame.camera).map_from_camera
            placed[row, column] = found is not None and _is_right(found, truth, limit)
    log.keep('placed', {'placed': placed.astype(np.uint8)})
    return placed


def _asking_map(choice: FeatureChoice, left_out: set[str]) -> Localizer:
    """Return a localizer in a map that images have no part in, shortly trained."""
    whole = choice.prepared.reconstruction
    kept = [image for image in whole.images if image.name not in left_out]
    config = choice.config
    training = replace(config.training, steps=min(_STEPS, config.training.steps))
    scene_map, _ = train_map(
        replace(whole, images=kept), choice.extractor, replace(config, training=training)
    )
    return Localizer(scene_map, choice.extractor)


def _is_right(found: RigidTransform, truth: RigidTransform, limit: float) -> bool:
    distance, degrees = pose_error(found, truth)
    return distance <= limit and degrees <= _RIGHT_DEG


def _extent(reconstruction: Reconstruction) -> float:
    """Return the largest distance between mapping cameras."""
    centres = np.array([image.map_from_camera.translation for image in reconstruction.images])
    return float(np.linalg.norm(centres[:, None] - centres[None], axis=2).max())
