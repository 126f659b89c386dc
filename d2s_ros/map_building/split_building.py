"""From one log to an area of several maps in one frame, by tasks that may run on many machines.

Features, matches and the maps of the parts are tasks. Where the log has poses, each part is
triangulated by its own task. Without, or with tags to align to, the whole log is reconstructed
here, which is the one step that is not divided.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from d2s_ros import __version__
from d2s_ros.config import to_dict
from d2s_ros.data.array_log import StageLog
from d2s_ros.data.frames import FrameSource
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.extractor import create_mapping_extractor
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.part_tasks import (
    ExtractorOf,
    PlaceTask,
    build_place,
    extract_features,
    match_images,
)
from d2s_ros.map_building.placement import place
from d2s_ros.map_building.preparation import InputOptions, reconstruct_once, without_poses
from d2s_ros.map_building.splitting import SplitConfig, shared_points, split_images
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.map_building.tasks import Task, TaskRunner, run_tasks
from d2s_ros.maps.area import Area, Place, is_area, locked, write_area
from d2s_ros.maps.area_index import AreaIndex
from d2s_ros.maps.files import PLACES_FOLDER
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.reconstruction.origin import choose_origin, relative_to
from d2s_ros.reconstruction.pair_matching import read_matches, select_pairs
from d2s_ros.reconstruction.pipeline import with_refined_poses
from d2s_ros.reconstruction.reconstruction import ImageInput, part_of

_logger = logging.getLogger(__name__)

#: Images of one task of features, and pairs of one task of matches: some seconds each.
_IMAGES_AT_ONCE, _PAIRS_AT_ONCE = 16, 128

T = TypeVar('T')


def build_split_area(
    source: FrameSource,
    path: str | Path,
    config: BuildConfig,
    split: SplitConfig,
    runner: TaskRunner,
    *,
    device: str = 'cpu',
    weights: str | None = None,
    use_poses: bool = True,
    require_poses: bool = False,
    frame: str = 'map',
    fresh: bool = False,
    progress: bool = True,
    on_built: Callable[[str, SceneMap], None] | None = None,
) -> tuple[Area, dict[str, str]]:
    """Build maps of the parts of a log as places of a new area; all are in one frame.

    What is done is kept in `PATH.building` beside the area until the area is written, and is not
    done again when the function is called with the same images and options.

    Args:
        source: The log.
        path: Folder of the area, new.
        config: Options; features must be named.
        split: Size and overlap of the parts.
        runner: Where the tasks run.
        device: Of features and training, where the tasks run.
        weights: Weight file of network features, there too.
        use_poses, require_poses, fresh, progress: As for `build_map`.
        frame: Name of the area's frame.
        on_built: Called for each place.

    Returns:
        The area, and by name why places could not be built.

    Raises:
        InputError: unusable images, poses that cannot be used, no structure.
        UsageError: there is an area or a map already, or somebody builds it.
        D2SError: a task failed, or what it ran on.
    """
    root = Path(path).expanduser()
    if is_area(root) or (root / 'current').exists():
        raise UsageError(f'{path} is there already: a log is split into the maps of a new area')
    pose_problem: object = getattr(source, 'pose_problem', None)
    if use_poses and pose_problem:
        raise InputError(f'the poses of the log cannot be used: {pose_problem}')
    calibrated = not getattr(source, 'camera_is_guess', False)
    options = InputOptions(use_poses and calibrated, require_poses, calibrated, progress)
    extractor = ExtractorOf(config.features, device, weights)
    description = {
        'software': __version__,
        'config': to_dict(config),
        'split': to_dict(split),
        'features_hash': create_mapping_extractor(config.features, weights=weights).weights_hash,
        'use_poses': options.use_poses,
        'calibrated': calibrated,
    }
    with BuildStages(root, description, fresh=fresh) as stages:
        build = _SplitBuild(source, config, split, runner, extractor, options, stages)
        parts, images = build.execute()
        with locked(root):
            return _write(root, stages.log('places'), parts, images, frame, on_built)


@dataclass(frozen=True, eq=False)
class _Part:
    """One part of a log.

    Attributes:
        name: Of its place.
        key: Of the record of its map.
        rows: Of its images.
    """

    name: str
    key: str
    rows: list[int]


@dataclass(frozen=True, eq=False)
class _SplitBuild:
    """One build of an area, up to the maps of its parts."""

    source: FrameSource
    config: BuildConfig
    split: SplitConfig
    runner: TaskRunner
    extractor: ExtractorOf
    options: InputOptions
    stages: BuildStages

    def execute(self) -> tuple[list[_Part], list[ImageInput]]:
        """Run all tasks; returns the parts and the images that they are made of."""
        config, options = self.config, self.options
        images, dropped = collect_images(
            self.source,
            self.extractor.get(),
            config,
            use_poses=options.use_poses,
            require_poses=options.require_poses,
            stages=self.stages,
            progress=options.progress,
            extract=self._extract,
        )
        origin = choose_origin(images)
        images = relative_to(images, origin)
        poses = {image.name: image.map_from_camera for image in images}
        if config.placement.align_poses:
            images = without_poses(images)
        tags = config.placement.tag_size or config.placement.origin_tag is not None
        log = self.stages.log('matches')
        pairs = select_pairs(images, config.reconstruction)
        if images[0].map_from_camera is not None and not tags:
            if config.reconstruction.refine_poses:
                self._match(images, pairs, guided=False)
                ideal = [image.camera.undistort(image.features.keypoints) for image in images]
                images = with_refined_poses(
                    images, ideal, pairs, config.reconstruction, log, options.progress
                )
            self._match(images, pairs, guided=True)
            matches = read_matches(log, 'guided')
            shared = {pair: len(found) for pair, found in matches.items()}
            parts = self._parts(images, shared)
            given = {'scale_from': 'poses', 'frame_from': 'poses'}
            tasks = self._posed_tasks(parts, images, matches, given, origin, dropped)
        else:
            self._match(images, pairs, guided=images[0].map_from_camera is not None)
            whole, placement = place(
                reconstruct_once(images, config, options, self.stages),
                self.source,
                poses,
                config.placement,
            )
            # What could not be placed is of no part.
            by_name = {image.name: image for image in images}
            images = [by_name[image.name] for image in whole.images]
            parts = self._parts(images, shared_points(whole.images, len(whole.points_in_map)))
            tasks = (
                self._place_task(
                    part,
                    PlaceTask(
                        [images[row] for row in part.rows],
                        part_of(whole, part.rows),
                        None,
                        placement,
                        origin,
                        dropped,
                    ),
                )
                for part in parts
            )
        _logger.info('%d images in %d parts', len(images), len(parts))
        run_tasks(
            tasks,
            self.runner,
            self.stages.log('places'),
            desc='maps',
            progress=options.progress,
        )
        return parts, images

    def _extract(self, images: Iterable[tuple[str, NDArray[np.uint8]]], log: StageLog) -> None:
        tasks = (
            Task(
                tuple(digest for digest, _ in chunk),
                extract_features,
                (self.extractor, chunk),
            )
            for chunk in _chunks(images, _IMAGES_AT_ONCE)
        )
        # The bar of the images tells how far it is.
        run_tasks(tasks, self.runner, log, progress=False)

    def _match(
        self, images: Sequence[ImageInput], pairs: Sequence[tuple[int, int]], *, guided: bool
    ) -> None:
        run_tasks(
            self._match_tasks(images, pairs, guided),
            self.runner,
            self.stages.log('matches'),
            desc='matching',
            progress=self.options.progress,
        )

    def _match_tasks(
        self, images: Sequence[ImageInput], pairs: Sequence[tuple[int, int]], guided: bool
    ) -> Iterator[Task]:
        prefix = 'guided' if guided else 'free'
        for chunk in _chunks(pairs, _PAIRS_AT_ONCE):
            rows = sorted({row for pair in chunk for row in pair})
            key = f'{prefix}/{_digest(chunk)}'
            sent = {row: images[row] for row in rows}
            arguments = (sent, chunk, self.config.reconstruction, guided, key)
            yield Task((key,), match_images, arguments)

    def _parts(
        self, images: Sequence[ImageInput], shared: Mapping[tuple[int, int], int]
    ) -> list[_Part]:
        found = split_images(len(images), shared, self.split)
        return [
            _Part(f'p{number:03d}', _digest([images[row].name for row in rows]), rows)
            for number, rows in enumerate(found)
        ]

    def _posed_tasks(
        self,
        parts: Sequence[_Part],
        images: Sequence[ImageInput],
        matches: Mapping[tuple[int, int], NDArray[np.int64]],
        placement: dict[str, Any],
        origin: NDArray[np.float64],
        dropped: dict[str, int],
    ) -> Iterator[Task]:
        for part in parts:
            number_of = {row: number for number, row in enumerate(part.rows)}
            own = {
                (number_of[i], number_of[j]): found
                for (i, j), found in matches.items()
                if i in number_of
                and j in number_of
                and len(found) >= self.config.reconstruction.min_pair_matches
            }
            members = [images[row] for row in part.rows]
            # Coordinates in a map are small wherever in a large area it lies.
            offset = choose_origin(members)
            members = relative_to(members, offset)
            yield self._place_task(
                part, PlaceTask(members, None, own, placement, origin + offset, dropped)
            )

    def _place_task(self, part: _Part, task: PlaceTask) -> Task:
        return Task((part.key,), build_place, (task, self.config, self.extractor, part.key))


def _write(
    root: Path,
    log: StageLog,
    parts: Sequence[_Part],
    images: Sequence[ImageInput],
    frame: str,
    on_built: Callable[[str, SceneMap], None] | None,
) -> tuple[Area, dict[str, str]]:
    """Write the maps of the parts, and the area."""
    failed: dict[str, str] = {}
    places: list[Place] = []
    descriptors: list[list[NDArray[np.float32]]] = []
    for part in parts:
        record = log.get(part.key)
        assert record is not None
        if 'failed' in record:
            failed[part.name] = record['failed'].tobytes().decode()
            _logger.warning('place %s could not be built: %s', part.name, failed[part.name])
            continue
        with tempfile.TemporaryDirectory(prefix='d2s_place_') as scratch:
            for name, content in record.items():
                (Path(scratch) / name).write_bytes(content.tobytes())
            made = SceneMap.open(scratch)
            update_data = made.load_update_data() if made.has_update_data else None
            store = MapStore(root / PLACES_FOLDER / part.name)
            written = store.write(made, update_data, unless_live=True)
        places.append(Place(part.name, RigidTransform.identity()))
        descriptors.append([images[row].features.descriptors for row in part.rows])
        if on_built is not None:
            on_built(part.name, written)
    if not places:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in failed.items())
        raise InputError(f'no part of the log could be built ({reasons})')
    index = AreaIndex.fit(descriptors)
    return write_area(root, frame=frame, places=places, index=index), failed


def _chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _digest(values: Sequence[Any]) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=16).hexdigest()
