"""A building of textured planar quads: rooms, furniture, posters, lamps and windows.

Frame `map`: metres, z up, the floor at z = 0, the footprint from (0, 0) to (length, width).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2s_ros.errors import InputError
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.photographs import load_photographs
from d2s_ros.simulation.textures import Texture, TextureFactory

Array = NDArray[np.float64]

#: Share of blue, green and red in the grey value: daylight, and the warm light of lamps.
_GREY_WEIGHTS = {
    'day': (0.114, 0.587, 0.299),
    'dusk': (0.07, 0.51, 0.42),
    'night': (0.05, 0.45, 0.50),
}
#: Pixels of a cell of a tag's texture.
_TAG_PX = 32
#: Distance that keeps free between the camera's path and any obstacle, metres.
CLEARANCE = 0.4


@dataclass(frozen=True, eq=False)
class Surface:
    """A textured parallelogram, visible from its front only.

    Attributes:
        origin: (3,) m in map, the top left corner as seen from the front.
        edge_u, edge_v: (3,) m in map, along the texture's columns and rows.
        texture: Covers the whole surface: its outer pixel borders are the edges.
        glow: What makes it shine by itself: '' (nothing), 'window', or 'lamp<index>'.
        object_idx: Index into `Scene.objects`; -1 for the static structure.
    """

    origin: Array
    edge_u: Array
    edge_v: Array
    texture: Texture
    glow: str = ''
    object_idx: int = -1

    def __post_init__(self) -> None:
        for name in ('origin', 'edge_u', 'edge_v'):
            vector = np.asarray(getattr(self, name), dtype=np.float64)
            if vector.shape != (3,) or not np.isfinite(vector).all():
                raise InputError(f'{name} of a surface must be 3 finite numbers')
            object.__setattr__(self, name, vector)
        if np.linalg.norm(np.cross(self.edge_u, self.edge_v)) < 1e-12:
            raise InputError('the edges of a surface are parallel')

    @property
    def normal(self) -> Array:
        """Unit normal (3,) towards the side from which the surface is seen."""
        normal = np.cross(self.edge_v, self.edge_u)
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def corners(self) -> Array:
        """The corners (4, 3) in map, around the surface."""
        o, u, v = self.origin, self.edge_u, self.edge_v
        return np.stack([o, o + u, o + u + v, o + v])

    def point(self, a: float, b: float) -> Array:
        """The point (3,) in map at texture fractions a (columns) and b (rows) in [0, 1]."""
        return np.asarray(self.origin + a * self.edge_u + b * self.edge_v)


@dataclass(frozen=True)
class Placement:
    """Where an object stands: its local origin in map and its turn about z (radians)."""

    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    def apply(self, surface: Surface, object_idx: int) -> Surface:
        """Return the local surface placed in map."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
        return replace(
            surface,
            origin=turn @ surface.origin + [self.x, self.y, self.z],
            edge_u=turn @ surface.edge_u,
            edge_v=turn @ surface.edge_v,
            object_idx=object_idx,
        )


@dataclass(frozen=True, eq=False)
class SceneObject:
    """Something that stands in a room or hangs on a wall.

    Attributes:
        name: Kind and number, unique within the scene.
        surfaces: In the object's own frame: x along its width, y out of its front, z up.
        size: (width, depth) of its footprint, m; zero depth for what hangs on a wall.
        placement: Where it is in the mapped state of the place.
        moved_to: Where it is once moved; None for what stays.
        removed: Whether the change 'removed' takes it away.
    """

    name: str
    surfaces: tuple[Surface, ...]
    size: tuple[float, float]
    placement: Placement
    moved_to: Placement | None = None
    removed: bool = False


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that can be seen, and where a camera may go.

    Attributes:
        surfaces: All quads, in map.
        objects: The movable things, also those that the change has taken away.
        lamps: (L, 3) m, centres of the ceiling lamps.
        windows: Window surfaces (they light the rooms by day).
        size: (length, width, height) m.
        free: (X, Y) bool grid of floor cells where the camera may be, whatever the change.
        cell: Size of a grid cell, m; cell (i, j) covers x from i*cell, y from j*cell.
    """

    surfaces: tuple[Surface, ...]
    objects: tuple[SceneObject, ...] = ()
    lamps: Array = field(default_factory=lambda: np.zeros((0, 3)))
    windows: tuple[Surface, ...] = ()
    size: tuple[float, float, float] = (0.0, 0.0, 0.0)
    free: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))
    cell: float = 0.1
    _light_cache: dict[object, object] = field(default_factory=dict, repr=False)

    def is_free(self, points_xy: ArrayLike) -> NDArray[np.bool_]:
        """Tell for points (N, 2) in map whether the camera may be there."""
        cells = np.floor(np.asarray(points_xy).reshape(-1, 2) / self.cell).astype(int)
        inside = ((cells >= 0) & (cells < self.free.shape)).all(axis=1)
        cells[~inside] = 0
        return np.asarray(inside & self.free[cells[:, 0], cells[:, 1]])


def box(
    center: ArrayLike, size: ArrayLike, textures: dict[str, Texture], bottom: bool = False
) -> list[Surface]:
    """Return the outer faces of an axis-aligned box.

    Args:
        center: (x, y) of its middle and z of its underside, m.
        size: Extent along x, y, z, m.
        textures: For 'front' (+y), 'back', 'left' (-x), 'right', 'top', 'bottom'.
        bottom: Whether the underside can be seen.
    """
    x, y, z = (float(value) for value in np.asarray(center))
    sx, sy, sz = (float(value) for value in np.asarray(size))
    x0, x1, y0, y1, z1 = x - sx / 2, x + sx / 2, y - sy / 2, y + sy / 2, z + sz
    faces = {
        'front': ([x1, y1, z1], [-sx, 0, 0], [0, 0, -sz]),
        'back': ([x0, y0, z1], [sx, 0, 0], [0, 0, -sz]),
        'right': ([x1, y0, z1], [0, sy, 0], [0, 0, -sz]),
        'left': ([x0, y1, z1], [0, -sy, 0], [0, 0, -sz]),
        'top': ([x0, y1, z1], [sx, 0, 0], [0, -sy, 0]),
        'bottom': ([x0, y0, z], [sx, 0, 0], [0, sy, 0]),
    }
    return [
        Surface(np.array(o), np.array(u), np.array(v), textures[name])
        for name, (o, u, v) in faces.items()
        if name != 'bottom' or bottom
    ]


def build_scene(config: SimulationConfig, factory: TextureFactory | None = None) -> Scene:
    """Build the place that a config describes; the same config gives the same scene.

    The layout depends on `seed` and `other_place`, the state of movable things on `change`, the
    spectrum of the reflectances on `lighting`; nothing depends on the trajectory.

    Args:
        config: Which place, in which state.
        factory: Makes the textures; by default from the photographs in installed packages.

    Raises:
        InputError: if the photographs for the textures are missing.
    """
    if factory is None:
        factory = TextureFactory(load_photographs(_GREY_WEIGHTS[config.lighting]))
    return _Builder(config, factory).build()


class _Builder:
    """Lays out one building; every part draws from a generator of its own."""

    def __init__(self, config: SimulationConfig, factory: TextureFactory) -> None:
        self._config = config
        self._factory = factory
        self._key = [config.seed, int(config.other_place)]
        self._count = 0
        rng = self._generator(0)
        self._length = float(rng.uniform(10.5, 13.0))
        self._width = float(rng.uniform(7.2, 8.8))
        self._height = float(rng.uniform(2.6, 3.1))
        self._structure: list[Surface] = []
        self._objects: list[SceneObject] = []
        self._windows: list[Surface] = []
        #: Oriented footprints (x, y, half width, half depth, yaw) that block the way.
        self._blocked: list[tuple[float, float, float, float, float]] = []
        #: Floor that doorways need: (x, y, half size x, half size y).
        self._doorways: list[tuple[float, float, float, float]] = []
        #: Stretches of wall: start (x, y), direction along the wall, length, inward normal yaw.
        self._wall_runs: list[tuple[Array, Array, float, float]] = []
        #: What hangs on each stretch already: (from, to) along it.
        self._taken: dict[int, list[tuple[float, float]]] = {}

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, *key])

    def _texture(self, material: str, width: float, height: float) -> Texture:
        """Make the next texture; each has its own generator, so layout never changes it."""
        self._count += 1
        return self._factory.make(material, width, height, self._generator(1, self._count))

    def build(self) -> Scene:
        """Build rooms first, then what stands in them, then the change."""
        rng = self._generator(2)
        rooms = self._build_rooms(rng)
        self._build_openings(rng)
        lamps = self._build_lamps(rooms)
        for index, room in enumerate(rooms):
            self._furnish(room, self._generator(3, index))
        self._hang_posters(self._generator(4))
        self._choose_changes(self._generator(5))
        if self._config.tag_size:
            self._hang_tags(self._generator(6), self._config.tag_size)
        free = self._free_space()
        surfaces = list(self._structure)
        change = self._config.change
        for index, item in enumerate(self._objects):
            if change == 'removed' and item.removed:
                continue
            placement = item.placement
            if change == 'moved' and item.moved_to is not None:
                placement = item.moved_to
            surfaces += [placement.apply(surface, index) for surface in item.surfaces]
        size = (self._length, self._width, self._height)
        return Scene(tuple(surfaces), tuple(self._objects), lamps, tuple(self._windows), size, free)

    # -- structure ---------------------------------------------------------------------------

    def _build_rooms(self, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
        """Floor, ceiling, outer and inner walls; returns rooms as (x0, y0, x1, y1)."""
        length, width, height = self._length, self._width, self._height
        over = 0.004  # surfaces overlap a little, so that no ray slips between two of them
        floor = str(rng.choice(['tiles', 'parquet', 'carpet']))
        self._structure += [
            Surface(
                np.array([-over, width + over, 0]),
                np.array([length + 2 * over, 0, 0]),
                np.array([0, -width - 2 * over, 0]),
                self._texture(floor, length, width),
            ),
            Surface(
                np.array([-over, -over, height]),
                np.array([length + 2 * over, 0, 0]),
                np.array([0, width + 2 * over, 0]),
                self._texture('ceiling', length, width),
            ),
        ]
        corners = np.array([[0, 0], [length, 0], [length, width], [0, width]], float)
        for index in range(4):
            # Seen from inside, walls run clockwise: from the left end to the right end.
            left, right = corners[(index + 1) % 4], corners[index]
            material = str(rng.choice(['plaster', 'wallpaper', 'brick', 'plaster']))
            self._wall(left, right, 0.0, height, material)
        rooms = [(0.0, 0.0, length, width)]
        for _ in range(int(rng.integers(0, 3))):
            rooms = self._split(rooms, rng)
        return rooms

    def _wall(self, left: Array, right: Array, bottom: float, top: float, material: str) -> None:
        """Add a vertical surface that runs from left to right as seen from its front."""
        run = float(np.linalg.norm(right - left))
        along = (right - left) / run
        over = 0.004
        self._structure.append(
            Surface(
                np.array([*(left - over * along), top + over]),
                np.array([*((run + 2 * over) * along), 0]),
                np.array([0, 0, bottom - top - 2 * over]),
                self._texture(material, run, top - bottom),
            )
        )
        if bottom == 0 and run > 0.6:
            # The viewer looks along -normal with `along` to the right.
            normal = np.array([-along[1], along[0]]) * -1
            self._wall_runs.append((left, along, run, float(np.arctan2(normal[1], normal[0]))))

    def _split(
        self, rooms: list[tuple[float, float, float, float]], rng: np.random.Generator
    ) -> list[tuple[float, float, float, float]]:
        """Divide the largest room by a wall with a doorway."""
        largest = max(range(len(rooms)), key=lambda i: _area(rooms[i]))
        x0, y0, x1, y1 = rooms[largest]
        thickness, height = 0.14, self._height
        across_x = (x1 - x0) >= (y1 - y0)
        start, end = (y0, y1) if across_x else (x0, x1)
        low, high = (x0, x1) if across_x else (y0, y1)
        at = float(low + (high - low) * rng.uniform(0.42, 0.58))
        opening = float(rng.uniform(1.5, 2.1))
        door_start = float(rng.uniform(start + 0.5, end - 0.5 - opening))
        lintel = 2.15
        material = str(rng.choice(['plaster', 'brick', 'wallpaper']))
        pieces = [
            (start, door_start, 0.0, height),
            (door_start + opening, end, 0.0, height),
            (door_start, door_start + opening, lintel, height),
        ]
        for first, last, bottom, top in pieces:
            middle, run = (first + last) / 2, last - first
            center = (at, middle, bottom) if across_x else (middle, at, bottom)
            size = (thickness, run, top - bottom) if across_x else (run, thickness, top - bottom)
            textures = {
                name: self._texture(material, extent, top - bottom)
                for name, extent in (
                    ('front', size[0]),
                    ('back', size[0]),
                    ('left', size[1]),
                    ('right', size[1]),
                )
            }
            textures['top'] = textures['front']
            if bottom > 0:
                textures['bottom'] = self._texture('plaster', size[0], size[1])
            faces = box(center, size, textures, bottom=bottom > 0)
            self._structure += [face for face in faces if face.normal[2] < 0.5]
            if bottom > 0:
                continue
            self._blocked.append((center[0], center[1], size[0] / 2, size[1] / 2, 0.0))
            for face in faces:
                if abs(face.normal[2]) < 0.5 and np.linalg.norm(face.edge_u) > 0.6:
                    normal = face.normal
                    run_length = float(np.linalg.norm(face.edge_u))
                    self._wall_runs.append(
                        (
                            face.origin[:2],
                            face.edge_u[:2] / run_length,
                            run_length,
                            float(np.arctan2(normal[1], normal[0])),
                        )
                    )
        if across_x:
            # Keep furniture out of the doorway.
            self._doorways.append((at, door_start + opening / 2, 0.9, opening / 2))
            halves = [(x0, y0, at - thickness / 2, y1), (at + thickness / 2, y0, x1, y1)]
        else:
            self._doorways.append((door_start + opening / 2, at, opening / 2, 0.9))
            halves = [(x0, y0, x1, at - thickness / 2), (x0, at + thickness / 2, x1, y1)]
        return rooms[:largest] + halves + rooms[largest + 1 :]

    def _build_openings(self, rng: np.random.Generator) -> None:
        """Windows and closed doors on the outer walls, a skirting board on every wall."""
        for index, (left, along, run, yaw) in enumerate(self._wall_runs):
            inward = np.array([np.cos(yaw), np.sin(yaw)])
            start = np.array([*(left + 0.012 * inward), 0.09])
            self._structure.append(
                Surface(
                    start,
                    np.array([*(run * along), 0]),
                    np.array([0, 0, -0.09]),
                    self._texture('wood', run, 0.09),
                )
            )
            taken = self._taken.setdefault(index, [])
            if index >= 4:
                continue
            count = 2 if index in (0, 2) else 1
            for number in range(count):
                width = float(rng.uniform(1.1, 1.7))
                middle = run * (number + 0.5) / count + float(rng.uniform(-0.1, 0.1)) * run
                if index in (0, 1) or (index == 2 and number == 0):
                    top, tall, material, glow = 2.2, 1.25, 'window', 'window'
                else:
                    top, tall, material, glow, width = 2.05, 2.05, 'door', '', 0.95
                first = middle - width / 2
                # 25 mm in front of the wall: the skirting board is behind it.
                origin = np.array([*(left + first * along + 0.025 * inward), top])
                surface = Surface(
                    origin,
                    np.array([*(width * along), 0]),
                    np.array([0, 0, -tall]),
                    self._texture(material, width, tall),
                    glow,
                )
                self._structure.append(surface)
                if glow:
                    self._windows.append(surface)
                taken.append((first - 0.1, first + width + 0.1))
                if not glow:
                    x, y = left + middle * along + 0.5 * inward
                    self._doorways.append((float(x), float(y), 0.6, 0.6))

    def _build_lamps(self, rooms: list[tuple[float, float, float, float]]) -> Array:
        lamps: list[list[float]] = []
        for x0, y0, x1, y1 in rooms:
            columns = max(1, round((x1 - x0) / 3.5))
            rows = max(1, round((y1 - y0) / 3.5))
            for column in range(columns):
                for row in range(rows):
                    x = x0 + (x1 - x0) * (column + 0.5) / columns
                    y = y0 + (y1 - y0) * (row + 0.5) / rows
                    z = self._height - 0.03
                    self._structure.append(
                        Surface(
                            np.array([x - 0.6, y - 0.15, z]),
                            np.array([1.2, 0, 0]),
                            np.array([0, 0.3, 0]),
                            self._texture('lamp', 1.2, 0.3),
                            f'lamp{len(lamps)}',
                        )
                    )
                    lamps.append([x, y, z - 0.02])
        return np.array(lamps, dtype=np.float64)

    # -- furniture ---------------------------------------------------------------------------

    def _furnish(self, room: tuple[float, float, float, float], rng: np.random.Generator) -> None:
        area = _area(room)
        wall_kinds = ['shelf', 'cabinet', 'sofa', 'shelf', 'locker', 'desk']
        for _ in range(round(area / 7.0) + 1):
            self._add(str(rng.choice(wall_kinds)), room, True, rng)
        for _ in range(round(area / 13.0)):
            self._add(str(rng.choice(['table', 'panel', 'crates', 'table'])), room, False, rng)
        for _ in range(round(area / 16.0) + 1):
            self._add(str(rng.choice(['chair', 'carton', 'column'])), room, False, rng)

    def _add(
        self,
        kind: str,
        room: tuple[float, float, float, float],
        at_wall: bool,
        rng: np.random.Generator,
    ) -> None:
        """Make a thing and find a place for it; gives up quietly when the room is full."""
        surfaces, size = self._make(kind, rng)
        placement = self._find_place(size, room, at_wall, rng)
        if placement is None:
            return
        name = f'{kind}{len(self._objects)}'
        moved_to = None
        if rng.random() < 0.5:
            # A candidate for moving; `_choose_changes` takes a third of all things.
            footprint = (*_middle(placement, size), size[0] / 2, size[1] / 2, placement.yaw)
            self._blocked.append(footprint)
            for _ in range(4):
                moved_to = self._find_place(size, room, at_wall, rng)
                if moved_to is not None and _distance(placement, moved_to) > 0.5:
                    break
                moved_to = None
            self._blocked.pop()
        self._objects.append(SceneObject(name, tuple(surfaces), size, placement, moved_to))
        for place in (placement, moved_to):
            if place is not None:
                x, y = _middle(place, size)
                self._blocked.append((x, y, size[0] / 2, size[1] / 2, place.yaw))

    def _find_place(
        self,
        size: tuple[float, float],
        room: tuple[float, float, float, float],
        at_wall: bool,
        rng: np.random.Generator,
    ) -> Placement | None:
        """Draw places until one is free and leaves every room reachable."""
        x0, y0, x1, y1 = room
        width, depth = size
        for _ in range(30):
            if at_wall:
                side = int(rng.integers(4))
                yaw = (np.pi / 2) * side  # the front (+y of the object) points into the room
                along_x = side % 2 == 0
                span = (x0, x1) if along_x else (y0, y1)
                if span[1] - span[0] < width + 0.1:
                    continue
                at = float(rng.uniform(span[0] + width / 2 + 0.03, span[1] - width / 2 - 0.03))
                x, y = {
                    0: (at, y0 + 0.03),
                    1: (x1 - 0.03, at),
                    2: (at, y1 - 0.03),
                    3: (x0 + 0.03, at),
                }[side]
            else:
                yaw = float(rng.choice([0, np.pi / 2]) + rng.normal(0, 0.12))
                x = float(rng.uniform(x0 + 1.2, max(x0 + 1.3, x1 - 1.2)))
                y = float(rng.uniform(y0 + 1.2, max(y0 + 1.3, y1 - 1.2)))
            placement = Placement(float(x), float(y), 0.0, float(yaw))
            center = _middle(placement, size)
            footprint = (*center, width / 2, depth / 2, float(yaw))
            gap = 0.0 if at_wall else 2 * CLEARANCE + 0.15
            if self._is_clear(footprint, gap) and self._stays_connected(footprint):
                return placement
        return None

    def _is_clear(self, footprint: tuple[float, float, float, float, float], gap: float) -> bool:
        for x, y, half_x, half_y in self._doorways:
            if _overlap(footprint, (x, y, half_x, half_y, 0.0), 0.05):
                return False
        return not any(_overlap(footprint, other, max(gap, 0.03)) for other in self._blocked)

    def _stays_connected(self, footprint: tuple[float, float, float, float, float]) -> bool:
        before = _largest_component(self._free_space())
        self._blocked.append(footprint)
        free = self._free_space()
        self._blocked.pop()
        lost = before & free & ~_largest_component(free)
        return int(lost.sum()) < 40

    def _free_space(self) -> NDArray[np.bool_]:
        """Grid cells with room for the camera; only those that can reach each other."""
        cell = 0.1
        shape = (int(np.ceil(self._length / cell)), int(np.ceil(self._width / cell)))
        x, y = np.meshgrid(
            (np.arange(shape[0]) + 0.5) * cell, (np.arange(shape[1]) + 0.5) * cell, indexing='ij'
        )
        free = (x > CLEARANCE) & (x < self._length - CLEARANCE)
        free &= (y > CLEARANCE) & (y < self._width - CLEARANCE)
        for ox, oy, half_x, half_y, yaw in self._blocked:
            c, s = np.cos(yaw), np.sin(yaw)
            u, v = c * (x - ox) + s * (y - oy), -s * (x - ox) + c * (y - oy)
            outside = np.hypot(np.maximum(np.abs(u) - half_x, 0), np.maximum(np.abs(v) - half_y, 0))
            free &= outside > CLEARANCE
        return _largest_component(free)

    def _make(
        self, kind: str, rng: np.random.Generator
    ) -> tuple[list[Surface], tuple[float, float]]:
        """Build a thing in its own frame: its back at y = 0, its middle at x = 0."""
        if kind in ('shelf', 'cabinet', 'locker'):
            width = float(rng.uniform(0.8, 1.5))
            depth, tall, front = {
                'shelf': (0.32, float(rng.uniform(1.5, 2.1)), 'books'),
                'cabinet': (0.45, float(rng.uniform(0.8, 1.15)), 'drawers'),
                'locker': (0.5, float(rng.uniform(1.7, 1.95)), 'drawers'),
            }[kind]
            surfaces = self._solid((0, depth / 2, 0), (width, depth, tall), 'wood', front)
            if kind == 'cabinet':
                item = (float(rng.uniform(-0.3, 0.3)) * width, depth / 2, tall)
                surfaces += self._solid(item, (0.35, 0.22, 0.28), 'carton', 'poster')
            return surfaces, (width, depth)
        if kind == 'sofa':
            width = float(rng.uniform(1.5, 2.0))
            surfaces = self._solid((0, 0.42, 0), (width, 0.84, 0.42), 'fabric', 'fabric')
            surfaces += self._solid((0, 0.11, 0.42), (width, 0.22, 0.42), 'fabric', 'fabric')
            for side in (-1, 1):
                arm = (side * (width / 2 - 0.09), 0.53, 0.42)
                surfaces += self._solid(arm, (0.18, 0.62, 0.2), 'fabric', 'fabric')
            return surfaces, (width, 0.84)
        if kind in ('desk', 'table'):
            width = float(rng.uniform(1.2, 1.7))
            depth = 0.75
            top = self._solid((0, depth / 2, 0.71), (width, depth, 0.035), 'wood', 'wood', True)
            surfaces = top
            for side in (-1, 1):
                leg = (side * (width / 2 - 0.03), depth / 2, 0)
                surfaces += self._solid(leg, (0.04, depth - 0.08, 0.71), 'wood', 'wood')
            if kind == 'desk':
                shift = float(rng.uniform(-0.2, 0.2))
                screen = (shift, 0.25, 0.80)
                surfaces += self._solid(screen, (0.56, 0.04, 0.34), 'carton', 'screen', True)
                foot = (shift, 0.25, 0.745)
                surfaces += self._solid(foot, (0.2, 0.15, 0.055), 'wood', 'wood')
            for _ in range(int(rng.integers(1, 4))):
                tall = float(rng.uniform(0.08, 0.3))
                spot = (
                    float(rng.uniform(-0.38, 0.38)) * width,
                    float(rng.uniform(0.45, 0.6)),
                    0.745,
                )
                surfaces += self._solid(
                    spot, (float(rng.uniform(0.12, 0.3)), 0.2, tall), 'carton', 'poster'
                )
            return surfaces, (width, depth)
        if kind == 'panel':
            width = float(rng.uniform(0.9, 1.4))
            surfaces = self._solid((0, 0.02, 0.12), (width, 0.04, 1.6), 'poster', 'poster', True)
            for side in (-1, 1):
                foot = (side * (width / 2 - 0.06), 0.02, 0)
                surfaces += self._solid(foot, (0.05, 0.04, 0.12), 'wood', 'wood')
            return surfaces, (width, 0.04)
        if kind == 'chair':
            surfaces = self._solid((0, 0.23, 0.40), (0.44, 0.44, 0.07), 'fabric', 'fabric', True)
            surfaces += self._solid((0, 0.03, 0.47), (0.44, 0.04, 0.45), 'fabric', 'fabric', True)
            for x in (-0.19, 0.19):
                for y in (0.05, 0.41):
                    surfaces += self._solid((x, y, 0), (0.035, 0.035, 0.40), 'wood', 'wood')
            return surfaces, (0.46, 0.46)
        if kind == 'column':
            return self._solid((0, 0.15, 0), (0.3, 0.3, 1.1), 'poster', 'poster'), (0.3, 0.3)
        width = float(rng.uniform(0.45, 0.8))
        depth = float(rng.uniform(0.4, 0.6))
        surfaces = self._solid((0, depth / 2, 0), (width, depth, 0.5), 'carton', 'carton')
        if kind == 'crates':
            surfaces += self._solid(
                (0.06, depth / 2, 0.5), (width * 0.7, depth * 0.75, 0.4), 'carton', 'carton'
            )
        return surfaces, (width, depth)

    def _solid(
        self,
        center: Iterable[float],
        size: tuple[float, float, float],
        material: str,
        front: str,
        bottom: bool = False,
    ) -> list[Surface]:
        sx, sy, sz = size
        extents = {'left': (sy, sz), 'right': (sy, sz), 'back': (sx, sz), 'top': (sx, sy)}
        if bottom:
            extents['bottom'] = (sx, sy)
        textures = {name: self._texture(material, *extent) for name, extent in extents.items()}
        textures['front'] = self._texture(front, sx, sz)
        return box(list(center), size, textures, bottom)

    def _hang_posters(self, rng: np.random.Generator) -> None:
        """Pictures on the free stretches of all walls."""
        for index, (_, _, run, _) in enumerate(self._wall_runs):
            for _ in range(round(run / 1.6)):
                width = float(rng.uniform(0.35, 1.1))
                height = width * float(rng.uniform(0.7, 1.4))
                placement = self._find_wall(index, width, height, rng)
                if placement is None:
                    continue
                surface = Surface(
                    np.array([width / 2, 0, 0.0]),
                    np.array([-width, 0, 0]),
                    np.array([0, 0, -height]),
                    self._texture('poster', width, height),
                )
                moved_to = None
                if rng.random() < 0.6:
                    other = int(rng.integers(len(self._wall_runs)))
                    moved_to = self._find_wall(other, width, height, rng)
                name = f'poster{len(self._objects)}'
                self._objects.append(
                    SceneObject(name, (surface,), (width, 0.0), placement, moved_to)
                )

    def _hang_tags(self, rng: np.random.Generator, size: float) -> None:
        """One AprilTag on each wall that has room, numbered from 0."""
        tags = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
        number = 0
        for index in range(len(self._wall_runs)):
            # Eight cells with the black border, and a white one around.
            width = size * 10 / 8
            placement = self._find_wall(index, width, width, rng)
            if placement is None:
                continue
            picture = np.full((_TAG_PX * 10, _TAG_PX * 10), 230, np.uint8)
            inner = cv2.aruco.generateImageMarker(tags, number, _TAG_PX * 8)
            picture[_TAG_PX:-_TAG_PX, _TAG_PX:-_TAG_PX] = np.where(inner > 127, 230, 25)
            surface = Surface(
                np.array([width / 2, 0, 0.0]),
                np.array([-width, 0, 0]),
                np.array([0, 0, -width]),
                Texture.from_image(picture),
            )
            self._objects.append(SceneObject(f'tag{number}', (surface,), (width, 0.0), placement))
            number += 1

    def _find_wall(
        self, index: int, width: float, height: float, rng: np.random.Generator
    ) -> Placement | None:
        left, along, run, yaw = self._wall_runs[index]
        taken = self._taken.setdefault(index, [])
        for _ in range(12):
            if run < width + 0.2:
                return None
            first = float(rng.uniform(0.05, run - width - 0.05))
            top = float(np.clip(rng.uniform(1.5, 2.3), height + 0.3, self._height - 0.1))
            if any(first < last and first + width > begin for begin, last in taken):
                continue
            taken.append((first - 0.06, first + width + 0.06))
            inward = np.array([np.cos(yaw), np.sin(yaw)])
            x, y = left + (first + width / 2) * along + 0.015 * inward
            return Placement(float(x), float(y), top, yaw - np.pi / 2)
        return None

    def _choose_changes(self, rng: np.random.Generator) -> None:
        """Choose the third that moves and the third that is removed."""
        count = len(self._objects)
        share = max(1, round(count / 3)) if count else 0
        movable = [i for i, item in enumerate(self._objects) if item.moved_to is not None]
        moved = {movable[i] for i in rng.permutation(len(movable))[:share]}
        removed = {int(i) for i in rng.permutation(count)[:share]}
        self._objects = [
            replace(
                item,
                moved_to=item.moved_to if index in moved else None,
                removed=index in removed,
            )
            for index, item in enumerate(self._objects)
        ]


def _area(room: tuple[float, float, float, float]) -> float:
    return (room[2] - room[0]) * (room[3] - room[1])


def _middle(placement: Placement, size: tuple[float, float]) -> tuple[float, float]:
    """The middle of the footprint in map: the origin is in the middle of the back edge."""
    half = size[1] / 2
    return (
        float(placement.x - np.sin(placement.yaw) * half),
        float(placement.y + np.cos(placement.yaw) * half),
    )


def _distance(a: Placement, b: Placement) -> float:
    return float(np.hypot(a.x - b.x, a.y - b.y))


def _overlap(
    a: tuple[float, float, float, float, float],
    b: tuple[float, float, float, float, float],
    gap: float,
) -> bool:
    """Whether two turned rectangles come closer than about `gap` (separating axes)."""
    reach = float(np.hypot(*a[2:4]) + np.hypot(*b[2:4])) + gap
    if (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 > reach**2:
        return False
    corners = []
    axes = []
    for x, y, half_x, half_y, yaw in (a, b):
        u, v = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        corners.append(
            np.array(
                [[x, y] + su * half_x * u + sv * half_y * v for su in (-1, 1) for sv in (-1, 1)]
            )
        )
        axes += [u, v]
    for axis in axes:
        first, second = corners[0] @ axis, corners[1] @ axis
        if first.max() + gap <= second.min() or second.max() + gap <= first.min():
            return False
    return True


def _largest_component(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        free.astype(np.uint8), connectivity=4
    )
    if count < 2:
        return np.zeros_like(free)
    best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == best)
