"""Where weight files of SuperPoint are, and what they hold as arrays; no PyTorch."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import WeightsError


def default_weights_path() -> Path | None:
    """Return the weight file that comes with the package, None if it was not installed."""
    path = Path(str(resources.files('d2s_ros.features'))) / 'weights' / 'superpoint.safetensors'
    return path if path.is_file() else None


def projection_path(weights: Path) -> Path:
    """Return where the projection of a weight file's descriptors is, if it has one."""
    return weights.with_name(f'{weights.stem}.projection.safetensors')


def read_arrays(path: Path) -> tuple[dict[str, NDArray[np.float32]], str]:
    """Return the arrays of a .safetensors file as float32, and its sha256.

    Raises:
        WeightsError: it is missing, unreadable, or has numbers that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if path.suffix != '.safetensors':
        raise WeightsError(f'reading {path} needs PyTorch; use a .safetensors file, or install it')
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f'cannot read the weight file {path}: {error.strerror}') from error
    try:
        arrays = {name: value.astype(np.float32) for name, value in load(content).items()}
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f'{path} is not a readable safetensors file: {error}') from error
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise WeightsError(f'{path} is damaged: {name} has values that are not finite')
    return arrays, hashlib.sha256(content).hexdigest()
