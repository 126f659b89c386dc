"""Camera paths through the free space of a scene, and people who walk there."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.photographs import load_photographs
from d2s_ros.simulation.scene import Scene, Surface, box
from d2s_ros.simulation.textures import Texture, TextureFactory

Array = NDArray[np.float64]

#: Headings that a camera may choose from.
_HEADINGS = 72
#: A view is good when the nearest obstacle ahead is at least this far, m.
_GOOD_VIEW = 4.0
#: Optical frame (x right, y down, z forward) in a body frame (x forward, y left, z up).
BODY_FROM_CAMERA = RigidTransform(np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]), np.zeros(3))


def sample_trajectory(scene: Scene, config: SimulationConfig) -> list[RigidTransform]:
    """Return `config.frames` poses map_from_camera of the optical frame.

    The path keeps clear of everything, also of where movable things go, so the same seeds give the
    same path whatever `config.change` is.

    Raises:
        InputError: if the scene has no free space.
    """
    if not scene.free.any():
        raise InputError('the scene has no free space for a camera path')
    kind = ('loop', 'lawnmower', 'random').index(config.trajectory)
    rng = np.random.default_rng(
        [config.seed, int(config.other_place), 11, config.trajectory_seed, kind]
    )
    planner = _Planner(scene)
    if config.trajectory == 'loop':
        route, closed = planner.loop(rng), True
    elif config.trajectory == 'lawnmower':
        route, closed = planner.lawnmower(rng), False
    else:
        route, closed = planner.random(rng), False
    count = config.frames
    positions = _resample(route, count, closed)
    headings = _headings(scene, positions, config.trajectory, closed, rng)
    phase = np.linspace(0, 1, count, endpoint=False)
    if config.trajectory == 'random':
        height = 1.0 + 0.42 * _smooth_noise(phase, 5, rng)
        pitch, roll = 7.0 * _smooth_noise(phase, 12, rng), 4.0 * _smooth_noise(phase, 12, rng)
    else:
        height = rng.uniform(0.8, 1.35) + 0.05 * _smooth_noise(phase, 9, rng)
        pitch, roll = 3.0 * _smooth_noise(phase, 12, rng), 2.0 * _smooth_noise(phase, 12, rng)
    height = np.clip(height, 0.5, 1.5)
    poses = []
    for index in range(count):
        rotation = _rotation(headings[index], np.radians(pitch[index]), np.radians(roll[index]))
        translation = np.array([*positions[index], height[index]])
        poses.append(RigidTransform(rotation, translation))
    return poses


class _Planner:
    """Shortest ways on the grid of free cells that prefer the middle of the free space."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._free = scene.free
        distance = cv2.distanceTransform(scene.free.astype(np.uint8), cv2.DIST_L2, 3)
        # Near the border of the free space a step costs up to three times as much.
        self._cost = 1 + 2 * np.exp(-np.asarray(distance) / 4)

    def loop(self, rng: np.random.Generator) -> Array:
        """A closed way around the building: through eight directions from its middle."""
        cells = np.argwhere(self._free)
        points = (cells + 0.5) * self._scene.cell
        middle = points.mean(axis=0) + rng.uniform(-0.3, 0.3, 2)
        offset = points - middle
        angle = np.arctan2(offset[:, 1], offset[:, 0])
        # Distance as if the building were square, so that the long sides count as well.
        extent = np.abs(offset / np.array(self._scene.size[:2])).max(axis=1)
        corners: list[tuple[int, ...]] = []
        start, turn = rng.uniform(0, 2 * np.pi), int(rng.choice([-1, 1]))
        for index in range(8):
            wanted = start + turn * 2 * np.pi * index / 8
            near = np.abs(np.angle(np.exp(1j * (angle - wanted)))) < np.pi / 8
            if not near.any():
                continue
            goal = rng.uniform(0.24, 0.34)
            candidates = np.flatnonzero(near)
            best = candidates[int(np.argmin(np.abs(extent[candidates] - goal)))]
            corners.append(tuple(int(value) for value in cells[best]))
        return self._route(self._without_spurs(corners), closed=True)

    def lawnmower(self, rng: np.random.Generator) -> Array:
        """Back and forth along the building."""
        across = round(rng.uniform(1.1, 1.4) / self._scene.cell)
        corners: list[tuple[int, int]] = []
        forward = bool(rng.integers(2))
        for column in range(int(rng.integers(2, across)), self._free.shape[1], across):
            cells = np.flatnonzero(self._free[:, column])
            if len(cells) < 8:
                continue
            stops = [int(cells[0]), *(int(c) for c in cells[10:-10:12]), int(cells[-1])]
            corners += [(cell, column) for cell in (stops if forward else stops[::-1])]
            forward = not forward
        return self._route(corners, closed=False)

    def random(self, rng: np.random.Generator) -> Array:
        """From one random place to the next."""
        cells = np.argwhere(self._free)
        corners: list[tuple[int, ...]] = []
        for _ in range(10):
            draws = cells[rng.integers(len(cells), size=12)]
            if corners:
                # Of some draws take the farthest, else the path stays in one corner.
                gaps = np.linalg.norm(draws - np.array(corners[-1]), axis=1)
                draws = draws[np.argsort(-gaps)]
            corners.append(tuple(int(value) for value in draws[int(rng.integers(0, 4))]))
        return self._route(corners, closed=False)

    def _without_spurs(self, corners: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Leave out corners of a ring that cost a long way there and back; close the ring."""
        index = 0
        while index < len(corners) and len(corners) > 3:
            before, here = corners[index - 1], corners[index]
            after = corners[(index + 1) % len(corners)]
            direct = self._length(before, after)
            by_here = self._length(before, here) + self._length(here, after)
            # A long detour is a visit to another room, a short one only a kink.
            if 0.35 * direct + 3 < by_here - direct < 20:
                corners = corners[:index] + corners[index + 1 :]
            else:
                index += 1
        return [*corners, corners[0]]

    def _length(self, start: tuple[int, ...], end: tuple[int, ...]) -> int:
        return len(self._shortest((start[0], start[1]), (end[0], end[1])))

    def _route(self, corners: Sequence[tuple[int, ...]], closed: bool) -> Array:
        cells: list[tuple[int, int]] = []
        for start, end in itertools.pairwise(corners):
            leg = self._shortest((start[0], start[1]), (end[0], end[1]))
            cells += leg if not cells else leg[1:]
        if not cells:
            cells = [(corners[0][0], corners[0][1])]
        points = (np.array(cells, float) + 0.5) * self._scene.cell
        return self._smooth(points, closed)

    def _shortest(self, start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
        """A* with eight neighbours."""
        best = {start: 0.0}
        previous: dict[tuple[int, int], tuple[int, int]] = {}
        queue = [(0.0, 0.0, start)]
        while queue:
            _, cost, cell = heapq.heappop(queue)
            if cell == end:
                break
            if cost > best[cell]:
                continue
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    following = (cell[0] + di, cell[1] + dj)
                    if (
                        following == cell
                        or not 0 <= following[0] < self._free.shape[0]
                        or not 0 <= following[1] < self._free.shape[1]
                        or not self._free[following]
                    ):
                        continue
                    total = cost + math.hypot(di, dj) * float(self._cost[following])
                    if total < best.get(following, np.inf):
                        best[following] = total
                        previous[following] = cell
                        # A step costs at least its length, so the beeline never overrates.
                        beeline = math.hypot(end[0] - following[0], end[1] - following[1])
                        heapq.heappush(queue, (total + beeline, total, following))
        way = [end]
        while way[-1] != start:
            way.append(previous[way[-1]])
        return way[::-1]

    def _smooth(self, points: Array, closed: bool) -> Array:
        """Round the corners as much as the free space allows."""
        for width in (12, 8, 5, 3, 2, 1):
            kernel = np.hanning(2 * width + 3)[1:-1]
            kernel /= kernel.sum()
            pad = len(kernel) // 2
            if closed:
                ring = points[:-1] if len(points) > 1 else points
                padded = np.concatenate(
                    [np.take(ring, range(-pad, len(ring) + pad), 0, mode='wrap')]
                )
            else:
                padded = np.pad(points, ((pad, pad), (0, 0)), mode='edge')
            smooth = np.stack(
                [np.convolve(padded[:, axis], kernel, mode='valid') for axis in (0, 1)], axis=1
            )
            if self._scene.is_free(_resample(smooth, 4 * len(smooth), closed)).all():
                return smooth
        return points


def _resample(points: Array, count: int, closed: bool) -> Array:
    """Return `count` positions (count, 2) at equal distances along a polyline."""
    if closed:
        points = np.concatenate([points, points[:1]])
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], count, endpoint=not closed)
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


def _headings(
    scene: Scene, positions: Array, kind: str, closed: bool, rng: np.random.Generator
) -> Array:
    """Choose headings (N,) rad: smooth, near what the motion suggests, not into a near wall."""
    count = len(positions)
    options = np.arange(_HEADINGS) * 2 * np.pi / _HEADINGS
    view = _view_distance(scene, positions, options)
    # What matters is the view over the image's width, about +-30 degrees.
    view = np.mean([np.roll(view, shift, axis=1) for shift in range(-6, 7, 2)], axis=0)
    ahead = np.roll(positions, -1, axis=0) - np.roll(positions, 1, axis=0)
    if not closed and count > 1:
        ahead[0], ahead[-1] = positions[1] - positions[0], positions[-1] - positions[-2]
    along = np.arctan2(ahead[:, 1], ahead[:, 0])
    phase = np.linspace(0, 1, count, endpoint=False)
    if kind == 'random':
        wanted = along + np.radians(110) * _smooth_noise(phase, 8, rng)
    else:
        inward = np.array(scene.size[:2]) / 2 - positions
        side = np.sign(ahead[:, 0] * inward[:, 1] - ahead[:, 1] * inward[:, 0])
        lean = 30.0 if kind == 'loop' else 0.0
        wanted = along + np.radians(lean) * side + np.radians(35) * _smooth_noise(phase, 6, rng)
    turn = np.angle(np.exp(1j * (options[None] - wanted[:, None])))
    cost = 1.5 * (turn / np.radians(60)) ** 2 + 8 * np.maximum(0, 1 - view / _GOOD_VIEW)
    # The cheapest sequence of headings that does not turn more than the limit per frame.
    limit = 2 if kind != 'random' else 3
    steps = list(range(-limit, limit + 1))
    total = cost[0].copy()
    choices = np.zeros((count, _HEADINGS), int)
    for index in range(1, count):
        candidates = np.stack([np.roll(total, step) + 0.05 * step**2 for step in steps])
        choices[index] = np.argmin(candidates, axis=0)
        total = candidates.min(axis=0) + cost[index]
    chosen = [int(np.argmin(total))]
    for index in range(count - 1, 0, -1):
        chosen.append((chosen[-1] - steps[choices[index, chosen[-1]]]) % _HEADINGS)
    heading = np.unwrap(options[np.array(chosen[::-1])])
    if count > 4:
        kernel = np.array([0.25, 0.5, 0.25])
        heading = np.convolve(np.pad(heading, 1, mode='edge'), kernel, mode='valid')
    return np.asarray(heading + np.radians(1.5) * rng.standard_normal(count))


def _view_distance(scene: Scene, positions: Array, headings: Array) -> Array:
    """Distance (N, K) from positions to where the free space ends, at most `_GOOD_VIEW`."""
    direction = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    distance = np.full((len(positions), len(headings)), _GOOD_VIEW)
    open_way = np.ones(distance.shape, bool)
    for step in np.arange(0.2, _GOOD_VIEW, 0.2):
        points = positions[:, None] + step * direction[None]
        free = scene.is_free(points.reshape(-1, 2)).reshape(open_way.shape)
        distance[open_way & ~free] = step
        open_way &= free
    return distance


def _smooth_noise(phase: Array, waves: int, rng: np.random.Generator) -> Array:
    """Noise in [-1, 1] along a log that is periodic over it, with up to `waves` waves."""
    result = np.zeros_like(phase)
    for wave in range(1, waves + 1):
        result += rng.normal() / np.sqrt(wave) * np.sin(2 * np.pi * (wave * phase + rng.random()))
    return np.asarray(result / max(1e-9, np.abs(result).max()))


def _rotation(heading: float, pitch: float, roll: float) -> Array:
    """map_from_camera rotation of a body that looks to `heading`, nose up by `pitch`."""
    ch, sh, cp, sp = np.cos(heading), np.sin(heading), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    yaw_part = np.array([[ch, -sh, 0], [sh, ch, 0], [0, 0, 1]])
    pitch_part = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
    roll_part = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return np.asarray(yaw_part @ pitch_part @ roll_part @ BODY_FROM_CAMERA.rotation)


class People:
    """People made of boxes who walk along the camera's path, ahead of it or towards it."""

    def __init__(self, config: SimulationConfig, poses: Sequence[RigidTransform]) -> None:
        self._path = np.array([pose.translation[:2] for pose in poses])
        self._bodies: list[list[Surface]] = []
        self._sways: list[Array] = []
        if config.people == 0:
            return
        rng = np.random.default_rng([config.seed, 12, config.trajectory_seed])
        factory = TextureFactory(load_photographs((0.114, 0.587, 0.299)))
        phase = np.linspace(0, 1, len(poses), endpoint=False)
        for _ in range(config.people):
            self._bodies.append(_person(factory, rng))
            self._sways.append(0.35 * _smooth_noise(phase, 6, rng))
        self._starts = rng.random(config.people)

    def surfaces(self, frame: int) -> list[Surface]:
        """The surfaces of all people at a frame, in map."""
        found: list[Surface] = []
        count = len(self._path)
        if count < 2:
            return found
        camera = self._path[frame]
        for index, body in enumerate(self._bodies):
            if index % 2 == 0:
                position, direction = self._ahead(frame, 1.8 + 0.6 * (index // 2))
            else:
                # Against the stream, so that the camera meets them.
                at = (self._starts[index] - frame / count) % 1 * (count - 1)
                position = self._at(at)
                direction = self._at(at - 0.5) - self._at(at + 0.5)
            length = float(np.linalg.norm(direction))
            forward = direction / length if length > 1e-6 else np.array([1.0, 0.0])
            side = np.array([-forward[1], forward[0]])
            position = position + self._sways[index][frame] * side
            if np.linalg.norm(position - camera) < 0.8:
                continue  # nobody walks through the camera
            turn = np.array([[forward[0], -forward[1], 0], [forward[1], forward[0], 0], [0, 0, 1]])
            for surface in body:
                found.append(
                    Surface(
                        turn @ surface.origin + [*position, 0],
                        turn @ surface.edge_u,
                        turn @ surface.edge_v,
                        surface.texture,
                    )
                )
        return found

    def _at(self, index: float) -> Array:
        grid = np.arange(len(self._path))
        return np.array([np.interp(index, grid, self._path[:, axis]) for axis in (0, 1)])

    def _ahead(self, frame: int, distance: float) -> tuple[Array, Array]:
        """The place `distance` metres further along the path, and the direction there."""
        walked = 0.0
        here = self._path[frame]
        for index in range(frame + 1, frame + len(self._path)):
            following = self._path[index % len(self._path)]
            walked += float(np.linalg.norm(following - here))
            if walked >= distance:
                return following, following - here
            here = following
        return here, np.array([1.0, 0.0])


def _person(factory: TextureFactory, rng: np.random.Generator) -> list[Surface]:
    """Legs, trunk and head, looking along +x, standing at the origin."""
    scale = float(rng.uniform(0.92, 1.06))
    parts = [
        ((0, -0.1, 0), (0.16, 0.16, 0.85), 'fabric'),
        ((0, 0.1, 0), (0.16, 0.16, 0.85), 'fabric'),
        ((0, 0, 0.85), (0.24, 0.46, 0.6), 'fabric'),
        ((0, 0, 1.47), (0.2, 0.17, 0.25), 'skin'),
    ]
    surfaces: list[Surface] = []
    for center, size, material in parts:
        extents = {
            'front': (size[0], size[2]),
            'back': (size[0], size[2]),
            'left': (size[1], size[2]),
            'right': (size[1], size[2]),
            'top': (size[0], size[1]),
        }
        textures: dict[str, Texture] = {
            name: factory.make(material, *extent, rng) for name, extent in extents.items()
        }
        surfaces += box(scale * np.array(center), scale * np.array(size), textures)
    return surfaces
