"""What a view of a map's place would show, and how well it would be localized: a prediction.

A point counts by how much its surroundings look as a mapping image saw them. For a small plane that
is told by the affine map between the two images of it: how much it squeezes (its tilt), which
features do not bear, and how much it enlarges (its zoom), which they bear. Two views of a wall from
opposite sides squeeze it alike, however far apart their rays are. That holds for walls; things that
are not flat look alike from near rays only. What is behind something else does not count, but where
few points stand before others, nobody knows whether these are hidden. So two numbers are predicted:
the inliers that a view has at best, if all around its points is flat and little is hidden, and
those that it has anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError, cKDTree

from d2s_ros.geometry.cameras import Camera, projection_jacobian
from d2s_ros.maps.update_data import MappingData

Array = NDArray[np.float64]

#: Weight of a point on a flat surface: a bell over octaves of tilt, of zoom from nearer and of zoom
#: from farther than a mapping image. Chosen with the limits below on what benchmarks/coverage.py
#: names as such.
_TILT, _NEARER, _FARTHER = 0.2, 2.2, 0.5
#: Of any point: the same, with a bell over degrees between the rays, and less of zoom from nearer.
_TURN_DEG, _NEARER_ANYWAY = 12.0, 1.0
#: A view with so many inliers anyway is good if they are precise; with so few at best it is bad.
GOOD_INLIERS, BAD_INLIERS = 100.0, 30.0
#: Largest predicted deviation of a good view: of the position over the depth, of the rotation.
_MAX_RELATIVE_SIGMA, _MAX_SIGMA_DEG = 0.02, 1.0
#: Neighbours that tell the surface of a point, and how thick they may be for their width.
_NEIGHBOURS, _MAX_THICKNESS = 12, 0.35
#: Radius of the sphere that tells what is hidden, over the distance of the farthest point: a larger
#: one hides less. The first hides whatever may be, the second what is behind many near points.
_SPHERE, _LARGE_SPHERE = 10.0, 200.0
#: Of more points an even share is looked at, which counts for the others.
_MAX_POINTS = 12_000
#: Cosine of the slant from which a surface counts as seen from its edge.
_EDGE = 0.02


@dataclass(frozen=True)
class PlannedView:
    """A prediction: from one cell, in one direction.

    Attributes:
        heading_deg: Direction of the optical axis in the plane, from x to y.
        inliers: Correspondences that a pose is expected to have, whatever the surfaces are.
        most_inliers: The same if all surfaces are flat.
        sigma, sigma_deg: Largest standard deviation of position (unit of the map) and rotation.
        verdict: 'good', 'fair' or 'bad'.
    """

    heading_deg: float
    inliers: float
    most_inliers: float
    sigma: float
    sigma_deg: float
    verdict: str


@dataclass(frozen=True, eq=False)
class Surroundings:
    """The points that may be seen from a place, in all directions, and how much each counts.

    Attributes:
        position: (3,) the place.
        points: (N, 3) where they are.
        numbers: (N,) which they are.
        anyway: (N,) weights in [0, 1] whatever the surfaces are; 0 of what may be hidden.
        at_best: (N,) those if all surfaces are flat and little is hidden.
    """

    position: Array
    points: Array
    numbers: NDArray[np.int64]
    anyway: Array
    at_best: Array


class ViewPredictor:
    """Predicts what views of a map's place show.

    Args:
        data: The mapping images.
        camera: Of the views; distortion is left out.
        sigma_px: Noise of a keypoint.

    Attributes:
        share: Of the points of the map, those that are looked at.
    """

    def __init__(self, data: MappingData, camera: Camera, sigma_px: float) -> None:
        self._camera = camera.ideal
        self._sigma_px = sigma_px
        points, rows = [], []
        for row, image in enumerate(data.images):
            seen = np.unique(image.point_idx[image.point_idx >= 0])
            points.append(seen)
            rows.append(np.full(len(seen), row))
        point_idx, image_idx = np.concatenate(points), np.concatenate(rows)
        used = np.unique(point_idx)
        kept = np.isin(point_idx, used[:: -(-len(used) // _MAX_POINTS)])
        point_idx, image_idx = point_idx[kept], image_idx[kept]
        order = np.argsort(point_idx, kind='stable')
        looked_at, self._first, self._counts = np.unique(
            point_idx[order], return_index=True, return_counts=True
        )
        self.share = len(looked_at) / max(1, len(used))
        self._points = data.points_in_map[looked_at]
        self._observer = image_idx[order]
        centres = np.stack([image.map_from_camera.translation for image in data.images])
        rays = np.repeat(self._points, self._counts, axis=0) - centres[self._observer]
        self._distances = np.linalg.norm(rays, axis=1)
        self._rays = rays / np.maximum(self._distances, 1e-12)[:, None]
        self._normals = _normals(self._points, np.add.reduceat(self._rays, self._first))
        normals = np.repeat(self._normals, self._counts, axis=0)
        self._cosines = -(self._rays * normals).sum(axis=1)

    def around(self, position: Array, without: int = -1) -> Surroundings:
        """Return what may be seen from a place (3,).

        Args:
            position: The place.
            without: A mapping image whose observations do not count.
        """
        surely = unhidden(self._points, position, _SPHERE)
        perhaps = surely | unhidden(self._points, position, _LARGE_SPHERE)
        rays = self._points - position
        distances = np.maximum(np.linalg.norm(rays, axis=1), 1e-12)
        rays /= distances[:, None]
        cosines = -(rays * self._normals).sum(axis=1)
        rows = np.flatnonzero(perhaps & (cosines > _EDGE))
        if not len(rows):
            return Surroundings(position, np.zeros((0, 3)), rows, np.zeros(0), np.zeros(0))
        counts = self._counts[rows]
        starts = np.cumsum(counts) - counts
        observation = np.arange(counts.sum()) + np.repeat(self._first[rows] - starts, counts)
        between = (np.repeat(rays[rows], counts, axis=0) * self._rays[observation]).sum(axis=1)
        tilt, zoom = tilt_and_zoom(
            between,
            np.repeat(cosines[rows], counts),
            self._cosines[observation],
            np.repeat(distances[rows], counts) / self._distances[observation],
        )
        turn = np.degrees(np.arccos(np.clip(between, -1, 1)))
        squared = (tilt / _TILT) ** 2
        nearer = zoom > 0
        flat = np.exp(-0.5 * (squared + (zoom / np.where(nearer, _NEARER, _FARTHER)) ** 2))
        squared += (zoom / np.where(nearer, _NEARER_ANYWAY, _FARTHER)) ** 2
        anyway = np.exp(-0.5 * (squared + (turn / _TURN_DEG) ** 2))
        left_out = self._observer[observation] == without
        flat[left_out] = anyway[left_out] = 0.0
        at_best = np.maximum.reduceat(flat, starts)
        certain = np.where(surely[rows], np.maximum.reduceat(anyway, starts), 0.0)
        counted = at_best > 1e-3
        rows = rows[counted]
        return Surroundings(position, self._points[rows], rows, certain[counted], at_best[counted])

    def in_view(self, rotation: Array, around: Surroundings) -> tuple[NDArray[np.int64], Array]:
        """Return which points around a place a view shows, and (N, 3) where its camera sees them.

        Args:
            rotation: (3, 3) map_from_camera.
            around: Of the place that it is taken from.
        """
        camera = self._camera
        in_camera = (around.points - around.position) @ rotation
        depth = np.where(in_camera[:, 2] > 1e-9, in_camera[:, 2], np.nan)
        x = camera.fx * in_camera[:, 0] / depth + camera.cx
        y = camera.fy * in_camera[:, 1] / depth + camera.cy
        with np.errstate(invalid='ignore'):
            inside = (x > 0) & (x < camera.width - 1) & (y > 0) & (y < camera.height - 1)
        rows = np.flatnonzero(inside)
        return rows, in_camera[rows]

    def predict(self, rotation: Array, around: Surroundings, found_share: float) -> PlannedView:
        """Return the prediction for a view.

        Args:
            rotation: (3, 3) map_from_camera.
            around: Of the place that it is taken from.
            found_share: Share of the weights that become inliers.
        """
        rows, in_camera = self.in_view(rotation, around)
        axis = rotation[:, 2]
        heading = round(float(np.degrees(np.arctan2(axis[1], axis[0])) % 360), 1)
        most = found_share * float(around.at_best[rows].sum())
        certain = around.anyway[rows] > 0
        weights, in_camera = around.anyway[rows[certain]], in_camera[certain]
        inliers = found_share * float(weights.sum())
        verdict = 'bad' if most < BAD_INLIERS else 'fair'
        if len(weights) < 4:
            return PlannedView(heading, inliers, most, np.inf, np.inf, verdict)
        jacobian = projection_jacobian(in_camera, self._camera)
        # A turn w of the camera moves p by w x p, and j . (w x p) = w . (p x j).
        by_turn = np.cross(in_camera[:, None], jacobian)
        stacked = np.concatenate([jacobian, by_turn], axis=2)
        information = found_share * np.einsum('n,nij,nik->jk', weights, stacked, stacked)
        information = information / self._sigma_px**2 + 1e-12 * np.eye(6)
        covariance = np.linalg.pinv(information)
        sigma = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
        sigma_deg = float(np.degrees(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1])))
        precise = sigma < _MAX_RELATIVE_SIGMA * float(np.median(in_camera[:, 2]))
        if inliers >= GOOD_INLIERS and precise and sigma_deg < _MAX_SIGMA_DEG:
            verdict = 'good'
        return PlannedView(heading, inliers, most, sigma, sigma_deg, verdict)


def unhidden(points: Array, position: Array, sphere: float) -> NDArray[np.bool_]:
    """Return which points (N, 3) have no others before them, from a place (3,).

    By reflecting the points at a sphere around the place: those on the convex hull of the
    reflections are seen (Katz, Tal and Basri: Direct visibility of point sets, 2007).

    Args:
        points: Where they are.
        position: The place.
        sphere: Radius of the sphere over the distance of the farthest point: the larger, the nearer
            to the line of sight must be what hides a point.
    """
    offsets = points - position
    distances = np.maximum(np.linalg.norm(offsets, axis=1), 1e-9)
    reach = 2 * sphere * distances.max()
    reflected = offsets * ((reach - distances) / distances)[:, None]
    seen = np.zeros(len(offsets) + 1, np.bool_)
    try:
        seen[ConvexHull(np.vstack([reflected, np.zeros(3)])).vertices] = True
    except QhullError:
        # Fewer than four points, or all in one plane: none is before another.
        seen[:] = True
    return seen[:-1]


def tilt_and_zoom(
    between: Array, cosine: Array, seen_cosine: Array, distance_ratio: Array
) -> tuple[Array, Array]:
    """Return how a small plane in one view differs from what another view saw of it.

    Args:
        between: (N,) cosine of the angle between the rays of the two views.
        cosine, seen_cosine: (N,) of the slants of the view and of the view that saw it, from the
            front of the plane; the first above zero.
        distance_ratio: (N,) distance of the view over that of the other.

    Returns:
        (N,) tilt and zoom of the affine map between their images, octaves. A zoom above zero is of
        a view that is nearer. The tilt is infinite where the other view saw no front.
    """
    seen = np.maximum(seen_cosine, _EDGE)
    across = between - cosine * seen
    # With G = (1 - a a') / distance^2 for each view, the squared singular values of the map are
    # the eigenvalues of inv(G_seen) G; a is the part of the ray in the plane.
    trace = 1 + cosine**2 + ((1 - seen**2) - across**2) / seen**2
    determinant = (cosine / seen) ** 2
    root = np.sqrt(np.maximum(trace**2 - 4 * determinant, 0.0))
    tilt = np.log2(np.maximum((trace + root) / (2 * np.sqrt(determinant)), 1.0))
    zoom = 0.25 * np.log2(determinant) - np.log2(distance_ratio)
    return np.where(seen_cosine > _EDGE, tilt, np.inf), zoom


def _normals(points: Array, rays: Array) -> Array:
    """Return the (N, 3) normals of points, towards the cameras.

    Args:
        points: (N, 3).
        rays: (N, 3) sums of the directions from the cameras that saw each.
    """
    facing = -rays / np.maximum(np.linalg.norm(rays, axis=1), 1e-12)[:, None]
    if len(points) < _NEIGHBOURS:
        return facing
    _, neighbours = cKDTree(points).query(points, _NEIGHBOURS)
    around = points[neighbours]
    around = around - around.mean(axis=1, keepdims=True)
    spread, axes = np.linalg.eigh(np.einsum('nki,nkj->nij', around, around))
    normals = axes[:, :, 0]
    normals = np.where(((normals * facing).sum(axis=1) < 0)[:, None], -normals, normals)
    flat = spread[:, 0] <= _MAX_THICKNESS**2 * spread[:, 1]
    return np.where(flat[:, None], normals, facing)
