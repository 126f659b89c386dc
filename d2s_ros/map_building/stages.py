"""What is done of a build, kept beside its map until the map is written.

MAP.building/build.json            what the build depends on
MAP.building/features.log          features of each image
MAP.building/matches.log           matches of image pairs
MAP.building/reconstruction.log    refined poses, tracks and points
MAP.building/samples.log           training samples
MAP.building/training.pt           checkpoint of the training

A log that is split into several maps has places.log instead, the files of each map.

Where features are compared, each kind has a folder of its own in MAP.building, with these files and
KIND/comparison.log, what it places.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.array_log import StageLog
from d2s_ros.data.frames import Frame
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.types import LocalFeatures
from d2s_ros.maps.files import BUILDING_SUFFIX, LOCK_FILE, open_lock

_logger = logging.getLogger(__name__)

_DESCRIPTION_FILE = 'build.json'
_CHECKPOINT_FILE = 'training.pt'
#: Stages that depend on all images together, not on one alone.
_AFTER_FEATURES = ('matches', 'reconstruction', 'comparison', 'samples', 'places')
_FEATURE_ARRAYS = ('keypoints', 'keypoint_scores', 'descriptors', 'scales')


class BuildStages:
    """The stages of one build; a context that removes them on success and keeps them otherwise.

    Args:
        map_path: Map folder of the build; None keeps nothing.
        description: What the build depends on besides its images (JSON types).
        fresh: Forget what an interrupted build has left.

    Attributes:
        noun, doing: What is kept, and what its process does to `map_path`, for messages; who keeps
            the stages of something else in the same way has other words.
        resumed: Whether an interrupted build of the same description was found.

    Raises:
        UsageError: another process builds this map.
    """

    noun: ClassVar[str] = 'build'
    doing: ClassVar[str] = 'building'

    def __init__(
        self, map_path: Path | None, description: dict[str, Any], *, fresh: bool = False
    ) -> None:
        self.resumed = False
        self._logs: dict[str, StageLog] = {}
        self._parts: dict[str, BuildStages] = {}
        self._description = json.loads(json.dumps(description))
        self._lock: Any = None
        self.folder: Path | None = None
        if map_path is None:
            return
        root = map_path.expanduser().resolve()
        folder = root.with_name(root.name + BUILDING_SUFFIX)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open_lock(folder / LOCK_FILE)
        except OSError as error:
            self._say_unwritable(folder, error)
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UsageError(f'another process is {self.doing} {map_path}; wait for it') from error
        self.folder = folder
        self._begin(fresh)

    def __enter__(self) -> BuildStages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_logs()
        if self.folder is None:
            return
        # The same input would fail again: there is nothing to go on with.
        if kind is None or issubclass(kind, InputError):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            _logger.warning(
                'what is done of the %s is kept in %s; the same command goes on from there',
                self.noun,
                self.folder,
            )
        self._lock.close()

    def _close_logs(self) -> None:
        for log in self._logs.values():
            log.close()
        for part in self._parts.values():
            part._close_logs()

    def part(self, name: str) -> BuildStages:
        """Return the stages of one part of the build, in a folder of its own in this one's."""
        if name not in self._parts:
            part = self._parts[name] = BuildStages(None, {})
            folder = None if self.folder is None else self.folder / name
            try:
                if folder is not None:
                    folder.mkdir(exist_ok=True)
                part.folder = folder
            except OSError as error:
                self._say_unwritable(self.folder, error)
        return self._parts[name]

    def log(self, stage: str) -> StageLog:
        """Return the log of a stage."""
        if stage not in self._logs:
            path = None if self.folder is None else self.folder / f'{stage}.log'
            self._logs[stage] = StageLog(path)
        return self._logs[stage]

    @property
    def checkpoint(self) -> Path | None:
        """Return the file of the training's checkpoint, None if nothing is kept."""
        return None if self.folder is None else self.folder / _CHECKPOINT_FILE

    def set_images(self, digests: list[str]) -> None:
        """Say which images the build is made of; later stages of other images are forgotten."""
        if self.folder is None:
            return
        images = hashlib.sha256(' '.join(digests).encode()).hexdigest()
        known = self._read().get('images')
        unused = set(self.log('features').keys()) - set(digests)
        if unused or known not in (None, images):
            _logger.warning(
                'the input differs from that of the interrupted build: starting afresh '
                '(%d images have changed or are gone)',
                len(unused),
            )
        if known != images:
            for stage in _AFTER_FEATURES:
                if stage in self._logs:
                    self._logs.pop(stage).close()
                (self.folder / f'{stage}.log').unlink(missing_ok=True)
            (self.folder / _CHECKPOINT_FILE).unlink(missing_ok=True)
            self._write({**self._description, 'images': images})

    def _begin(self, fresh: bool) -> None:
        assert self.folder is not None
        found = self._read()
        known = {name: value for name, value in found.items() if name != 'images'}
        if found and known == self._description and not fresh:
            self.resumed = True
            _logger.warning('going on with the interrupted %s in %s', self.noun, self.folder)
            return
        if found and not fresh:
            names = sorted(
                name
                for name in {*known, *self._description}
                if known.get(name) != self._description.get(name)
            )
            _logger.warning(
                'an interrupted %s in %s had other settings (%s): starting afresh',
                self.noun,
                self.folder,
                ', '.join(names),
            )
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()
        self._write(self._description)

    def _read(self) -> dict[str, Any]:
        assert self.folder is not None
        try:
            found = json.loads((self.folder / _DESCRIPTION_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            return {'damaged': True}
        return found if isinstance(found, dict) else {'damaged': True}

    def _write(self, document: dict[str, Any]) -> None:
        assert self.folder is not None
        temporary = self.folder / f'{_DESCRIPTION_FILE}.tmp'
        try:
            temporary.write_text(json.dumps(document, indent=1))
            os.replace(temporary, self.folder / _DESCRIPTION_FILE)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._say_unwritable(self.folder, error)

    def _say_unwritable(self, folder: Path | None, error: OSError) -> None:
        _logger.warning(
            'cannot write %s (%s): an interrupted %s will start from the beginning',
            folder,
            error.strerror or error,
            self.noun,
        )


def frame_digest(frame: Frame) -> str:
    """Return a digest of an image with its name, time, camera and pose."""
    digest = hashlib.blake2b(digest_size=16)
    pose = None if frame.map_from_camera is None else frame.map_from_camera.matrix.tolist()
    camera = None if frame.camera is None else frame.camera.to_dict()
    shape = None if frame.image is None else list(frame.image.shape)
    digest.update(json.dumps([frame.name, frame.stamp_ns, camera, pose, shape]).encode())
    if frame.image is not None:
        digest.update(frame.image.tobytes())
    return digest.hexdigest()


def keep_features(log: StageLog, key: str, features: LocalFeatures) -> bool:
    """Write the features of an image; returns whether they can be read back."""
    return log.keep(key, feature_arrays(features))


def feature_arrays(features: LocalFeatures) -> dict[str, NDArray[Any]]:
    """Return the features of an image as `load_features` reads them."""
    width, height = features.image_size
    arrays = {name: getattr(features, name) for name in _FEATURE_ARRAYS}
    return {**arrays, 'image_size': np.array([width, height])}


def load_features(log: StageLog, key: str) -> LocalFeatures | None:
    """Return the features of an image, mapped from the log, None if they are not there."""
    arrays = log.get(key)
    return None if arrays is None else features_of_arrays(arrays)


def features_of_arrays(arrays: dict[str, NDArray[Any]]) -> LocalFeatures:
    """Return the features that `feature_arrays` was given."""
    width, height = (int(value) for value in arrays['image_size'])
    others = {name: arrays[name] for name in _FEATURE_ARRAYS}
    return LocalFeatures(image_size=(width, height), **others)
