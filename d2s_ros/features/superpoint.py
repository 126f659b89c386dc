"""SuperPoint: one network that finds keypoints and describes them.

The architecture is exactly the published one (DeTone et al. 2018), so that published weight files
and ours are interchangeable. `SuperPoint.from_pretrained` reads three layouts: ours and
`superpoint_v1.pth` (conv1a ... convDb), and `superpoint_v6_from_tf.pth` (batch norm after ReLU).
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from d2s_ros import kernels
from d2s_ros.device import has_fast_bfloat16, has_fast_int8
from d2s_ros.errors import DeviceError, UnsupportedImageError, UsageError, WeightsError
from d2s_ros.features.dense_maps import mixed_descriptors, read_descriptors
from d2s_ros.features.extractor import FeatureConfig, to_grey
from d2s_ros.features.superpoint_int8 import Int8SuperPoint
from d2s_ros.features.types import LocalFeatures
from d2s_ros.kernels import tensors
from d2s_ros.kernels.interface import CELL
from d2s_ros.threads import one_thread

_logger = logging.getLogger(__name__)

#: Height of the strips that the first stage is computed in on a CPU, even.
STRIP_ROWS = 64

#: What `precision` may be.
PRECISIONS = ('auto', 'fp32', 'bf16', 'int8')

#: Name, input and output channels, kernel size of each layer, named as in `superpoint_v1.pth`.
LAYERS: tuple[tuple[str, int, int, int], ...] = (
    ('conv1a', 1, 64, 3),
    ('conv1b', 64, 64, 3),
    ('conv2a', 64, 64, 3),
    ('conv2b', 64, 64, 3),
    ('conv3a', 64, 128, 3),
    ('conv3b', 128, 128, 3),
    ('conv4a', 128, 128, 3),
    ('conv4b', 128, 128, 3),
    ('convPa', 128, 256, 3),
    ('convPb', 256, 65, 1),
    ('convDa', 128, 256, 3),
    ('convDb', 256, 256, 1),
)
#: The layers that end a head: no ReLU.
LINEAR_LAYERS = ('convPb', 'convDb')

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


class SuperPointNet(nn.Module):
    """The network: (B, 1, H, W) grey in [0, 1] to detector logits and raw descriptors.

    Args:
        affine: Whether a per-channel scale and shift follows each activation. Published weights
            with batch norm after the ReLU need it: that does not fold into a convolution with
            zero padding.
    """

    def __init__(self, *, affine: bool = False) -> None:
        super().__init__()
        self.affine = affine
        for name, inputs, outputs, kernel in LAYERS:
            setattr(self, name, nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
            if affine:
                self.register_buffer(f'{name}_scale', torch.ones(outputs))
                self.register_buffer(f'{name}_shift', torch.zeros(outputs))

    def _layer(self, name: str, x: Tensor) -> Tensor:
        x = getattr(self, name)(x)
        if name not in LINEAR_LAYERS:
            x = functional.relu(x, inplace=True)
        if self.affine:
            scale, shift = getattr(self, f'{name}_scale'), getattr(self, f'{name}_shift')
            x = x * scale[:, None, None] + shift[:, None, None]
        return x

    def _first_stage(self, image: Tensor) -> Tensor:
        """Run the two layers at full resolution and the pooling after them.

        Their maps are the largest by far (150 MB for a megapixel and more): on a CPU they are
        computed in strips that fit into its cache, which is faster and changes nothing.
        """
        height = image.shape[2]
        rows = STRIP_ROWS if image.device.type == 'cpu' and not self.training else height
        strips = []
        for start in range(0, height, rows):
            # Two convolutions of 3x3 look two rows beyond.
            first, last = max(0, start - 2), min(height, start + rows + 2)
            x = self._layer('conv1b', self._layer('conv1a', image[:, :, first:last]))
            x = x[:, :, start - first : min(start + rows, height) - first]
            strips.append(functional.max_pool2d(x, 2))
        return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 65, H/8, W/8) and descriptors (B, 256, H/8, W/8), not normalised.

        Args:
            image: (B, 1, H, W) grey in [0, 1], H and W multiples of 8.
        """
        return self._from_first_stage(self._first_stage(image))

    def whole(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, the first stage in one piece; for exports, whose sizes are open."""
        x = self._layer('conv1b', self._layer('conv1a', image))
        return self._from_first_stage(functional.max_pool2d(x, 2))

    def _from_first_stage(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for stage in ('2', '3', '4'):
            x = self._layer(f'conv{stage}b', self._layer(f'conv{stage}a', x))
            if stage != '4':
                x = functional.max_pool2d(x, 2)
        logits = self._layer('convPb', self._layer('convPa', x))
        descriptors = self._layer('convDb', self._layer('convDa', x))
        return logits, descriptors


class SuperPoint:
    """SuperPoint behind the `FeatureExtractor` contract.

    Deterministic: on the same device the same image gives the same features.

    Args:
        network: The network with its weights; taken over, moved to `device` and frozen.
        config: Number of keypoints and image size.
        weights_hash: sha256 of the weights, and of the projection if there is one.
        device: 'cpu', 'cuda' or 'cuda:N'.
        precision: Of the network, see `resolve_precision`.
        nms_radius: Keypoints are further apart than this, px of the resized image.
        threshold: Least probability of a keypoint.
        border: No keypoint closer to the image border, px of the resized image, at least 1.
        subpixel: Whether keypoints are refined below the pixel.
        projection: (256, D) map of the network's descriptors to shorter ones; None keeps them.
        smoothing: Sigma of a Gaussian that the resized image is blurred with first, px; 0: none.
    """

    def __init__(
        self,
        network: SuperPointNet,
        config: FeatureConfig | None = None,
        *,
        weights_hash: str,
        device: str = 'cpu',
        precision: str = 'fp32',
        nms_radius: int = 4,
        threshold: float = 0.0005,
        border: int = 4,
        subpixel: bool = True,
        projection: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        self.config = FeatureConfig(name='superpoint') if config is None else config
        self.weights_hash = weights_hash
        self.device = checked_device(device)
        self.nms_radius, self.threshold = nms_radius, threshold
        self.border, self.subpixel = max(1, border), subpixel
        self.projection = None if projection is None else projection.float().to(self.device)
        self.smoothing = smoothing
        self.dim = 256 if self.projection is None else self.projection.shape[1]
        self.network = network.eval().requires_grad_(False)
        # Channels-last convolutions are faster on CPUs and GPUs alike.
        self.network = self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = resolve_precision(precision, self.device, network)
        self._integer_network: Int8SuperPoint | None = None
        if self.precision == 'int8':
            self._integer_network = Int8SuperPoint(self.network)
        elif self.precision == 'bf16':
            self.network = self.network.to(torch.bfloat16)
        half = self.precision != 'fp32' and has_fast_bfloat16(self.device.type)
        if half and self.projection is not None:
            self.projection = self.projection.to(torch.bfloat16)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        config: FeatureConfig | None = None,
        device: str = 'cpu',
        **options: Any,
    ) -> SuperPoint:
        """Load weights from a .safetensors file or a .pth file; None takes the packaged ones.

        A file NAME.projection.safetensors beside the weights NAME.* shortens the descriptors, and
        says how much images are smoothed.

        Raises:
            WeightsError: if the file is missing, unreadable or of another architecture.
            DeviceError: if there is no such device.
        """
        if path is None:
            path = default_weights_path()
            if path is None:
                raise WeightsError('the package has no superpoint weights; give a weight file')
        network, digest = load_network(Path(path))
        projection, smoothing = None, 0.0
        if projection_path(Path(path)).is_file():
            projection, smoothing, other = load_projection(projection_path(Path(path)))
            digest = hashlib.sha256((digest + other).encode()).hexdigest()
        return cls(
            network,
            config,
            weights_hash=digest,
            device=device,
            projection=projection,
            smoothing=smoothing,
            **options,
        )

    def extract(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> LocalFeatures:
        """Detect and describe keypoints; see `FeatureExtractor.extract`."""
        grey = to_grey(image)
        height, width = grey.shape
        if mask is not None and mask.shape[:2] != grey.shape:
            raise UnsupportedImageError(
                f'the mask is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}'
            )
        resized, factor = self.prepared(grey)
        allowed = None
        if mask is not None:
            allowed = np.asarray(
                cv2.resize(
                    (mask.reshape(height, width, -1)[:, :, 0] > 0).astype(np.uint8),
                    (resized.shape[1], resized.shape[0]),
                    interpolation=cv2.INTER_NEAREST,
                ),
                np.uint8,
            )
        keypoints, scores, descriptors = self._run(resized, allowed)
        keypoints = (keypoints + 0.5) * factor - 0.5
        if mask is not None:
            # Resizing and refinement may move a keypoint by a fraction of a pixel into the mask.
            pixel = np.rint(keypoints).astype(np.int64)
            pixel = np.clip(pixel, 0, [width - 1, height - 1])
            keep = mask.reshape(height, width, -1)[pixel[:, 1], pixel[:, 0], 0] > 0
            keypoints, scores, descriptors = keypoints[keep], scores[keep], descriptors[keep]
        return LocalFeatures(
            keypoints=keypoints.astype(np.float32),
            keypoint_scores=scores,
            descriptors=descriptors,
            image_size=(width, height),
            scales=np.ones(len(keypoints), dtype=np.float32),
        )

    def _run(
        self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Return keypoints (K, 2) in px of `grey`, scores (K,) and descriptors (K, D)."""
        padded = pad_to_cells(grey)
        if self.device.type == 'cpu':
            with torch.inference_mode():
                return self._run_on_cpu(padded, grey.shape, allowed)
        # One transfer for all of it.
        image = torch.from_numpy(padded).to(self.device)
        table = self.on_device(image, grey.shape, allowed).cpu().numpy()
        return _split(table[table[:, 2] > self.threshold])

    def _run_on_cpu(
        self, padded: NDArray[np.uint8], size: tuple[int, ...], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """As `_run`, for (H, W) that was padded from `size`."""
        integers = self._integer_network
        if integers is not None:
            shared, logits = integers.detect(torch.from_numpy(padded)[None, None])
        else:
            logits, raw = self.forward(padded)
        compute, threads = kernels.active(), torch.get_num_threads()
        # As the network gives them: channels last.
        by_cell = logits[0].permute(1, 2, 0).float().contiguous().numpy()
        scores = compute.score_map(by_cell, size[0], size[1], threads=threads)
        index = compute.strongest_maxima(
            scores,
            self.nms_radius,
            self.config.max_keypoints,
            border=self.border,
            threshold=self.threshold,
            allowed=allowed,
            threads=threads,
        )
        if self.subpixel:
            keypoints = compute.refine_keypoints(scores, index)
        else:
            keypoints = np.stack([index % size[1], index // size[1]], axis=1).astype(np.float32)
        height, width = logits.shape[2:]
        cells, places, weights = compute.cells_around(keypoints, height, width)
        if integers is not None:
            described = integers.describe(shared, torch.from_numpy(cells))
        else:
            rows = raw[0].permute(1, 2, 0).reshape(height * width, -1)
            described = rows[torch.from_numpy(cells)].float()
        with one_thread():
            mixed = mixed_descriptors(
                described, torch.from_numpy(places), torch.from_numpy(weights)
            )
            descriptors = self._shortened(mixed)
        return keypoints.astype(np.float64), scores.reshape(-1)[index], descriptors.numpy()

    def prepared(self, grey: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return what the network sees of (H, W), and how many px of it one of that is, x and y."""
        height, width = grey.shape
        resized = resize_to_fit(grey, self.config.max_size)
        factor = np.array([width / resized.shape[1], height / resized.shape[0]])
        if self.smoothing > 0:
            resized = np.asarray(cv2.GaussianBlur(resized, (0, 0), self.smoothing), np.uint8)
        return resized, factor

    def on_device(
        self, padded: Tensor, size: tuple[int, ...], allowed: NDArray[np.uint8] | None = None
    ) -> Tensor:
        """Find and describe keypoints without waiting for the device; its shape is always the same.

        Args:
            padded: (H, W) uint8 on the device, multiples of 8.
            size: Height and width without padding.
            allowed: (H, W) non-zero where keypoints may be.

        Returns:
            (K, 3 + D) float32: x, y and score, best first, and the descriptor. What is not a
            keypoint has a score of at most `threshold`.
        """
        with torch.inference_mode(), _exact_convolutions():
            logits, raw = self._float_forward(padded[None, None])
            scores = _scores_of(logits, size)
            pixels, strength = self._strongest(scores, allowed)
            keypoints = self._refined(scores, pixels)
            descriptors = self._shortened(read_descriptors(raw[0].float(), keypoints))
            return torch.cat([keypoints, strength[:, None], descriptors], dim=1)

    def _refined(self, scores: Tensor, pixels: Tensor) -> Tensor:
        return tensors.refine_keypoints(scores, pixels) if self.subpixel else pixels.float()

    def _shortened(self, descriptors: Tensor) -> Tensor:
        """Return the unit descriptors (K, D) of (K, 256) of any length."""
        if self.projection is not None:
            descriptors = (descriptors.to(self.projection.dtype) @ self.projection).float()
        return functional.normalize(descriptors, dim=-1)

    def forward(self, padded: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Run the network alone: logits and raw descriptors of (H, W), multiples of 8."""
        image = torch.from_numpy(padded)[None, None]
        if self._integer_network is not None:
            return self._integer_network(image)
        with _exact_convolutions():
            return self._float_forward(image.to(self.device))

    def _float_forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.bfloat16 if self.precision == 'bf16' else torch.float32
        image = image.to(dtype) / 255.0
        logits, raw = self.network(image.contiguous(memory_format=torch.channels_last))
        return logits, raw

    def _strongest(
        self, scores: Tensor, allowed: NDArray[np.uint8] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the strongest maxima: pixels (K, 2) int64 x, y and scores (K,), best first.

        Without waiting for the device, always K rows: what is not a keypoint has the score 0 and
        lies at the border's corner.
        """
        height, width = scores.shape
        edge = self.border
        peaks = tensors.suppress_non_maxima(scores[None], self.nms_radius)[0]
        if allowed is not None:
            peaks = peaks * (torch.from_numpy(allowed).to(self.device, non_blocking=True) > 0)
        inner = peaks[edge : height - edge, edge : width - edge]
        count = min(self.config.max_keypoints, inner.numel())
        strength, index = torch.topk(inner.reshape(-1), count, sorted=True)
        columns = max(1, inner.shape[1])
        rows = torch.div(index, columns, rounding_mode='floor')
        return torch.stack([index - rows * columns + edge, rows + edge], dim=1), strength


def _exact_convolutions() -> AbstractContextManager[None]:
    """Let a GPU compute the same for the same image, in full float32 where that was asked for."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _scores_of(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the score map (H, W) without padding."""
    return tensors.score_map(logits)[0, : size[0], : size[1]].contiguous()


def _split(
    table: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """Return keypoints, scores and descriptors of a table with a row each."""
    return (
        table[:, :2].astype(np.float64),
        np.ascontiguousarray(table[:, 2]),
        np.ascontiguousarray(table[:, 3:]),
    )


def resolve_precision(name: str, device: torch.device, network: SuperPointNet) -> str:
    """Return 'fp32', 'bf16' or 'int8' for these or 'auto', the fastest that is as accurate.

    Raises:
        DeviceError: 'int8' was asked for and cannot be had.
        UsageError: for another name.
    """
    if name not in PRECISIONS:
        raise UsageError(f'precision {name!r} is unknown; use {", ".join(PRECISIONS)}')
    possible = device.type == 'cpu' and not network.affine and has_fast_int8()
    if name == 'auto':
        return 'int8' if possible else 'fp32'
    if name == 'int8' and not possible:
        raise DeviceError(
            'int8 needs a CPU with VNNI instructions and weights without affine layers; use the '
            'precision auto or fp32'
        )
    return name


def pad_to_cells(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad (H, W) on the right and below to multiples of 8: coordinates stay as they are."""
    height, width = grey.shape
    if height % CELL == 0 and width % CELL == 0:
        return np.ascontiguousarray(grey)
    return np.pad(grey, ((0, -height % CELL), (0, -width % CELL)), mode='edge')


def resize_to_fit(grey: NDArray[np.uint8], max_size: int) -> NDArray[np.uint8]:
    """Shrink an image so that its longest side is at most `max_size`; 0 keeps it."""
    height, width = grey.shape
    longest = max(height, width)
    if max_size <= 0 or longest <= max_size:
        return grey
    size = (
        max(1, round(width * max_size / longest)),
        max(1, round(height * max_size / longest)),
    )
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def default_weights_path() -> Path | None:
    """Return the weight file that comes with the package, None if it was not installed."""
    path = Path(str(resources.files('d2s_ros.features'))) / 'weights' / 'superpoint.safetensors'
    return path if path.is_file() else None


def projection_path(weights: Path) -> Path:
    """Return where the projection of a weight file's descriptors is, if it has one."""
    return weights.with_name(f'{weights.stem}.projection.safetensors')


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


def checked_device(device: str) -> torch.device:
    """Return the torch device of a name.

    Raises:
        DeviceError: if there is no such device.
    """
    try:
        result = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f'there is no device {device!r}; use cpu or cuda') from error
    if result.type == 'cuda' and not torch.cuda.is_available():
        raise DeviceError('cuda was asked for, but PyTorch finds no GPU; use --device cpu')
    return result
