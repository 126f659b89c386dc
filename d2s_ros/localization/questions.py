"""Images as what scene models tell of them, in a file: to localize on another computer.

A robot that must not send pictures, and holds no more of a map than what tells labels, writes
questions; a computer with the map reads and answers them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from d2s_ros.data.frames import Frame
from d2s_ros.errors import CalibrationError, InputError, UsageError
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.compute_budget import FULL
from d2s_ros.localization.extraction import take_image
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.scene_models.base import View

#: How files of questions end.
SUFFIX = '.questions'
_VERSION = 1


@runtime_checkable
class Asking(Protocol):
    """An observer that needs no image, but what one like it says of the image."""

    def question(self, view: View) -> dict[str, NDArray[Any]]:
        """Return what is needed of a view beside keypoints: no pixels."""
        ...

    def asked(self, view: View, sent: Mapping[str, NDArray[Any]]) -> View:
        """Return the view that `question` was asked of; `view` has its keypoints alone.

        Raises:
            InputError: what was sent does not fit the map.
        """
        ...


def _asking(localizer: Localizer) -> Asking:
    if not isinstance(localizer.observer, Asking):
        raise UsageError('only maps of labels (--head labels) are asked without the image')
    return localizer.observer


@dataclass(frozen=True, eq=False)
class Question:
    """What is sent of an image.

    Attributes:
        name, stamp_ns: Of the image.
        camera: Its intrinsics.
        keypoints: (N, 2) float32 px.
        scales: (N,) float32 of the keypoints.
        sent: What the scene model tells of the image, see `Asking`.
    """

    name: str
    stamp_ns: int
    camera: Camera
    keypoints: NDArray[np.float32]
    scales: NDArray[np.float32]
    sent: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, localizer: Localizer, frame: Frame) -> Question | LocalizationResult:
        """Return the question of an image, or why it cannot be used; no pixel is in it.

        Raises:
            UsageError: the map's head tells nothing that could be sent.
        """
        asking, limits = _asking(localizer), localizer.estimator.config.limits
        taken = take_image(frame.image, frame.camera, localizer.extractor, FULL, limits)
        if isinstance(taken, LocalizationResult):
            return taken
        view = taken.view
        points, scales = view.features.keypoints, view.features.scales
        sent = asking.question(view)
        return cls(frame.name, frame.stamp_ns, view.camera, points, scales, sent)

    def answer(self, localizer: Localizer) -> LocalizationResult:
        """Localize it.

        Raises:
            InputError: it was not asked for this map.
            UsageError: the map's head cannot be asked.
        """
        count = len(self.keypoints)
        features = LocalFeatures(
            self.keypoints,
            np.ones(count, np.float32),
            np.zeros((count, 0), np.float32),
            (self.camera.width, self.camera.height),
            self.scales,
        )
        view = _asking(localizer).asked(View(features, self.camera), self.sent)
        return localizer.localize_view(view)


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write questions to a file (InputError: it cannot be written)."""
    about = [
        {'name': one.name, 'stamp_ns': one.stamp_ns, 'camera': one.camera.to_dict()}
        for one in questions
    ]
    header = json.dumps({'version': _VERSION, 'questions': about}).encode()
    tensors: dict[str, NDArray[Any]] = {'header': np.frombuffer(header, np.uint8)}
    for index, one in enumerate(questions):
        sent = {f'sent.{name}': value for name, value in one.sent.items()}
        for name, value in {'keypoints': one.keypoints, 'scales': one.scales, **sent}.items():
            tensors[f'{index}.{name}'] = np.ascontiguousarray(value)
    try:
        path.write_bytes(save(tensors))
    except OSError as error:
        raise InputError(f'cannot write {path}: {error.strerror}') from error


def read_questions(path: Path) -> list[Question]:
    """Read what `write_questions` wrote.

    Raises:
        InputError: it is not there, or is something else.
    """
    try:
        tensors = load(path.read_bytes())
        header = json.loads(tensors['header'].tobytes())
        if header['version'] != _VERSION:
            raise InputError(f'{path} has questions of version {header["version"]}, not {_VERSION}')
        return [_question(tensors, index, about) for index, about in enumerate(header['questions'])]
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from error
    except (SafetensorError, KeyError, TypeError, ValueError, CalibrationError) as error:
        raise InputError(f'{path} is no file of questions: {error}') from error


def _question(tensors: dict[str, NDArray[Any]], index: int, about: dict[str, Any]) -> Question:
    keypoints, scales = tensors[f'{index}.keypoints'], tensors[f'{index}.scales']
    if keypoints.shape != (len(scales), 2) or scales.ndim != 1:
        raise ValueError(f'keypoints {keypoints.shape} and scales {scales.shape}')
    if not (np.isfinite(keypoints).all() and np.isfinite(scales).all() and (scales > 0).all()):
        raise ValueError('keypoints or scales that are no numbers')
    begin = f'{index}.sent.'
    return Question(
        str(about['name']),
        int(about['stamp_ns']),
        Camera.from_dict(about['camera']),
        keypoints.astype(np.float32),
        scales.astype(np.float32),
        {name[len(begin) :]: value for name, value in tensors.items() if name.startswith(begin)},
    )
