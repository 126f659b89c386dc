"""What a teacher sees in each photograph, computed once and kept in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from d2s_ros.errors import InputError, WeightsError
from d2s_ros.features.aliked import Aliked
from d2s_ros.features.superpoint.dense_maps import read_descriptors
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.types import FeatureConfig
from d2s_ros.features.warped_pairs import sample_homography
from d2s_ros.kernels.interface import CELL
from d2s_ros.kernels.tensors import refine_keypoints, score_map, suppress_non_maxima
from tools.superpoint_training.pairs import Labels

_logger = logging.getLogger(__name__)

#: Makes labels from an (H, W) uint8 photograph.
Labeller = Callable[[NDArray[np.uint8]], Labels]

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


class AlikedTeacher:
    """ALIKED-n16 (BSD 3-Clause) through kornia: its keypoints, scores and 128-d descriptors."""

    dim = 128

    def __init__(self, weights: Path, *, device: str = 'cpu', keypoints: int = 2048) -> None:
        config = FeatureConfig(name='aliked', max_keypoints=keypoints, max_size=0)
        self._extractor = Aliked(weights, config, device=device)
        if self._extractor.dim != self.dim:
            raise WeightsError(f'{weights} is not a weight file of aliked-n16')
        self.name = f'aliked-n16-{self._extractor.weights_hash[:16]}'

    def __call__(self, photograph: NDArray[np.uint8]) -> Labels:
        """Detect and describe."""
        found = self._extractor.extract(photograph)
        return Labels(found.keypoints, found.keypoint_scores, found.descriptors.astype(np.float16))


class SuperPointTeacher:
    """Finished SuperPoint weights: what they see in the photograph as it is.

    Scores are averaged over two places of the cells, half a cell apart, which makes positions more
    exact. Several times as fast as ALIKED on a CPU.

    Args:
        network: With finished weights.
        smoothing: Sigma of the Gaussian that the weights want, px.
        keypoints: At most this many.
        threshold: Least score of a keypoint.
        device: 'cpu' or 'cuda'.
    """

    dim = 256

    def __init__(
        self,
        network: SuperPointNet,
        *,
        smoothing: float = 0.0,
        keypoints: int = 1024,
        threshold: float = 0.005,
        device: str = 'cpu',
    ) -> None:
        self.network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.smoothing = torch.device(device), smoothing
        self.keypoints, self.threshold = keypoints, threshold
        digest = hashlib.sha256(
            b''.join(value.cpu().numpy().tobytes() for value in network.state_dict().values())
        )
        self.name = f'superpoint-{smoothing:g}-{digest.hexdigest()[:16]}'

    def __call__(self, photograph: NDArray[np.uint8]) -> Labels:
        """Detect and describe."""
        height, width = photograph.shape
        if self.smoothing > 0:
            photograph = np.asarray(cv2.GaussianBlur(photograph, (0, 0), self.smoothing), np.uint8)
        half = CELL // 2
        total = torch.zeros(height, width, device=self.device)
        shifts = ((half, half), (0, 0))
        for down, right in shifts:
            pad = ((down, -(height + down) % CELL), (right, -(width + right) % CELL))
            padded = torch.from_numpy(np.pad(photograph, pad, mode='edge')).to(self.device)
            with torch.inference_mode():
                logits, raw = self.network(padded[None, None].float() / 255.0)
                total += score_map(logits)[0, down : down + height, right : right + width]
        total = total / len(shifts)
        peaks = suppress_non_maxima(total[None], CELL // 2)[0]
        edge = torch.zeros_like(peaks)
        edge[CELL:-CELL, CELL:-CELL] = peaks[CELL:-CELL, CELL:-CELL]
        strength, index = edge.flatten().topk(min(self.keypoints, edge.numel()))
        index = index[strength > self.threshold]
        pixels = torch.stack([index % width, index // width], dim=1)
        # A position between pixels spreads over several: what is around it counts.
        mass = functional.avg_pool2d(total[None], 3, stride=1, padding=1, divisor_override=1)[0]
        points = refine_keypoints(total, pixels)
        described = read_descriptors(raw[0].float(), points)
        return Labels(
            points.cpu().numpy().astype(np.float32),
            mass.flatten()[index].clamp(max=1.0).cpu().numpy().astype(np.float32),
            described.cpu().numpy().astype(np.float16),
        )


class HomographicAdaptation:
    """A detector's keypoints, averaged over random warps of the photograph (DeTone et al. 2018).

    Args:
        network: A trained detector; its descriptors are not used.
        warps: Number of warps besides the photograph itself.
        threshold: Least mean probability of a keypoint.
        keypoints: At most this many.
        device: 'cpu' or 'cuda'.
        seed: Of the warps.
    """

    dim = 0

    def __init__(
        self,
        network: SuperPointNet,
        *,
        warps: int = 32,
        threshold: float = 0.015,
        keypoints: int = 1024,
        device: str = 'cpu',
        seed: int = 0,
    ) -> None:
        self.network = network.eval().to(device)
        self.device = torch.device(device)
        self.warps, self.threshold, self.keypoints = warps, threshold, keypoints
        self.seed = seed
        digest = hashlib.sha256(
            b''.join(value.cpu().numpy().tobytes() for value in network.state_dict().values())
        )
        self.name = f'homographic-{warps}-{threshold}-{digest.hexdigest()[:16]}'

    def __call__(self, photograph: NDArray[np.uint8]) -> Labels:
        """Detect over all warps."""
        height, width = photograph.shape[0] // CELL * CELL, photograph.shape[1] // CELL * CELL
        photograph = photograph[:height, :width]
        rng = np.random.default_rng(self.seed)
        total = np.zeros((height, width), np.float32)
        count = np.zeros((height, width), np.float32)
        for index in range(self.warps + 1):
            warp = np.eye(3) if index == 0 else sample_homography(rng, width, height)
            image = cv2.warpPerspective(photograph, warp, (width, height))
            tensor = torch.from_numpy(np.asarray(image)).to(self.device)[None, None].float() / 255
            with torch.inference_mode():
                scores = score_map(self.network(tensor)[0])[0].cpu().numpy()
            # Back in the photograph; where the warp did not look it has no say.
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            seen = np.zeros((height, width), np.float32)
            seen[4:-4, 4:-4] = 1.0
            seen *= np.asarray(cv2.warpPerspective(seen, warp, (width, height))) > 0.5
            total += cv2.warpPerspective(scores * seen, warp, (width, height), flags=flags)
            count += cv2.warpPerspective(seen, warp, (width, height), flags=flags)
        mean = torch.from_numpy(total / np.maximum(count, 1.0))
        peaks = suppress_non_maxima(mean[None], 4)[0].numpy()
        rows, columns = np.nonzero(peaks > self.threshold)
        order = np.argsort(-peaks[rows, columns], kind='stable')[: self.keypoints]
        points = np.stack([columns[order], rows[order]], axis=1).astype(np.float32)
        # A kept maximum is a keypoint; how sure the detector is depends on the threshold's scale.
        return Labels(
            points, np.ones(len(points), np.float32), np.zeros((len(points), 0), np.float16)
        )


def cache_labels(
    images: Path, folder: Path, labeller: Labeller, name: str, *, rank: int = 0, world: int = 1
) -> list[str]:
    """Label every photograph that is not yet labelled; return the photographs' file names.

    Args:
        images: Folder of photographs.
        folder: Where labels are kept, one .npz per photograph.
        labeller: Called for each photograph.
        name: Of the labeller; labels of another one are refused.
        rank, world: This process labels every `world`-th photograph.

    Raises:
        InputError: if there is no photograph, or the labels come from another labeller.
    """
    names = photograph_names(images)
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / 'teacher.json'
    if marker.is_file():
        found = json.loads(marker.read_text())['teacher']
        if found != name:
            raise InputError(f'{folder} has labels of {found}, not of {name}; remove it first')
    else:
        marker.write_text(json.dumps({'teacher': name}) + '\n')
    for file_name in tqdm(names[rank::world], desc='labels', disable=rank > 0):
        target = label_path(folder, file_name)
        if target.is_file():
            continue
        labels = labeller(read_photograph(images / file_name))
        # Written aside and renamed: an interrupted run leaves no half file.
        temporary = target.with_suffix('.partial')
        with temporary.open('wb') as stream:
            np.savez(
                stream,
                keypoints=labels.keypoints,
                scores=labels.scores,
                descriptors=labels.descriptors,
            )
        os.replace(temporary, target)
    return names


def photograph_names(images: Path) -> list[str]:
    """Return the sorted file names of the photographs in a folder.

    Raises:
        InputError: if there is none.
    """
    try:
        names = sorted(
            path.name for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
        )
    except OSError as error:
        raise InputError(f'cannot list the photographs in {images}: {error.strerror}') from error
    if not names:
        raise InputError(f'{images} has no photographs ({", ".join(IMAGE_SUFFIXES)})')
    return names


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """Read a photograph as (H, W) uint8.

    Raises:
        InputError: if it cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise InputError(f'cannot read the image {path}')
    return np.asarray(image, np.uint8)


def label_path(folder: Path, file_name: str) -> Path:
    """Return where the labels of a photograph are kept."""
    return folder / f'{Path(file_name).stem}.npz'


def read_labels(path: Path) -> Labels:
    """Read what `cache_labels` wrote."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Labels(stored['keypoints'], stored['scores'], stored['descriptors'])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f'cannot read the labels {path}: {error}; remove the file') from error
