"""Light of a time of day: irradiance on every surface, and how the camera exposes.

Radiance is in units where a white surface under full daylight indoors is about 1. Irradiance is
the sum of an ambient part and of the light of windows and lamps with cosines, distance falloff
and cast shadows; it is computed on a coarse grid over each surface and interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.errors import ConfigError
from d2s_ros.simulation.scene import Scene, Surface

Grid = NDArray[np.float32]

#: Pitch of the irradiance grid, m.
_PITCH = 0.2
#: A shadow begins this far behind what casts it, as a fraction of the distance to the light.
_SHADOW_MARGIN = 1e-3


@dataclass(frozen=True)
class Lighting:
    """Light sources and camera exposure; `make_lighting` gives the named times of day.

    Irradiance of a point source of strength s at distance d is s * cosines / (d^2 + 0.1).
    """

    ambient: float = option(1.0, 'Irradiance that comes from everywhere.', minimum=0.0)
    ambient_above: float = option(
        0.15, 'Share of the ambient light that only faces turned up get.', minimum=0.0, maximum=0.5
    )
    window: float = option(0.0, 'Strength of one square metre of window.', minimum=0.0)
    window_glow: float = option(0.0, 'Radiance of a white texel of a window.', minimum=0.0)
    lamp: float = option(0.0, 'Strength of one lamp that is on.', minimum=0.0)
    lamp_glow: float = option(0.0, 'Radiance of a lamp that is on.', minimum=0.0)
    lamp_share: float = option(0.0, 'Share of the lamps that are on.', minimum=0.0, maximum=1.0)
    target: float = option(0.2, 'Mean level that auto-exposure aims at.', minimum=0.0, maximum=1.0)
    max_exposure: float = option(1.0, 'Longest exposure, relative to daylight.', minimum=1e-6)
    max_gain: float = option(1.0, 'Largest sensor gain after exposure.', minimum=1.0)
    exposure_s: float = option(0.004, 'Time of an exposure of 1.', unit='s', minimum=0.0)
    full_well: float = option(8000.0, 'Electrons of a white pixel at gain 1.', minimum=1.0)
    read_noise: float = option(6.0, 'Electrons of noise at readout.', minimum=0.0)
    noise: bool = option(True, 'Whether the sensor has noise at all.')
    vignetting: float = option(0.2, 'Light lost in the corners.', minimum=0.0, maximum=1.0)

    def __post_init__(self) -> None:
        validate(self)


def make_lighting(name: str) -> Lighting:
    """Return the light and exposure of 'day', 'dusk' or 'night'.

    Raises:
        ConfigError: on another name.
    """
    if name == 'day':
        return Lighting(
            ambient=0.24, window=1.3, window_glow=1.5, max_exposure=4.0, max_gain=4.0, target=0.2
        )
    if name == 'dusk':
        return Lighting(
            ambient=0.014,
            window=0.04,
            window_glow=0.09,
            lamp=0.10,
            lamp_glow=2.0,
            lamp_share=0.5,
            target=0.13,
            max_exposure=5.0,
            max_gain=6.0,
        )
    if name == 'night':
        return Lighting(
            ambient=0.0025,
            window=0.0,
            window_glow=0.001,
            lamp=0.04,
            lamp_glow=1.5,
            lamp_share=0.3,
            target=0.07,
            max_exposure=6.0,
            max_gain=12.0,
            read_noise=7.0,
            vignetting=0.3,
        )
    raise ConfigError(f'lighting is {name!r}, it must be one of day, dusk, night')


def flat_lighting(level: float = 1.0) -> Lighting:
    """Return even light, fixed exposure and an ideal sensor, so that pixels equal texels."""
    return Lighting(ambient=level, ambient_above=0.0, target=0.0, noise=False, vignetting=0.0)


def lamp_is_on(index: int, count: int, lighting: Lighting) -> bool:
    """Tell whether a lamp is on; which ones depends on their number only."""
    lit = int(np.ceil(lighting.lamp_share * count))
    # A stride that is coprime with most counts spreads the lit lamps over the rooms.
    order = np.argsort([(i * 7 + 3) % 11 + i / 1000 for i in range(count)])
    return index in order[:lit]


def emission(surface: Surface, scene: Scene, lighting: Lighting) -> float:
    """Radiance of a white texel that a surface sends out by itself."""
    if surface.glow == 'window':
        return lighting.window_glow
    if surface.glow.startswith('lamp'):
        index = int(surface.glow[4:])
        return lighting.lamp_glow if lamp_is_on(index, len(scene.lamps), lighting) else 0.0
    return 0.0


def irradiance(scene: Scene, lighting: Lighting) -> list[Grid]:
    """Return the irradiance grid of every surface of a scene; kept for the next frame."""
    cached = scene._light_cache.get(lighting)
    if cached is None:
        cached = surface_irradiance(scene.surfaces, scene, lighting, shadows=True)
        scene._light_cache[lighting] = cached
    return cached  # type: ignore[return-value]


def surface_irradiance(
    surfaces: tuple[Surface, ...], scene: Scene, lighting: Lighting, shadows: bool
) -> list[Grid]:
    """Compute the irradiance of surfaces in a scene.

    Args:
        surfaces: Of the scene, or something that moves through it.
        shadows: Whether the surfaces of the scene cast shadows on them.

    Returns:
        One (rows, columns) float32 grid per surface; its outer values are at the borders.
    """
    if not surfaces:
        return []
    points, normals, shapes = [], [], []
    for surface in surfaces:
        columns = max(2, round(float(np.linalg.norm(surface.edge_u)) / _PITCH) + 1)
        rows = max(2, round(float(np.linalg.norm(surface.edge_v)) / _PITCH) + 1)
        # Half a centimetre inside, because edges lie on the neighbouring surfaces.
        a, b = np.meshgrid(np.linspace(0.02, 0.98, columns), np.linspace(0.02, 0.98, rows))
        grid = (
            surface.origin + a.reshape(-1, 1) * surface.edge_u + b.reshape(-1, 1) * surface.edge_v
        )
        points.append(grid + 0.003 * surface.normal)
        normals.append(np.broadcast_to(surface.normal, grid.shape))
        shapes.append((rows, columns))
    point, normal = np.concatenate(points), np.concatenate(normals)
    # More of what is around is bright above than below.
    above = lighting.ambient_above
    total = lighting.ambient * (1 - above + above * normal[:, 2])
    for position, direction, strength in _sources(scene, lighting):
        towards = position - point
        square = np.einsum('ij,ij->i', towards, towards)
        distance = np.sqrt(square) + 1e-9
        cosine = np.einsum('ij,ij->i', towards, normal) / distance
        cosine_out = -(towards @ direction) / distance
        part = strength * np.maximum(cosine, 0) * np.maximum(cosine_out, 0) / (square + 0.1)
        if shadows:
            lit = np.flatnonzero(part > 0.002 * total)
            part[lit] *= 1.0 - _in_shadow(scene.surfaces, position, point[lit])
        total = total + part
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return [
        np.asarray(values.reshape(shape), dtype=np.float32)
        for values, shape in zip(np.split(total, ends[:-1]), shapes, strict=True)
    ]


def _sources(
    scene: Scene, lighting: Lighting
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """Point sources as (position, direction they shine to, strength)."""
    sources = []
    if lighting.window > 0:
        for surface in scene.windows:
            area = float(np.linalg.norm(surface.edge_u) * np.linalg.norm(surface.edge_v))
            for a in (0.25, 0.75):
                position = surface.point(a, 0.5) + 0.05 * surface.normal
                sources.append((position, surface.normal, lighting.window * area / 2))
    if lighting.lamp > 0:
        for index, position in enumerate(scene.lamps):
            if lamp_is_on(index, len(scene.lamps), lighting):
                for shift in (-0.4, 0.4):
                    where = position + np.array([shift, 0, -0.03])
                    sources.append((where, np.array([0, 0, -1.0]), lighting.lamp / 2 * 4))
    return sources


def _in_shadow(
    surfaces: tuple[Surface, ...], light: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return 1.0 for points (N, 3) that a surface hides from a light, else 0.0."""
    rays = (points - light).astype(np.float32)
    hidden = np.zeros(len(points), bool)
    for surface in surfaces:
        if surface.glow:
            continue
        matrix = np.stack([surface.edge_u, surface.edge_v, surface.origin - light], axis=1)
        if np.linalg.det(matrix) < 1e-9:
            continue  # the light is behind it: another face of the same thing does the hiding
        a, b, w = (rays @ np.linalg.inv(matrix).T.astype(np.float32)).T
        hidden |= (w > 1 + _SHADOW_MARGIN) & (a > 0) & (a < w) & (b > 0) & (b < w)
    return hidden.astype(np.float64)
