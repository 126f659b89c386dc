"""Which features a build takes where nobody has said: those that serve its own images best.

Both kinds are extracted and reconstructed. Of each a map is made without every n-th image, and
these are asked for in it: as they were taken, three stops darker, and blurred. The kind that places
clearly more of them is taken; where neither does, SuperPoint, unless its poses are clearly less
exact. The stages of the kind that is taken are then those of the build, so that what a comparison
costs is the other kind, and the maps that only ask.
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
from d2s_ros.features.extractor import create_mapping_extractor
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.statistics import subsample
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.preparation import Clock, InputOptions, Prepared, prepare
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.reconstruction.reconstruction import Reconstruction

_logger = logging.getLogger(__name__)

#: The preferred kind, and the one that is cheap enough to be made in any case.
KINDS = ('superpoint', 'rootsift')
#: Of longer logs, as of those without poses, a second reconstruction takes too long.
_MAX_IMAGES = 120
#: Where neither places clearly more: the preferred kind may be less exact by this factor.
_MAX_ERROR_RATIO = 1.3
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
        return [create_mapping_extractor(config.features, device=device, weights=weights)]
    return [
        create_mapping_extractor(
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
        report: dict[str, Any] = {'taken': config.features.name, 'reason': why} if why else {}
        return FeatureChoice(config, extractors[0], stages, prepared, report)
    made: dict[str, FeatureChoice] = {}
    clocks: dict[str, Clock] = {}
    failures: dict[str, InputError] = {}
    for extractor in reversed(extractors):
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
        dear = _too_dear(prepared)
        if dear and len(made) + len(failures) < len(extractors):
            clock.seconds |= clocks[kind].seconds
            return replace(made[kind], report={'taken': kind, 'reason': dear})
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


def _too_dear(prepared: Prepared) -> str:
    """Return why a log is not reconstructed a second time, '' where it may be."""
    if prepared.images[0].map_from_camera is None:
        return 'the log has no poses, and finding them twice takes too long to compare features'
    if len(prepared.images) > _MAX_IMAGES:
        return f'the log has {len(prepared.images)} images, more than {_MAX_IMAGES} to compare with'
    return ''


def _compared(
    source: FrameSource,
    made: Mapping[str, FeatureChoice],
    config: BuildConfig,
    options: InputOptions,
) -> dict[str, Any]:
    """Return which kind is taken, the reason, and what each kind places by condition."""
    names = _asked_names(config, made)
    frames = {frame.name: frame for frame in source if frame.name in names}
    errors = {
        kind: _errors(one, [frames[name] for name in names], options.progress)
        for kind, one in made.items()
    }
    placed = {kind: np.isfinite(found) for kind, found in errors.items()}
    taken, reason = decide(errors)
    by_condition = {
        kind: dict(zip(CONDITIONS, found.sum(axis=1).tolist(), strict=True))
        for kind, found in placed.items()
    }
    return {'taken': taken, 'reason': reason, 'images': len(names), **by_condition}


def decide(errors: Mapping[str, NDArray[np.float64]]) -> tuple[str, str]:
    """Return the kind that is taken, and why.

    Args:
        errors: By kind, (conditions, frames) distances from the right position of frames that were
            placed right; infinite where they were not.
    """
    first, second = KINDS
    placed = {kind: np.isfinite(found) for kind, found in errors.items()}
    counts = {kind: int(found.sum()) for kind, found in placed.items()}
    reason = (
        f'of {placed[first].size} left-out frames (as taken, dark, blurred) {first} places '
        f'{counts[first]}, {second} {counts[second]}'
    )
    for kind, other in ((first, second), (second, first)):
        if clearly_more(placed[kind].ravel(), placed[other].ravel()):
            return kind, f'{reason}: clearly more'
    both = placed[first] & placed[second]
    if not both.any():
        return first, f'{reason}: not clearly more'
    medians = {kind: float(np.median(found[both])) for kind, found in errors.items()}
    ratio = medians[first] / max(medians[second], 1e-12)
    reason += f', neither clearly more; {first} is {ratio:.2g} times as far off where both do'
    return (second if ratio > _MAX_ERROR_RATIO else first), reason


def _asked_names(config: BuildConfig, made: Mapping[str, FeatureChoice]) -> list[str]:
    """Return the names of the images that are asked for: every n-th that any kind can use."""
    usable = {image.name: image.stamp_ns for one in made.values() for image in one.prepared.images}
    ordered = sorted(usable, key=lambda name: (usable[name], name))
    every = ordered[config.holdout_every // 2 :: config.holdout_every]
    return subsample(every, _FRAMES)


def _errors(choice: FeatureChoice, frames: Sequence[Frame], progress: bool) -> NDArray[np.float64]:
    """Return how far off a map without the frames places each (conditions, frames).

    Infinite where it refuses a frame or places it wrong.
    """
    kind = choice.config.features.name
    log = choice.stages.log('comparison')
    known = log.get('errors')
    if known is not None:
        return np.asarray(known['errors'], np.float64)
    whole = choice.prepared.reconstruction
    poses = {image.name: image.map_from_camera for image in whole.images}
    limit = _RIGHT_M if whole.metric else _RIGHT_SHARE * _extent(whole)
    localizer = _asking_map(choice, {frame.name for frame in frames})
    errors = np.full((len(CONDITIONS), len(frames)), np.inf)
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
            if found is None:
                continue
            distance, degrees = pose_error(found, truth)
            if distance <= limit and degrees <= _RIGHT_DEG:
                errors[row, column] = distance
    log.keep('errors', {'errors': errors})
    return errors


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


def _extent(reconstruction: Reconstruction) -> float:
    """Return the largest distance between mapping cameras."""
    centres = np.array([image.map_from_camera.translation for image in reconstruction.images])
    return float(np.linalg.norm(centres[:, None] - centres[None], axis=2).max())
