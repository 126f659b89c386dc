"""Photographs that ship inside installed packages, which textures are cut from."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError

#: (H, W) grey image in [0, 1].
Grey = NDArray[np.float32]

#: package -> photographs inside its wheel, read without importing the package.
_PHOTOGRAPHS = {
    'skimage': (
        'data/astronaut.png',
        'data/brick.png',
        'data/camera.png',
        'data/cell.png',
        'data/chelsea.png',
        'data/coffee.png',
        'data/coins.png',
        'data/color.png',
        'data/grass.png',
        'data/gravel.png',
        'data/hubble_deep_field.jpg',
        'data/ihc.png',
        'data/moon.png',
        'data/motorcycle_left.png',
        'data/retina.jpg',
        'data/rocket.jpg',
        'data/text.png',
    ),
    'sklearn': ('datasets/images/china.jpg', 'datasets/images/flower.jpg'),
    'matplotlib': ('mpl-data/sample_data/grace_hopper.jpg',),
}
_PACKAGES = {'skimage': 'scikit-image', 'sklearn': 'scikit-learn', 'matplotlib': 'matplotlib'}


@lru_cache(maxsize=4)
def load_photographs(weights_bgr: tuple[float, float, float]) -> dict[str, Grey]:
    """Read the photographs as grey images in [0, 1], by name.

    Args:
        weights_bgr: Share of each channel: warm light makes blue things darker.

    Raises:
        InputError: if a package or a photograph is missing.
    """
    photographs: dict[str, Grey] = {}
    weights = np.asarray(weights_bgr, dtype=np.float32).reshape(1, 3)
    for package, files in _PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f'the simulator cuts its textures from photographs of {_PACKAGES[package]}, '
                f'which is not installed; pip install {_PACKAGES[package]}'
            )
        root = Path(next(iter(spec.submodule_search_locations)))
        for file in files:
            image = cv2.imread(str(root / file), cv2.IMREAD_COLOR)
            if image is None:
                raise InputError(
                    f'{root / file} is missing or not an image; reinstall {_PACKAGES[package]}'
                )
            grey = cv2.transform(image.astype(np.float32) / 255, weights)
            photograph = np.asarray(grey, dtype=np.float32).reshape(image.shape[:2])
            photograph.flags.writeable = False  # shared by all callers
            photographs[Path(file).stem] = photograph
    return photographs
