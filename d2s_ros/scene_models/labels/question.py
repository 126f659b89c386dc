"""An image as its labels: what a robot may send to a computer that has the map, and no picture.

The likeliest label of every place is sent, of each level. Such maps have no slope, so whoever reads
them blurs them: a label is then expected near where it was told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from d2s_ros.errors import InputError
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.labels.field import LabelField
from d2s_ros.scene_models.labels.network import LabelConfig

#: Standard deviation of the blur, cells of the level.
BLUR_CELLS = 1.0


@dataclass(frozen=True, eq=False)
class LabelView(View):
    """The view of an image of which the labels alone are known.

    Attributes:
        field: They, blurred.
    """

    field: LabelField | None = None


def heads_digest(network: torch.nn.Module) -> NDArray[np.uint8]:
    """Return (32,) uint8 that tells heads apart: labels of others mean something else."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().to(torch.float16).numpy().tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def pack_labels(
    field: LabelField, config: LabelConfig, heads: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """Return what is sent of an image: the likeliest labels, and which heads told them."""
    size = [field.camera.width, field.camera.height]
    arrays: dict[str, NDArray[Any]] = {'size': np.array(size, np.int32), 'heads': heads}
    for stride, level in zip(config.levels, field.levels, strict=True):
        arrays[f'labels_{stride}'] = level.probability.argmax(axis=2).astype(np.uint8)
    return arrays


def view_of_labels(
    view: View, arrays: Mapping[str, NDArray[Any]], config: LabelConfig, heads: NDArray[np.uint8]
) -> LabelView:
    """Return the view of what `pack_labels` gave.

    Args:
        view: Keypoints and camera of the image.
        arrays: What was sent.
        config, heads: Of the map.

    Raises:
        InputError: they do not fit together, or other heads told the labels.
    """
    names = {'size', 'heads', *(f'labels_{stride}' for stride in config.levels)}
    if arrays.keys() != names:
        raise InputError('the labels that were sent are of other levels than those of the map')
    if not np.array_equal(arrays['heads'], heads):
        raise InputError(
            'the labels that were sent are told by the heads of another map; send labels that the '
            'heads of this map tell'
        )
    size = arrays['size']
    if size.shape != (2,) or not (size > 0).all() or size.max() > config.max_size:
        raise InputError('the labels that were sent have no size that an image of labels can have')
    width, height = map(int, size)
    probabilities = []
    for stride in config.levels:
        labels = arrays[f'labels_{stride}']
        shape = (-(-height // stride), -(-width // stride))
        if labels.shape != shape or labels.dtype != np.uint8 or labels.max() >= config.num_labels:
            raise InputError(f'the labels of stride {stride} that were sent do not fit the map')
        sure = np.eye(config.num_labels, dtype=np.float32)[labels]
        probabilities.append(gaussian_filter(sure, (BLUR_CELLS, BLUR_CELLS, 0), mode='nearest'))
    camera = view.camera.resized(width, height).ideal
    field = LabelField.of(probabilities, config.levels, camera)
    return LabelView(view.features, view.camera, field=field)
