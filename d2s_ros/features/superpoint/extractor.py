"""SuperPoint behind the contract of feature extractors: one network detects and describes."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros import kernels
from d2s_ros.cuda_graph import FrameRecorder
from d2s_ros.device import has_fast_bfloat16, has_fast_int8
from d2s_ros.errors import DeviceError, UsageError, WeightsError
from d2s_ros.features.network_images import NetworkImages, pad_to_cells
from d2s_ros.features.superpoint.dense_maps import mixed_descriptors, read_descriptors
from d2s_ros.features.superpoint.files import default_weights_path, projection_path
from d2s_ros.features.superpoint.int8 import Int8SuperPoint
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.superpoint.weights import load_network, load_projection
from d2s_ros.features.types import FeatureConfig
from d2s_ros.kernels import tensors
from d2s_ros.threads import one_thread

#: What `precision` may be.
PRECISIONS = ('auto', 'fp32', 'int8')


class SuperPoint(NetworkImages):
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
        self._recorder = FrameRecorder(self.device)
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

    @property
    def graph_state(self) -> str:
        """Whether what a GPU does is recorded as a CUDA graph, or why not."""
        return self._recorder.state

    def _run(
        self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Return keypoints (K, 2) in px of `grey`, scores (K,) and descriptors (K, D)."""
        padded = pad_to_cells(grey)
        if self.device.type == 'cpu':
            with torch.inference_mode():
                return self._run_on_cpu(padded, grey.shape, allowed)
        return self._run_on_gpu(padded, grey.shape, allowed)

    def _run_on_gpu(
        self, padded: NDArray[np.uint8], size: tuple[int, ...], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """As `_run_on_cpu`, with one transfer in and one out."""
        image = torch.from_numpy(padded)
        if allowed is None:
            found = self._recorder.run(size, lambda given: self.on_device(given, size), image)
        else:
            found = self.on_device(image.to(self.device), size, allowed).cpu()
        table = found.numpy()
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
        cells, positions, weights = compute.cells_around(keypoints, height, width)
        if integers is not None:
            described = integers.describe(shared, torch.from_numpy(cells))
        else:
            rows = raw[0].permute(1, 2, 0).reshape(height * width, -1)
            described = rows[torch.from_numpy(cells)].float()
        with one_thread():
            mixed = mixed_descriptors(
                described, torch.from_numpy(positions), torch.from_numpy(weights)
            )
            descriptors = self._shortened(mixed)
        return keypoints.astype(np.float64), scores.reshape(-1)[index], descriptors.numpy()

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
        image = image.to(torch.float32) / 255.0
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
    """Return 'fp32' or 'int8' for these or 'auto', the fastest that is as accurate.

    Raises:
        DeviceError: 'int8' was asked for and cannot be had.
        UsageError: for another name.
    """
    if name == 'bf16':
        raise UsageError('precision bf16 is no longer offered, as it brought nothing; use auto')
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
