"""Weight files of SuperPoint: where they are, their layouts, and what is wrong with others.

Three layouts are read: ours and `superpoint_v1.pth` (conv1a ... convDb), and
`superpoint_v6_from_tf.pth` (batch norm after ReLU).
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2s_ros.errors import WeightsError
from d2s_ros.features.superpoint.network import SuperPointNet

_logger = logging.getLogger(__name__)

#: Git blob ids of published files: name and licence.
PUBLISHED_FILES = {
    '107a444ca318d487390137d619d49f2f0a3b1ad8': (
        'superpoint_v1.pth (Magic Leap)',
        'Magic Leap licence: academic or non-profit use only, not commercial',
    ),
    'f645e8db1b10a7be84d4e50d67a3c64dd240a49a': (
        'superpoint_v6_from_tf.pth (rpautrat/SuperPoint)',
        'MIT licence',
    ),
}

#: Where `superpoint_v6_from_tf.pth` keeps each layer.
_V6_MODULES = {
    'conv1a': 'backbone.0.0',
    'conv1b': 'backbone.0.1',
    'conv2a': 'backbone.1.0',
    'conv2b': 'backbone.1.1',
    'conv3a': 'backbone.2.0',
    'conv3b': 'backbone.2.1',
    'conv4a': 'backbone.3.0',
    'conv4b': 'backbone.3.1',
    'convPa': 'detector.0',
    'convPb': 'detector.1',
    'convDa': 'descriptor.0',
    'convDb': 'descriptor.1',
}
_V6_NORM_EPSILON = 1e-3


def load_projection(path: Path) -> tuple[Tensor, float, str]:
    """Read a (256, D) projection of descriptors; return it, the smoothing and the file's sha256.

    Raises:
        WeightsError: if the file is unreadable or holds something else.
    """
    state = _read_state(path)
    matrix = state.get('projection')
    if matrix is None or matrix.ndim != 2 or matrix.shape[0] != 256 or matrix.shape[1] > 256:
        raise WeightsError(f'{path} is not a projection of superpoint descriptors')
    if not bool(torch.isfinite(matrix).all()):
        raise WeightsError(f'{path} is damaged: it has values that are not finite')
    smoothing = float(state['smoothing'].max()) if 'smoothing' in state else 0.0
    if not 0.0 <= smoothing <= 10.0:
        raise WeightsError(f'{path} is damaged: the smoothing is {smoothing} px')
    return matrix, smoothing, hashlib.sha256(path.read_bytes()).hexdigest()


def load_network(path: Path) -> tuple[SuperPointNet, str]:
    """Read a weight file of any known layout; return the network and the file's sha256.

    Raises:
        WeightsError: if the file is missing, unreadable or of another architecture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f'cannot read the weight file {path}: {error.strerror}') from error
    _log_published(content)
    state = _read_state(path)
    if any(name.startswith('backbone.') for name in state):
        affine, state = True, _from_v6_layout(state, path)
    else:
        affine = False
    network = SuperPointNet(affine=affine)
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    if missing or unknown:
        found = f'lacks {missing[0]}' if missing else f'has an unknown {unknown[0]}'
        raise WeightsError(f'{path} is not a SuperPoint weight file: it {found}')
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise WeightsError(
                f'{path} is not a SuperPoint weight file: {name} is '
                f'{tuple(state[name].shape)}, expected {tuple(value.shape)}'
            )
        if not bool(torch.isfinite(state[name]).all()):
            raise WeightsError(f'{path} is damaged: {name} has values that are not finite')
    network.load_state_dict(state)
    return network, hashlib.sha256(content).hexdigest()


def _read_state(path: Path) -> dict[str, Tensor]:
    state: Any
    if path.suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise WeightsError(f'{path} is not a readable safetensors file: {error}') from error
    else:
        try:
            state = torch.load(path, map_location='cpu', weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = str(error).strip().split('\n')[0]
            raise WeightsError(f'{path} is not a readable weight file: {reason}') from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f'{path} is not a SuperPoint weight file: it is no table of tensors')
    return {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }


def _from_v6_layout(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    try:
        for name, module in _V6_MODULES.items():
            result[f'{name}.weight'] = state[f'{module}.conv.weight']
            result[f'{name}.bias'] = state[f'{module}.conv.bias']
            variance = state[f'{module}.bn.running_var']
            scale = state[f'{module}.bn.weight'] / (variance + _V6_NORM_EPSILON).sqrt()
            shift = state[f'{module}.bn.bias'] - state[f'{module}.bn.running_mean'] * scale
            result[f'{name}_scale'], result[f'{name}_shift'] = scale, shift
    except KeyError as error:
        raise WeightsError(
            f'{path} is not a SuperPoint weight file: it lacks {error.args[0]}'
        ) from error
    return result


def _log_published(content: bytes) -> None:
    blob = hashlib.sha1(b'blob %d\0' % len(content) + content, usedforsecurity=False).hexdigest()
    if blob in PUBLISHED_FILES:
        name, licence = PUBLISHED_FILES[blob]
        _logger.info('weights are %s; %s', name, licence)
