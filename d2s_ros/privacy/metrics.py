"""How alike two grey pictures are: PSNR, SSIM, MAE, gradient correlation, feature distance.

Pictures are (H, W) float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from d2s_ros.errors import WeightsError
from d2s_ros.features.superpoint.files import default_weights_path
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.superpoint.weights import load_network

Picture = NDArray[np.float32]

#: Equal pictures have no finite PSNR; this one says so well enough.
MAX_PSNR = 100.0
#: SSIM as published (Wang et al. 2004): window of 11 px, sigma 1.5, K1 and K2.
_WINDOW, _WINDOW_SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


@dataclass(frozen=True)
class Likeness:
    """What the metrics say of one picture, or their means over several.

    Attributes:
        psnr_db: Peak signal-to-noise ratio, dB; higher is more alike.
        ssim: Structural similarity, 1 for equal pictures.
        mae: Mean absolute difference, of [0, 1].
        feature_distance: See `FeatureDistance`; 0 for equal pictures.
        gradient_correlation: See `gradient_correlation`; 1 for equal pictures, 0 for unrelated.
    """

    psnr_db: float
    ssim: float
    mae: float
    feature_distance: float
    gradient_correlation: float

    @classmethod
    def mean(cls, values: list[Likeness]) -> Likeness:
        """Return the mean of each metric."""
        return cls(
            **{
                field.name: float(np.mean([getattr(value, field.name) for value in values]))
                for field in fields(cls)
            }
        )

    def rounded(self) -> dict[str, float]:
        """Return the metrics for a report."""
        return {field.name: round(getattr(self, field.name), 4) for field in fields(self)}


def psnr(picture: Picture, truth: Picture) -> float:
    """Return the peak signal-to-noise ratio, dB, at most `MAX_PSNR`."""
    error = float(np.mean(np.square(picture.astype(np.float64) - truth)))
    return MAX_PSNR if error <= 0 else min(MAX_PSNR, float(-10.0 * np.log10(error)))


def mae(picture: Picture, truth: Picture) -> float:
    """Return the mean absolute difference."""
    return float(np.mean(np.abs(picture.astype(np.float64) - truth)))


def ssim(picture: Picture, truth: Picture) -> float:
    """Return the mean structural similarity, without the border that windows leave.

    Equal to scikit-image's, which a test compares: that is an extra for the simulator only.
    """
    a, b = picture.astype(np.float64), truth.astype(np.float64)
    margin = _WINDOW // 2

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred = cv2.GaussianBlur(values, (_WINDOW, _WINDOW), _WINDOW_SIGMA)
        return np.asarray(blurred[margin:-margin, margin:-margin], np.float64)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(luminance * structure))


def gradient_correlation(picture: Picture, truth: Picture) -> float:
    """Return the correlation of the pictures' gradients: whether edges are where they were.

    Brightness and contrast, which many descriptors do not hold, do not change it.
    """
    a, b = (
        np.concatenate([np.diff(image, axis=axis).ravel() for axis in (0, 1)]).astype(np.float64)
        for image in (picture, truth)
    )
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length > 0 else 0.0


class FeatureDistance:
    """One minus the cosine of SuperPoint's dense descriptors, mean over cells of 8 px.

    The packaged network, trained by this project on photographs; it takes the part that a network
    trained for classification has elsewhere (LPIPS), whose figures it cannot be compared with.

    Raises:
        WeightsError: the packaged weights are missing.
    """

    def __init__(self) -> None:
        path = default_weights_path()
        if path is None:
            raise WeightsError(
                'the feature distance needs the packaged weights of SuperPoint; install them again'
            )
        self._network: SuperPointNet = load_network(path)[0].eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, picture: Picture, truth: Picture) -> float:
        """Return the distance, 0 for equal pictures."""
        height, width = (side // 8 * 8 for side in truth.shape)
        batch = torch.from_numpy(np.stack([picture, truth])[:, None, :height, :width].copy())
        raw = functional.normalize(self._network(batch)[1], dim=1)
        return float(1.0 - (raw[0] * raw[1]).sum(dim=0).mean())


def likeness(picture: Picture, truth: Picture, distance: FeatureDistance) -> Likeness:
    """Return all metrics of a picture."""
    if picture.shape != truth.shape:
        raise ValueError(f'pictures are {picture.shape} and {truth.shape}')
    return Likeness(
        psnr(picture, truth),
        ssim(picture, truth),
        mae(picture, truth),
        distance(picture, truth),
        gradient_correlation(picture, truth),
    )


def to_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return figures by kind of content as a markdown table."""
    lines = [
        '| content | numbers a point | points a photograph | PSNR [dB] | SSIM | MAE '
        '| feature distance | gradient correlation |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name, row in rows.items():
        lines.append(
            f'| {name} | {row["dim"]} | {row["points"]:.0f} | {row["psnr_db"]:.2f} '
            f'| {row["ssim"]:.3f} | {row["mae"]:.3f} | {row["feature_distance"]:.3f} '
            f'| {row["gradient_correlation"]:.2f} |'
        )
    return '\n'.join(lines) + '\n'
