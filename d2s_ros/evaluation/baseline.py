"""The peer: match every query descriptor against every mapping descriptor that has a 3D point.

Same features, same pycolmap points, poselib's PnP-RANSAC with its own refinement. Nothing is
compressed or learned: this is the accuracy that a map of the whole database gives.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.result import LocalizationResult, LocalizationStatus
from d2s_ros.maps.update_data import dequantise, quantise
from d2s_ros.reconstruction.reconstruction import Reconstruction


def _import_poselib() -> Any:
    """Import poselib: it has no wheels for ARM, and localizing does without."""
    try:
        return importlib.import_module('poselib')
    except ModuleNotFoundError as error:
        raise InputError(
            'the matching baseline needs poselib, which is not installed here: pip install poselib'
        ) from error


def solve_matches(
    ideal: NDArray[np.float64],
    points_in_map: NDArray[np.float64],
    camera: Camera,
    *,
    max_error_px: float = 8.0,
    loss_scale_px: float = 0.5,
    min_inliers: int = 12,
) -> tuple[RigidTransform | None, int]:
    """Return map_from_camera of matches by poselib, None below `min_inliers`, and the inliers.

    Args:
        ideal: (N, 2) undistorted px.
        points_in_map: (N, 3), the point that each shows.
        camera: Of the image.
        max_error_px: Of an inlier.
        loss_scale_px: Of the Cauchy loss of the refinement.
        min_inliers: With fewer there is no pose.
    """
    if len(ideal) < min_inliers:
        return None, 0
    pose, info = _import_poselib().estimate_absolute_pose(
        ideal,
        points_in_map,
        {
            'model': 'PINHOLE',
            'width': camera.width,
            'height': camera.height,
            'params': [camera.fx, camera.fy, camera.cx, camera.cy],
        },
        {'max_reproj_error': max_error_px},
        {'loss_type': 'CAUCHY', 'loss_scale': loss_scale_px},
    )
    inliers = int(info['num_inliers'])
    if inliers < min_inliers:
        return None, inliers
    return RigidTransform(np.asarray(pose.R), np.asarray(pose.t)).inverse(), inliers


class MatchingBaseline:
    """Ratio test against the best descriptor of another point; poselib with a Cauchy loss.

    Ratio, thresholds and loss are the best of a sweep over four scenes (docs/design/evaluation.md).
    """

    def __init__(
        self,
        reconstruction: Reconstruction,
        *,
        ratio: float = 0.8,
        max_error_px: float = 8.0,
        loss_scale_px: float = 0.5,
        min_inliers: int = 12,
    ) -> None:
        self.points_in_map = reconstruction.points_in_map
        labelled = [image.point_idx >= 0 for image in reconstruction.images]
        self._descriptors = torch.from_numpy(
            np.concatenate(
                [
                    image.features.descriptors[mask]
                    for image, mask in zip(reconstruction.images, labelled, strict=True)
                ]
            )
        )
        self._point_idx = np.concatenate(
            [
                image.point_idx[mask]
                for image, mask in zip(reconstruction.images, labelled, strict=True)
            ]
        )
        self.ratio = ratio
        self.max_error_px = max_error_px
        self.loss_scale_px = loss_scale_px
        self.min_inliers = min_inliers

    @property
    def num_descriptors(self) -> int:
        """Number of descriptors that each query descriptor is compared with."""
        return len(self._descriptors)

    def fill_up_to(self, count: int, seed: int = 0) -> None:
        """Add random unit descriptors until there are `count`, to measure a larger database.

        They are nearly orthogonal to real ones, so that the matches stay what they are.
        """
        missing = count - len(self._descriptors)
        if missing <= 0:
            return
        generator = torch.Generator().manual_seed(seed)
        random = torch.empty(missing, self._descriptors.shape[1]).normal_(generator=generator)
        random = torch.nn.functional.normalize(random, dim=1)
        self._descriptors = torch.cat([self._descriptors, random])
        repeated = np.resize(self._point_idx, missing)
        self._point_idx = np.concatenate([self._point_idx, repeated])

    def size_bytes(self) -> int:
        """Return the size of descriptors and points as float32."""
        return self._descriptors.numel() * 4 + self.points_in_map.size * 4

    def localize_features(self, features: LocalFeatures, camera: Camera) -> LocalizationResult:
        """Localize from features; refused only below `min_inliers`."""
        started = time.perf_counter()
        keep, found = self._match(features)
        matched = time.perf_counter()
        ideal = camera.undistort(features.keypoints[keep])
        valid = np.isfinite(ideal).all(axis=1)
        found, ideal = found[valid], ideal[valid]
        latency = {'network': 1e3 * (matched - started)}
        if len(found) < self.min_inliers:
            return LocalizationResult(
                LocalizationStatus.TOO_FEW_RELIABLE, f'{len(found)} matches', latency_ms=latency
            )
        pose, inliers = solve_matches(
            ideal,
            self.points_in_map[found],
            camera,
            max_error_px=self.max_error_px,
            loss_scale_px=self.loss_scale_px,
            min_inliers=self.min_inliers,
        )
        latency['pose'] = 1e3 * (time.perf_counter() - matched)
        latency['total'] = latency['network'] + latency['pose']
        if pose is None:
            return LocalizationResult(
                LocalizationStatus.TOO_FEW_INLIERS,
                f'{inliers} inliers',
                num_keypoints=len(features),
                num_used=len(found),
                latency_ms=latency,
            )
        return LocalizationResult(
            LocalizationStatus.LOCALIZED,
            map_from_camera=pose,
            num_keypoints=len(features),
            num_reliable=len(found),
            num_inliers=inliers,
            latency_ms=latency,
            num_used=len(found),
        )

    def _match(self, features: LocalFeatures) -> tuple[np.ndarray, np.ndarray]:
        """Return the keypoints that have a match, and the point of each."""
        best, second, point_idx = self._search(features)
        keep = np.flatnonzero((1 - best) <= self.ratio**2 * (1 - second))
        return keep, point_idx[keep]

    def _search(self, features: LocalFeatures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return best cosine, best cosine to another point, and the best point of each keypoint."""
        values, columns = [], []
        queries = torch.from_numpy(features.descriptors)
        count = min(12, len(self._descriptors))
        # In slices: a large map's full similarity matrix would not fit in memory.
        for start in range(0, len(self._descriptors), 65536):
            similarity = queries @ self._descriptors[start : start + 65536].T
            top = similarity.topk(min(count, similarity.shape[1]), dim=1)
            values.append(top.values)
            columns.append(top.indices + start)
        value, order = torch.cat(values, dim=1).topk(count, dim=1)
        column = torch.cat(columns, dim=1).gather(1, order).numpy()
        point_idx = self._point_idx[column]
        cosines = value.numpy()
        other = point_idx != point_idx[:, :1]
        second = np.where(other, cosines, -1.0).max(axis=1)
        return cosines[:, 0], second, point_idx[:, 0]


class TableBaseline(MatchingBaseline):
    """The bare table: mean descriptors of the longest tracks, mutual nearest neighbours.

    What a landmark head is before it learns anything; the pose is found as by `MatchingBaseline`.
    """

    def __init__(
        self, reconstruction: Reconstruction, *, num_landmarks: int = 4096, min_inliers: int = 12
    ) -> None:
        super().__init__(reconstruction, min_inliers=min_inliers)
        sums = np.zeros((len(reconstruction.points_in_map), self._descriptors.shape[1]))
        np.add.at(sums, self._point_idx, self._descriptors.numpy())
        longest = np.argsort(-reconstruction.track_lengths, kind='stable')[:num_landmarks]
        keys = sums[longest] / np.maximum(np.linalg.norm(sums[longest], axis=1), 1e-12)[:, None]
        # As a map stores them.
        quantised, scales = quantise(keys.astype(np.float32))
        self._keys = torch.from_numpy(dequantise(quantised, scales))
        self._landmarks = longest
        self._size = quantised.nbytes + scales.nbytes + 12 * len(longest)

    def size_bytes(self) -> int:
        """Return the size of keys as int8 with a scale each and points as float32."""
        return self._size

    def _match(self, features: LocalFeatures) -> tuple[np.ndarray, np.ndarray]:
        similarity = torch.from_numpy(features.descriptors) @ self._keys.T
        nearest = similarity.argmax(dim=1).numpy()
        back = similarity.argmax(dim=0).numpy()
        rows = np.arange(len(features))
        mutual = back[nearest] == rows
        keep = rows[mutual]
        return keep, self._landmarks[nearest[mutual]]
