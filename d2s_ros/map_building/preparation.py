"""From a log to a reconstruction in the map's frame: what a build has before its scene model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.frames import FrameSource
from d2s_ros.errors import InputError
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.placement import place
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.reconstruction.origin import choose_origin, relative_to
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    Reconstruction,
    pack_reconstruction,
    unpack_reconstruction,
)


@dataclass
class Clock:
    """Times of the stages of a build, from when it is made.

    Attributes:
        seconds: By stage, rounded; `end` adds the total.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Take the time of a stage."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)

    def end(self) -> None:
        """Take the time of all."""
        self.seconds['total'] = round(time.monotonic() - self.started, 2)


@dataclass(frozen=True)
class InputOptions:
    """How the poses and cameras of a log are taken.

    Attributes:
        use_poses: The poses of the log are used.
        require_poses: Having none is an error.
        calibrated: Its cameras are not first guesses.
        progress: Show progress bars.
    """

    use_poses: bool = True
    require_poses: bool = False
    calibrated: bool = True
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a scene model is made from.

    Attributes:
        images: Usable images of the log, relative to `origin`.
        dropped: Why images of the log were not used, with counts.
        origin: (3,) of the map.
        reconstruction: Images with poses, and points; in the map frame, relative to `origin`.
        placement: Where scale and frame are from.
    """

    images: list[ImageInput]
    dropped: dict[str, int]
    origin: NDArray[np.float64]
    reconstruction: Reconstruction
    placement: dict[str, Any]


def prepare(
    source: FrameSource,
    extractor: FeatureExtractor,
    config: BuildConfig,
    options: InputOptions,
    stages: BuildStages,
    clock: Clock,
) -> Prepared:
    """Extract, match and reconstruct, or go on with what an interrupted build has.

    Raises:
        InputError: unusable images, poses that cannot be used, no structure.
    """
    with clock.timed('features'):
        images, dropped = collect_images(
            source,
            extractor,
            config,
            use_poses=options.use_poses,
            require_poses=options.require_poses,
            stages=stages,
            progress=options.progress,
        )
    origin = choose_origin(images)
    images = relative_to(images, origin)
    with clock.timed('reconstruction'):
        poses = {image.name: image.map_from_camera for image in images}
        if config.placement.align_poses:
            images = without_poses(images)
        reconstruction, placement = place(
            reconstruct_once(images, config, options, stages), source, poses, config.placement
        )
    return Prepared(images, dropped, origin, reconstruction, placement)


def reconstruct_once(
    images: list[ImageInput], config: BuildConfig, options: InputOptions, stages: BuildStages
) -> Reconstruction:
    """Reconstruct, or read what an interrupted build has reconstructed.

    Raises:
        InputError: no structure.
    """
    log = stages.log('reconstruction')
    known = log.get('points')
    if known is not None:
        return unpack_reconstruction(known, images)
    reconstruction = reconstruct(
        images,
        config.reconstruction,
        calibrated=options.calibrated,
        stage=stages.log('matches'),
        progress=options.progress,
    )
    log.keep('points', pack_reconstruction(reconstruction, images))
    return reconstruction


def without_poses(images: Sequence[ImageInput]) -> list[ImageInput]:
    """Return images to be placed by what they show; their poses are aligned to afterwards.

    Raises:
        InputError: there are no poses to align to.
    """
    if images[0].map_from_camera is None:
        raise InputError('the log has no poses to align the map to; leave --align-poses out')
    return [replace(image, map_from_camera=None) for image in images]
