"""ALIKED keypoints and descriptors, computed by kornia; the weights are a file of yours.

Source: X. Zhao et al., ALIKED: A Lighter Keypoint and Descriptor Extraction Network via Deformable
Transformation, IEEE TIM 2023. For comparisons: nothing of it is in the package.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2s_ros.errors import UsageError, WeightsError
from d2s_ros.features.network_images import NetworkImages
from d2s_ros.features.superpoint.extractor import checked_device
from d2s_ros.features.types import FeatureConfig

#: By the shape of two tensors of the weights: channels of a descriptor, sampled positions.
_MODELS = {(64, 16): 'aliked-t16', (128, 16): 'aliked-n16', (128, 32): 'aliked-n32'}


class Aliked(NetworkImages):
    """ALIKED behind the `FeatureExtractor` contract; images are grey, as everywhere here.

    Deterministic: on the same device the same image gives the same features.

    Args:
        path: Weights as published, a .pth file of tensors.
        config: Number of keypoints and image size.
        device: 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        WeightsError: the file is missing, unreadable or of another architecture.
        UsageError: kornia is not installed.
    """

    smoothing = 0.0

    def __init__(self, path: str | Path, config: FeatureConfig, *, device: str = 'cpu') -> None:
        self.config = config
        self.device = checked_device(device)
        weights, digest = read_weights(Path(path))
        self.weights_hash = digest
        try:
            self.dim, positions = weights['desc_head.agg_weights'].shape[1::-1]
            name = _MODELS[self.dim, positions]
        except (KeyError, ValueError) as error:
            known = ', '.join(_MODELS.values())
            raise WeightsError(f'{path} holds no weights of {known}') from error
        # Every maximum is kept, best first: which are too weak is not known for other images.
        network = _kornia().ALIKED(name, config.max_keypoints, detection_threshold=0.0)
        missing, unexpected = network.load_state_dict(weights, strict=False)
        # The grid of the detector is made of the radius: weights do not hold it.
        if unexpected or [key for key in missing if not key.startswith('dkd.')]:
            raise WeightsError(f'{path} does not fit {name}: {(*missing, *unexpected)[0]}')
        self.network = network.eval().requires_grad_(False).to(self.device)

    def _run(
        self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Return keypoints (K, 2) in px of `grey`, scores (K,) and descriptors (K, D)."""
        image = torch.from_numpy(grey).to(self.device)[None, None].float() / 255
        with torch.inference_mode():
            found = self.network(image)[0]
        return strongest(found.keypoints, found.keypoint_scores, found.descriptors, allowed)


def strongest(
    keypoints: Tensor, scores: Tensor, descriptors: Tensor, allowed: NDArray[np.uint8] | None
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """Return keypoints (K, 2), scores (K,) and descriptors (K, D) best first, where allowed.

    Args:
        keypoints, scores, descriptors: Of one image, in any order, on any device.
        allowed: (H, W), zero where no keypoint may be; None: anywhere.
    """
    places, strengths = keypoints.double().cpu().numpy(), scores.float().cpu().numpy()
    order = np.argsort(-strengths, kind='stable')
    if allowed is not None:
        pixel = np.clip(np.rint(places).astype(np.int64), 0, np.array(allowed.shape)[::-1] - 1)
        order = order[allowed[pixel[order, 1], pixel[order, 0]] > 0]
    return places[order], strengths[order], descriptors.float().cpu().numpy()[order]


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a .pth file, and the sha256 of it; nothing of it is executed."""
    try:
        data = path.read_bytes()
        weights = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # What torch raises for a file that is none of its own is not documented.
        raise WeightsError(f'{path} cannot be read as weights: {error}') from error
    if not isinstance(weights, dict):
        raise WeightsError(f'{path} holds no weights')
    return weights, hashlib.sha256(data).hexdigest()


def _kornia() -> Any:
    try:
        return importlib.import_module('kornia.feature')
    except ModuleNotFoundError as error:
        raise UsageError("ALIKED needs kornia: pip install 'd2s_ros[aliked]'") from error
