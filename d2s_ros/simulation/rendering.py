"""Exact pinhole (or distorted) images of a scene of textured quads, with depth and surface ids.

Every pixel is sampled at 2 x 2 points; at each, the ray is intersected with every quad that can be
there and the nearest wins. A quad with corner o and edges u, v (in the camera frame) is hit by the
ray t * r where (a, b, 1) is proportional to inv([u v o]) @ r; the last component of that product is
1 / t, linear in the ray, so the depth test needs no division.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.simulation.lighting import Lighting, emission, irradiance, surface_irradiance
from d2s_ros.simulation.scene import Scene, Surface

_GAMMA = 2.2
#: Samples per pixel along each axis.
_SAMPLES = 2
#: Nothing nearer than this is drawn, m.
_NEAR = 0.02
#: Share of the light in the room that a window pane sends back.
_GLASS = np.float32(0.1)
_TO_LINEAR = ((np.arange(256) / 255.0) ** _GAMMA).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RenderedImage:
    """An image with its truth.

    Attributes:
        image: (H, W) uint8 grey.
        depth: (H, W) float32 m along the optical axis at pixel centres; inf where nothing is.
        surface_idx: (H, W) int16 index into the scene's surfaces, then the occluders; -1 for none.
        exposure: Exposure time relative to daylight times sensor gain.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    surface_idx: NDArray[np.int16]
    exposure: float


@dataclass(frozen=True, eq=False)
class _Rays:
    """Sample rays (x, y, 1) of an image; x and y broadcast to (rows, columns)."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    shape: tuple[int, int]
    #: Smallest and largest x of each column, y of each row: to find what a quad can cover.
    x_low: NDArray[np.float32]
    x_high: NDArray[np.float32]
    y_low: NDArray[np.float32]
    y_high: NDArray[np.float32]
    #: Distance between neighbouring rays, (rows, columns) or a single number.
    spacing: NDArray[np.float32]

    def block(self, rows: slice, columns: slice) -> tuple[NDArray[np.float32], ...]:
        """The x and y of a block, still broadcastable."""
        x = self.x[rows if self.x.shape[0] > 1 else slice(None), columns]
        y = self.y[rows, columns if self.y.shape[1] > 1 else slice(None)]
        return x, y


@lru_cache(maxsize=8)
def _rays(camera: Camera, samples: int) -> _Rays:
    """Rays through the centres of samples x samples parts of each pixel."""
    offset = (np.arange(samples) + 0.5) / samples - 0.5
    u = (np.arange(camera.width)[:, None] + offset).reshape(-1)
    v = (np.arange(camera.height)[:, None] + offset).reshape(-1)
    shape = (len(v), len(u))
    if camera.model == 'pinhole':
        x = ((u - camera.cx) / camera.fx).astype(np.float32)
        y = ((v - camera.cy) / camera.fy).astype(np.float32)
        spacing = np.float32(1 / (samples * np.sqrt(camera.fx * camera.fy)))
        return _Rays(x[None], y[:, None], shape, x, x, y, y, np.full((1, 1), spacing))
    grid_u, grid_v = np.meshgrid(u, v)
    rays = camera.normalize(np.stack([grid_u.ravel(), grid_v.ravel()], axis=1))
    x = rays[:, 0].reshape(shape).astype(np.float32)
    y = rays[:, 1].reshape(shape).astype(np.float32)
    if np.isnan(x).any():
        raise InputError(
            'the distortion is too strong: some pixels of the camera have no ray; '
            'use a longer focal length or weaker coefficients'
        )
    (xv, xu), (yv, yu) = np.gradient(x), np.gradient(y)
    spread = np.sqrt(np.abs(xu * yv - xv * yu)).astype(np.float32)
    return _Rays(x, y, shape, x.min(axis=0), x.max(axis=0), y.min(axis=1), y.max(axis=1), spread)


@dataclass(frozen=True, eq=False)
class _Visible:
    """A quad in front of the camera: its index, ray map, and extent in x, y of the rays."""

    index: int
    ray_map: NDArray[np.float32]
    low: tuple[float, float]
    high: tuple[float, float]
    nearest: float


def render(
    scene: Scene,
    camera: Camera,
    map_from_camera: RigidTransform,
    lighting: Lighting,
    rng: np.random.Generator,
    occluders: Sequence[Surface] = (),
    blur: Sequence[RigidTransform] = (),
) -> RenderedImage:
    """Take a picture.

    Args:
        scene: What is there.
        camera: Any supported model; the image has its size.
        map_from_camera: Pose of the optical frame.
        lighting: Light, exposure and sensor.
        rng: For the sensor noise only.
        occluders: Surfaces of things that move through the scene; they cast no shadows.
        blur: Poses of the camera during the exposure, averaged into the image; depth and surface
            ids are those of `map_from_camera`. Empty for a sharp image.

    Raises:
        InputError: if the distortion leaves pixels of the camera without a ray.
    """
    surfaces = (*scene.surfaces, *occluders)
    light = irradiance(scene, lighting)
    if occluders:
        light = light + surface_irradiance(tuple(occluders), scene, lighting, shadows=False)
    glow = [emission(surface, scene, lighting) for surface in surfaces]
    radiance = np.zeros((camera.height, camera.width), np.float32)
    poses = list(blur) or [map_from_camera]
    for pose in poses:
        radiance += _radiance(surfaces, light, glow, camera, pose) / len(poses)
    image, exposure = _expose(radiance, lighting, rng)
    centres = _rays(camera, 1)
    surface_idx, inverse = _visibility(_project(surfaces, map_from_camera, centres), centres)
    with np.errstate(divide='ignore'):
        depth = np.where(surface_idx >= 0, 1 / inverse, np.float32(np.inf))
    return RenderedImage(image, depth.astype(np.float32), surface_idx, exposure)


def _project(
    surfaces: Sequence[Surface], map_from_camera: RigidTransform, rays: _Rays
) -> list[_Visible]:
    """Find the quads that face the camera and may be inside the image, nearest first."""
    origins = np.stack([surface.origin for surface in surfaces])
    edges_u = np.stack([surface.edge_u for surface in surfaces])
    edges_v = np.stack([surface.edge_v for surface in surfaces])
    rotation = map_from_camera.rotation  # x_camera = R^T (x_map - t), as row vectors: (x - t) @ R
    o = (origins - map_from_camera.translation) @ rotation
    u, v = edges_u @ rotation, edges_v @ rotation
    matrices = np.stack([u, v, o], axis=2)
    facing = np.linalg.det(matrices) > 1e-9
    corners = np.stack([o, o + u, o + u + v, o + v], axis=1)
    facing &= (corners[:, :, 2] > _NEAR).any(axis=1)
    image_low = np.array([rays.x_low.min(), rays.y_low.min()])
    image_high = np.array([rays.x_high.max(), rays.y_high.max()])
    found = []
    for index in np.flatnonzero(facing):
        polygon = corners[index]
        if (polygon[:, 2] <= _NEAR).any():
            polygon = _clip_near(polygon)
        image = polygon[:, :2] / polygon[:, 2:]
        low, high = image.min(axis=0), image.max(axis=0)
        if (low > image_high).any() or (high < image_low).any():
            continue
        ray_map = np.linalg.inv(matrices[index]).astype(np.float32)
        nearest = float(polygon[:, 2].min())
        found.append(_Visible(int(index), ray_map, (low[0], low[1]), (high[0], high[1]), nearest))
    return sorted(found, key=lambda quad: quad.nearest)


def _clip_near(polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut off what is nearer than the near plane."""
    kept = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if start[2] > _NEAR:
            kept.append(start)
        if (start[2] > _NEAR) != (end[2] > _NEAR):
            kept.append(start + (end - start) * (_NEAR - start[2]) / (end[2] - start[2]))
    return np.array(kept)


def _visibility(
    quads: Sequence[_Visible], rays: _Rays
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return the nearest surface of every ray (-1 for none) and its inverse depth, 1/m."""
    surface_idx = np.full(rays.shape, -1, np.int16)
    nearest = np.zeros(rays.shape, np.float32)
    for quad in quads:
        columns = np.flatnonzero((rays.x_high >= quad.low[0]) & (rays.x_low <= quad.high[0]))
        rows = np.flatnonzero((rays.y_high >= quad.low[1]) & (rays.y_low <= quad.high[1]))
        if not len(columns) or not len(rows):
            continue
        block = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        x, y = rays.block(*block)
        m = quad.ray_map
        inverse = (m[2, 0] * x + m[2, 2]) + m[2, 1] * y
        hit = inverse > nearest[block]
        a = (m[0, 0] * x + m[0, 2]) + m[0, 1] * y
        hit &= a >= 0
        hit &= a <= inverse
        b = (m[1, 0] * x + m[1, 2]) + m[1, 1] * y
        hit &= b >= 0
        hit &= b <= inverse
        np.copyto(nearest[block], inverse, where=hit)
        surface_idx[block][hit] = quad.index
    return surface_idx, nearest


def _radiance(
    surfaces: Sequence[Surface],
    light: Sequence[NDArray[np.float32]],
    glow: Sequence[float],
    camera: Camera,
    map_from_camera: RigidTransform,
) -> NDArray[np.float32]:
    """Return the radiance (H, W) that reaches each pixel: the mean of its samples."""
    rays = _rays(camera, _SAMPLES)
    quads = _project(surfaces, map_from_camera, rays)
    surface_idx, _ = _visibility(quads, rays)
    # Sort the samples by surface, so that each surface is shaded in one go.
    flat = surface_idx.ravel()
    order = np.argsort(flat, kind='stable')
    counts = np.bincount(flat[order].astype(np.int64) + 1, minlength=len(surfaces) + 1)
    ends = np.cumsum(counts)
    rows, columns = np.divmod(order, rays.shape[1])
    x = rays.x[0, columns] if rays.x.shape[0] == 1 else rays.x.ravel()[order]
    y = rays.y[rows, 0] if rays.y.shape[1] == 1 else rays.y.ravel()[order]
    spacing = rays.spacing.ravel()
    step = np.broadcast_to(spacing, x.shape) if spacing.size == 1 else spacing[order]
    sorted_radiance = np.zeros(len(order), np.float32)
    for quad in quads:
        if counts[quad.index + 1] == 0:
            continue
        part = slice(ends[quad.index], ends[quad.index + 1])
        sorted_radiance[part] = _shade(
            surfaces[quad.index],
            light[quad.index],
            glow[quad.index],
            quad.ray_map,
            x[part],
            y[part],
            step[part],
        )
    radiance = np.empty_like(sorted_radiance)
    radiance[order] = sorted_radiance
    size = (camera.width, camera.height)
    # With an integer factor, area interpolation is the mean of the samples.
    return np.asarray(
        cv2.resize(radiance.reshape(rays.shape), size, interpolation=cv2.INTER_AREA), np.float32
    )


def _shade(
    surface: Surface,
    light: NDArray[np.float32],
    glow: float,
    ray_map: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    step: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the radiance of one surface along rays."""
    m = ray_map
    depth = 1 / (m[2, 0] * x + m[2, 1] * y + m[2, 2])
    a = (m[0, 0] * x + m[0, 1] * y + m[0, 2]) * depth
    b = (m[1, 0] * x + m[1, 1] * y + m[1, 2]) * depth
    height, width = surface.texture.levels[0].shape
    # How far the texture moves from one ray to the next, in texels.
    scale = depth * step
    ax, ay = (m[0, 0] - a * m[2, 0]) * width, (m[0, 1] - a * m[2, 1]) * width
    bx, by = (m[1, 0] - b * m[2, 0]) * height, (m[1, 1] - b * m[2, 1]) * height
    mean_square = (ax * ax + ay * ay + bx * bx + by * by) / 2
    area = np.abs(ax * by - ay * bx)
    spread = np.sqrt(np.maximum(mean_square * mean_square - area * area, 0))
    # Singular values of the 2 x 2 Jacobian: the longest and shortest axis of the footprint.
    longest = np.sqrt(mean_square + spread) * scale
    shortest = area / np.sqrt(mean_square + spread) * scale
    # Seen at a slant the footprint is long: blurring by its length would lose everything, by its
    # width would alias, so allow half of the length; the 2 x 2 samples do the rest.
    footprint = np.maximum(np.sqrt(longest * shortest), longest / 2)
    level = np.log2(np.maximum(footprint, 1))
    reflectance = _sample_pyramid(surface.texture.levels, a, b, level)
    rows, columns = light.shape
    if light.max() - light.min() < 1e-6:
        shade: NDArray[np.float32] | np.float32 = light[0, 0]
    else:
        # The outer values of the grid are on the borders, unlike texels.
        shade = _remap(light, a * (columns - 1), b * (rows - 1))
    if surface.glow == 'window':
        shade = shade * _GLASS  # the picture is what is outside, not paint on the wall
    return np.asarray(reflectance * (shade + np.float32(glow)), dtype=np.float32)


def _sample_pyramid(
    levels: Sequence[NDArray[np.uint8]],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    level: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Interpolate linearly within and between mip levels; returns linear reflectance."""
    level = np.minimum(level, len(levels) - 1)
    first, last = int(np.floor(level.min())), int(np.ceil(level.max()))
    if first == last:
        texels = levels[first]
        return _remap_gamma(texels, a, b)
    result = np.zeros_like(a)
    for index in range(first, last + 1):
        weight = 1 - np.abs(level - index)
        chosen = np.flatnonzero(weight > 0)
        if len(chosen):
            values = _remap_gamma(levels[index], a[chosen], b[chosen])
            result[chosen] += weight[chosen] * values
    return result


def _remap_gamma(
    texels: NDArray[np.uint8], a: NDArray[np.float32], b: NDArray[np.float32]
) -> NDArray[np.float32]:
    height, width = texels.shape
    return np.asarray(_TO_LINEAR[_remap(texels, a * width - 0.5, b * height - 0.5)])


def _remap(image: NDArray, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray:
    """Look up a list of positions; cv2.remap wants two-dimensional, not too long, arrays."""
    count, row = len(x), 4096
    padded = -(-count // row) * row if count > row else count
    if padded != count:
        x, y = np.pad(x, (0, padded - count)), np.pad(y, (0, padded - count))
    shape = (-1, min(row, padded))
    values = cv2.remap(
        image,
        np.ascontiguousarray(x.reshape(shape), np.float32),
        np.ascontiguousarray(y.reshape(shape), np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(values).reshape(-1)[:count]


def _expose(
    radiance: NDArray[np.float32], lighting: Lighting, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], float]:
    """Turn radiance into a picture: vignetting, auto-exposure, noise, clipping, gamma."""
    height, width = radiance.shape
    if lighting.vignetting > 0:
        y, x = np.ogrid[:height, :width]
        squared = (x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2
        corner = ((width - 1) ** 2 + (height - 1) ** 2) / 4
        radiance = radiance * (1 - lighting.vignetting * (squared / corner)).astype(np.float32)
    exposure, gain = 1.0, 1.0
    if lighting.target > 0:
        # Meter like a camera: what is burnt out anyway does not count more than white.
        mean = float(radiance.mean()) + 1e-9
        for _ in range(3):
            wanted = lighting.target / mean
            mean = float(np.minimum(radiance, 1 / wanted).mean()) + 1e-9
        wanted = lighting.target / mean
        exposure = min(wanted, lighting.max_exposure)
        gain = min(max(wanted / exposure, 1.0), lighting.max_gain)
    electrons = radiance * np.float32(exposure * lighting.full_well)
    if lighting.noise:
        deviation = np.sqrt(electrons + lighting.read_noise**2)
        electrons = electrons + deviation * rng.standard_normal(radiance.shape, dtype=np.float32)
    level = np.clip(electrons * np.float32(gain / lighting.full_well), 0, 1)
    image = np.rint(255 * level ** np.float32(1 / _GAMMA)).astype(np.uint8)
    return image, exposure * gain
