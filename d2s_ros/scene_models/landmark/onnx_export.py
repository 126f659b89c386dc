"""A map's networks as ONNX files, for runtimes other than PyTorch, checked against PyTorch.

`superpoint.onnx` goes from an image to SuperPoint's dense maps; `landmarks_N.onnx` from N keypoints
to the landmark of each and its reliability, search included. What lies between (the strongest
maxima, reading descriptors) and what follows (the pose) is no network and stays code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.superpoint.int8 import calibration_image
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.kernels.tensors import candidate_evidence, reliability_of, score_map
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.table import LandmarkTable

#: Version of the operator set.
OPSET = 18
#: Where ONNX Runtime computes, the first that it has; TensorRT comes with its GPU package.
_PROVIDERS = ('TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider')
#: Largest difference of scores and of descriptors' lengths, and least share of equal choices.
_MAX_SCORE_ERROR, _MAX_DESCRIPTOR_ERROR, _MIN_SAME_CHOICES = 1e-3, 1e-2, 0.99


class DenseMaps(nn.Module):
    """SuperPoint from bytes to probabilities and descriptors."""

    def __init__(self, network: SuperPointNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return keypoint probabilities (1, H, W) and descriptors (1, 256, H/8, W/8), not unit.

        Args:
            image: (1, 1, H, W) uint8 grey, H and W multiples of 8.
        """
        logits, descriptors = self.network(image.float() / 255.0)
        return score_map(logits), descriptors


class LandmarkChoice(nn.Module):
    """Search among the landmarks and scores of the candidates, in float32."""

    def __init__(self, table: LandmarkTable, network: LandmarkNetwork) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('keys', torch.from_numpy(table.keys))
        points = table.normalized(table.points_in_map)
        self.register_buffer('points', torch.from_numpy(points))

    def forward(
        self, descriptors: Tensor, keypoints: Tensor, log_scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the landmark (N,) int64 of each keypoint and its reliability (N,).

        Args:
            descriptors: (N, D) float32, L2-normalised, of the image, strongest keypoint first.
            keypoints: (N, 2) float32, undistorted x/z, y/z.
            log_scales: (N,) float32.
        """
        assert isinstance(self.keys, Tensor)
        assert isinstance(self.points, Tensor)
        if self.network.descriptors is not None:
            descriptors = self.network.descriptors(descriptors)
        cosines = descriptors @ self.keys.T
        similarity, idx = cosines.topk(self.network.config.num_candidates, dim=1)
        evidence = candidate_evidence(similarity, cosines.amax(dim=0)[idx])
        arguments = (descriptors, evidence, self.points[idx], keypoints, log_scales)
        logits = self.network(*(argument[None] for argument in arguments))[0]
        reliability, choice = reliability_of(logits)
        return idx.gather(1, choice[:, None])[:, 0], reliability


def export_networks(
    table: LandmarkTable, network: LandmarkNetwork, extractor: FeatureExtractor, folder: Path
) -> dict[str, Any]:
    """Write the networks of a map with landmarks into a folder and check them.

    Args:
        table, network: Of the scene model.
        extractor: SuperPoint with the map's weights, in float32 on the CPU.
        folder: Made if needed; files of the same name are replaced.

    Returns:
        Names and shapes of inputs and outputs, what the poses need beside them, the runtime's
        provider and the differences to PyTorch (JSON types).

    Raises:
        UsageError: the packages are missing, or the features are no network.
        InputError: a file does not compute what PyTorch does.
    """
    if not isinstance(extractor, SuperPoint):
        raise UsageError(
            f'the map has {extractor.config.name} features; only superpoint is a network'
        )
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'd2s_ros[export]'") from error
    count = extractor.config.max_keypoints
    if len(table) < network.config.num_candidates:
        raise UsageError(f'the map has {len(table)} landmarks, too few to search among')
    folder.mkdir(parents=True, exist_ok=True)
    height, width = (8 * torch.export.Dim(name, min=4, max=1024) for name in ('rows', 'columns'))
    image = torch.from_numpy(calibration_image(3, 320, 240))[None, None]
    maps = DenseMaps(extractor.network.float().cpu()).eval()
    choice = LandmarkChoice(table, network.float().cpu()).eval()
    keypoints = _example(table, count)
    name = f'landmarks_{count}'
    parts: dict[str, tuple[nn.Module, tuple[Tensor, ...], list[str], list[str], Any]] = {
        'superpoint': (maps, (image,), ['image'], ['scores', 'descriptors'],
                       ({2: height, 3: width},)),
        name: (choice, keypoints, ['descriptors', 'keypoints', 'log_scales'],
               ['landmark', 'reliability'], None),
    }  # fmt: skip
    report: dict[str, Any] = {
        'opset': OPSET,
        'keypoints': count,
        'landmarks': len(table),
        'files': {},
    }
    for part, (module, inputs, names, results, dynamic) in parts.items():
        path = folder / f'{part}.onnx'
        with torch.no_grad():
            torch.onnx.export(
                module, inputs, path, input_names=names, output_names=results,
                opset_version=OPSET, dynamic_shapes=dynamic, external_data=False, verbose=False,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(
            path, providers=[p for p in _PROVIDERS if p in onnxruntime.get_available_providers()]
        )
        report['provider'] = session.get_providers()[0]
        report['files'][path.name] = {
            'inputs': {i.name: [i.type, i.shape] for i in session.get_inputs()},
            'outputs': {o.name: [o.type, o.shape] for o in session.get_outputs()},
        }
        if part == 'superpoint':
            # Another size than that of the export.
            image = torch.from_numpy(calibration_image(4, 640, 480))[None, None]
            report |= _check_maps(session, maps, image)
        else:
            report |= _check_choices(session, choice, keypoints)
    return report


def _example(table: LandmarkTable, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return made-up keypoints: some like landmarks, some like nothing."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, table.keys.shape[1])).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    share = rng.uniform(0.0, 1.5, (count, 1)).astype(np.float32)
    descriptors = table.keys[rng.integers(len(table), size=count)] + share * noise
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    normalized_points = rng.uniform(-0.6, 0.6, (count, 2)).astype(np.float32)
    return torch.from_numpy(descriptors), torch.from_numpy(normalized_points), torch.zeros(count)


def _check_maps(session: Any, module: DenseMaps, image: Tensor) -> dict[str, float]:
    with torch.inference_mode():
        scores, descriptors = module(image)
    found, raw = (torch.from_numpy(r) for r in session.run(None, {'image': image.numpy()}))
    unit = functional.normalize(descriptors, dim=1) - functional.normalize(raw, dim=1)
    score_error = float((found - scores).abs().max())
    descriptor_error = float(unit.norm(dim=1).max())
    if not (score_error <= _MAX_SCORE_ERROR and descriptor_error <= _MAX_DESCRIPTOR_ERROR):
        raise InputError(
            f'superpoint.onnx differs from PyTorch: scores by {score_error:.2g}, descriptors by '
            f'{descriptor_error:.2g}; use another version of ONNX Runtime'
        )
    return {'score_error': score_error, 'descriptor_error': descriptor_error}


def _check_choices(
    session: Any, module: LandmarkChoice, inputs: tuple[Tensor, ...]
) -> dict[str, float]:
    with torch.inference_mode():
        landmark, reliability = module(*inputs)
    feed: dict[str, NDArray[Any]] = {
        i.name: value.numpy() for i, value in zip(session.get_inputs(), inputs, strict=True)
    }
    chosen, probability = (torch.from_numpy(r) for r in session.run(None, feed))
    same = float((chosen == landmark).float().mean())
    error = float((probability - reliability).abs().max())
    if not (same >= _MIN_SAME_CHOICES and error <= 0.05):
        raise InputError(
            f"the landmarks of ONNX Runtime are PyTorch's for {same:.1%} of the keypoints, "
            f'reliability differs by {error:.2g}; use another version of ONNX Runtime'
        )
    return {'same_landmarks': same, 'reliability_error': error}
