"""Surface textures cut from photographs that ship inside installed packages.

A texture is an (H, W) uint8 image of reflectance, gamma encoded like a photograph, with the mip
pyramid that the renderer samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2s_ros.errors import InputError
from d2s_ros.simulation.photographs import Grey

#: Photographs that look like pictures on a wall, and views out of a window.
_PICTURES = (
    'astronaut',
    'camera',
    'chelsea',
    'coffee',
    'coins',
    'color',
    'hubble_deep_field',
    'motorcycle_left',
    'rocket',
    'china',
    'flower',
    'grace_hopper',
    'text',
    'retina',
)
_ROUGH = ('gravel', 'grass', 'moon', 'ihc', 'cell')


@dataclass(frozen=True, eq=False)
class Texture:
    """Reflectance of a surface.

    Attributes:
        levels: Mip pyramid of (H, W) uint8 images, finest first; each halves the previous.
    """

    levels: tuple[NDArray[np.uint8], ...]

    @classmethod
    def from_image(cls, image: ArrayLike) -> Texture:
        """Build the pyramid of a grey image (H, W): uint8, or float in [0, 1]."""
        array = np.asarray(image)
        if array.ndim != 2 or min(array.shape) < 1:
            raise InputError(f'a texture must be a grey image, found shape {array.shape}')
        if array.dtype != np.uint8:
            array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
        levels = [np.ascontiguousarray(array)]
        while max(levels[-1].shape) > 1:
            height, width = levels[-1].shape
            size = (max(1, (width + 1) // 2), max(1, (height + 1) // 2))
            levels.append(np.asarray(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA)))
        return cls(tuple(levels))


class TextureFactory:
    """Makes materials; every call draws new crops from the generator that it is given."""

    def __init__(self, photographs: dict[str, Grey]) -> None:
        self._photographs = photographs

    def make(self, material: str, width: float, height: float, rng: np.random.Generator) -> Texture:
        """Make a texture of a named material for a surface of `width` x `height` metres."""
        makers: dict[str, tuple[Callable[..., Grey], float]] = {
            'plaster': (self._plaster, 0.005),
            'wallpaper': (self._wallpaper, 0.005),
            'brick': (self._brick, 0.004),
            'wood': (self._wood, 0.003),
            'tiles': (self._tiles, 0.004),
            'carpet': (self._carpet, 0.004),
            'parquet': (self._parquet, 0.004),
            'ceiling': (self._ceiling, 0.006),
            'poster': (self._poster, 0.002),
            'books': (self._books, 0.0025),
            'drawers': (self._drawers, 0.003),
            'fabric': (self._fabric, 0.003),
            'door': (self._door, 0.004),
            'window': (self._window, 0.004),
            'screen': (self._screen, 0.002),
            'carton': (self._carton, 0.0025),
            'lamp': (self._lamp, 0.01),
            'skin': (self._skin, 0.004),
        }
        maker, texel = makers[material]
        shape = (max(4, round(height / texel)), max(4, round(width / texel)))
        return Texture.from_image(maker(shape, texel, rng))

    # -- building blocks ---------------------------------------------------------------------

    def _crop(
        self, names: Sequence[str], shape: tuple[int, int], zoom: float, rng: np.random.Generator
    ) -> Grey:
        """Return a random crop, flipped, turned and resampled so that `zoom` photo px = 1 texel."""
        photo = self._photographs[names[int(rng.integers(len(names)))]]
        if rng.random() < 0.5:
            photo = photo[:, ::-1]
        if rng.random() < 0.5:
            photo = photo[::-1]
        if rng.random() < 0.5:
            photo = photo.T
        height = min(max(2, round(shape[0] * zoom)), photo.shape[0])
        width = min(max(2, round(shape[1] * zoom)), photo.shape[1])
        top = int(rng.integers(photo.shape[0] - height + 1))
        left = int(rng.integers(photo.shape[1] - width + 1))
        crop = np.ascontiguousarray(photo[top : top + height, left : left + width])
        return _resize(crop, shape)

    def _cover(
        self, names: Sequence[str], shape: tuple[int, int], zoom: float, rng: np.random.Generator
    ) -> Grey:
        """Cover any shape with overlapping random crops, zero mean and unit deviation."""
        patch = 256
        if max(shape) <= patch:
            return _normalized(self._crop(names, shape, zoom, rng))
        step = patch * 3 // 4
        ramp = np.sin(np.linspace(0.02, np.pi - 0.02, patch)).astype(np.float32)
        window = np.outer(ramp, ramp)
        padded = (shape[0] + 2 * patch, shape[1] + 2 * patch)
        total = np.zeros(padded, np.float32)
        weight = np.full(padded, 1e-6, np.float32)
        for top in range(patch // 2, shape[0] + patch, step):
            for left in range(patch // 2, shape[1] + patch, step):
                crop = _normalized(self._crop(names, (patch, patch), zoom, rng))
                total[top : top + patch, left : left + patch] += crop * window
                weight[top : top + patch, left : left + patch] += window * window
        inside = (slice(patch, patch + shape[0]), slice(patch, patch + shape[1]))
        return _normalized(total[inside] / np.sqrt(weight[inside]))

    def _stains(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        """Large soft variation, about half a metre in size, within about +-1."""
        coarse = (max(2, round(shape[0] * texel / 0.5)), max(2, round(shape[1] * texel / 0.5)))
        return _resize(rng.standard_normal(coarse).astype(np.float32), shape, cv2.INTER_CUBIC)

    # -- materials ---------------------------------------------------------------------------

    def _plaster(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        mean = rng.uniform(0.62, 0.78)
        grain = self._cover(('moon', 'gravel', 'cell'), shape, rng.uniform(0.5, 0.9), rng)
        image = mean + 0.026 * grain + 0.02 * self._stains(shape, texel, rng)
        for _ in range(rng.poisson(shape[0] * shape[1] * texel**2 * 0.9)):
            # Scuffs, sockets and repairs: small patches of something else.
            size = (int(rng.integers(8, 60)), int(rng.integers(8, 60)))
            if size[0] >= shape[0] or size[1] >= shape[1]:
                continue
            top = int(rng.integers(shape[0] - size[0]))
            left = int(rng.integers(shape[1] - size[1]))
            patch = _normalized(self._crop((*_ROUGH, 'coins'), size, 0.8, rng))
            area = image[top : top + size[0], left : left + size[1]]
            area += rng.uniform(-0.16, 0.06) + rng.uniform(0.02, 0.08) * patch
        return image

    def _wallpaper(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        """A printed motif repeated on a grid over plaster: ambiguous on purpose."""
        image = self._plaster(shape, texel, rng)
        period = int(rng.integers(70, 130))
        motif = _normalized(self._crop(_PICTURES, (period, period), 1.5, rng))
        motif *= np.outer(np.hanning(period), np.hanning(period)).astype(np.float32)
        repeats = (shape[0] // period + 1, shape[1] // period + 1)
        image += rng.uniform(0.04, 0.08) * np.tile(motif, repeats)[: shape[0], : shape[1]]
        return image

    def _brick(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        """Running bond; every brick has its own tone and grain."""
        brick, course = round(0.25 / texel), round(0.083 / texel)
        joint = max(2, round(0.011 / texel))
        mean = rng.uniform(0.36, 0.52)
        grain = self._cover(('gravel', 'brick', 'moon'), shape, 0.8, rng)
        image = mean + 0.04 * grain + 0.03 * self._stains(shape, texel, rng)
        mortar = mean + 0.2 + 0.03 * grain
        for row, top in enumerate(range(0, shape[0], course)):
            rows = slice(top, min(top + course, shape[0]))
            for left in range(-(row % 2) * brick // 2, shape[1], brick):
                columns = slice(max(left, 0), max(left + brick, 0))
                image[rows, columns] += rng.normal(0, 0.045)
                edge = slice(max(left, 0), max(left + joint, 0))
                image[rows, edge] = mortar[rows, edge]
            image[top : top + joint] = mortar[top : top + joint]
        return np.asarray(image, dtype=np.float32)

    def _wood(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        mean, along = rng.uniform(0.3, 0.62), 9
        if shape[0] > shape[1]:
            grain = self._cover(('grass', 'chelsea'), (shape[0] // along + 2, shape[1]), 0.8, rng)
        else:
            grain = self._cover(('grass', 'chelsea'), (shape[0], shape[1] // along + 2), 0.8, rng)
        knots = self._cover(('retina', 'moon', 'coffee'), shape, 0.5, rng)
        return np.asarray(mean + 0.06 * _resize(grain, shape, cv2.INTER_CUBIC) + 0.025 * knots)

    def _tiles(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        mean = rng.uniform(0.42, 0.6)
        image = mean + 0.05 * self._cover(('moon', 'gravel', 'coffee'), shape, 0.8, rng)
        period = round(rng.uniform(0.3, 0.5) / texel)
        checker = rng.uniform(0.0, 0.08) * (1 if rng.random() < 0.5 else 0)
        for row, top in enumerate(range(0, shape[0], period)):
            for column, left in enumerate(range(0, shape[1], period)):
                sign = 1 if (row + column) % 2 else -1
                image[top : top + period, left : left + period] += rng.normal(0, 0.025)
                image[top : top + period, left : left + period] += sign * checker
            image[top : top + 2] = 0.3
        for left in range(0, shape[1], period):
            image[:, left : left + 2] = 0.3
        return image

    def _carpet(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        grain = self._cover(('gravel', 'grass'), shape, rng.uniform(0.9, 1.4), rng)
        stains = self._stains(shape, texel, rng)
        return np.asarray(rng.uniform(0.3, 0.45) + 0.05 * grain + 0.03 * stains)

    def _parquet(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        image = self._wood(shape, texel, rng)
        plank, length = round(0.14 / texel), round(1.1 / texel)
        for top in range(0, shape[0], plank):
            shift = int(rng.integers(length))
            for left in range(-shift, shape[1], length):
                piece = image[top : top + plank, max(left, 0) : max(left + length, 0)]
                piece += rng.normal(0, 0.035)
                piece[:, :1] -= 0.15
            image[top : top + 1] -= 0.15
        return image

    def _ceiling(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        image = 0.78 + 0.02 * self._cover(('gravel', 'moon'), shape, 0.8, rng)
        image += 0.012 * self._stains(shape, texel, rng)
        period = round(0.6 / texel)
        for top in range(0, shape[0], period):
            for left in range(0, shape[1], period):
                image[top : top + period, left : left + period] += rng.normal(0, 0.012)
            image[top : top + 2] = 0.55
        for left in range(0, shape[1], period):
            image[:, left : left + 2] = 0.55
        return np.asarray(image, dtype=np.float32)

    def _poster(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        zoom = rng.uniform(0.55, 1.0)
        picture = _normalized(self._crop(_PICTURES, shape, zoom, rng))
        image = rng.uniform(0.4, 0.62) + rng.uniform(0.18, 0.27) * picture
        if rng.random() < 0.25:
            image = 1 - image
        border = int(rng.integers(0, max(2, min(shape) // 12)))
        if border:
            level = float(rng.choice([0.1, 0.9]))
            image[:border] = image[-border:] = level
            image[:, :border] = image[:, -border:] = level
        return np.asarray(np.clip(image, 0.03, 0.95))

    def _books(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        """Boards with rows of spines of random width, height and print."""
        image = np.full(shape, 0.1, np.float32)
        board = max(2, round(0.025 / texel))
        pitch = round(rng.uniform(0.3, 0.38) / texel)
        wood = self._wood(shape, texel, rng)
        for top in range(0, shape[0], pitch):
            bottom = min(top + pitch, shape[0])
            left = board
            while left < shape[1] - board:
                width = round(rng.uniform(0.02, 0.055) / texel)
                right = min(left + width, shape[1] - board)
                start = top + board + round(rng.uniform(0.01, 0.09) / texel)
                if rng.random() < 0.94 and bottom - start > 4 and right - left > 3:
                    spine = _normalized(
                        self._crop(_PICTURES, (bottom - start, right - left), 0.7, rng)
                    )
                    image[start:bottom, left:right] = np.clip(
                        rng.uniform(0.2, 0.75) + 0.1 * spine, 0.05, 0.95
                    )
                    image[start:bottom, left] = 0.08
                left = right
            image[top : top + board] = wood[top : top + board]
        image[:, :board] = wood[:, :board]
        image[:, -board:] = wood[:, -board:]
        return image

    def _drawers(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        image = self._wood(shape, texel, rng)
        rows = max(1, round(shape[0] * texel / 0.28))
        columns = max(1, round(shape[1] * texel / 0.6))
        for row in range(rows):
            for column in range(columns):
                top, bottom = row * shape[0] // rows, (row + 1) * shape[0] // rows
                left, right = column * shape[1] // columns, (column + 1) * shape[1] // columns
                image[top:bottom, left:right] += rng.normal(0, 0.03)
                image[top : top + 2, left:right] = image[top:bottom, left : left + 2] = 0.08
                middle, centre = (top + bottom) // 2, (left + right) // 2
                image[middle - 2 : middle + 3, centre - 15 : centre + 16] = 0.8
                if rng.random() < 0.4 and bottom - top > 40 and right - left > 60:
                    label = self._crop(('text',), (16, 36), 1.0, rng)
                    image[top + 10 : top + 26, left + 10 : left + 46] = label
        return image

    def _fabric(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        cloth = self._cover(('ihc', 'cell', 'grass', 'flower'), shape, rng.uniform(0.8, 1.3), rng)
        return np.asarray(rng.uniform(0.25, 0.6) + rng.uniform(0.05, 0.09) * cloth)

    def _door(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        """A door with two panels, a handle and a small sign: alike from door to door."""
        image = self._wood(shape, texel, rng) * 0.4 + 0.35
        height, width = shape
        for top, bottom in ((0.08, 0.45), (0.55, 0.92)):
            first = (round(0.15 * width), round(top * height))
            last = (round(0.85 * width), round(bottom * height))
            cv2.rectangle(image, first, last, 0.3, 2)
        cv2.circle(image, (round(0.9 * width), round(0.52 * height)), 6, 0.9, -1)
        sign = (round(0.06 * height), round(0.3 * width))
        top, left = round(0.24 * height), round(0.35 * width)
        image[top : top + sign[0], left : left + sign[1]] = self._crop(('text',), sign, 1, rng)
        image[:3] = 0.15
        image[:, :3] = image[:, -3:] = 0.15
        return image

    def _window(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        image = self._crop(('china', 'china', 'rocket'), shape, 0.9, rng)
        image = cv2.GaussianBlur(image, (0, 0), 1.0) * 0.7 + 0.25
        bar = max(3, round(0.05 / texel))
        image[:bar] = image[-bar:] = 0.5
        image[:, :bar] = image[:, -bar:] = 0.5
        middle = shape[1] // 2
        image[:, middle - bar // 2 : middle + bar // 2] = 0.5
        return np.asarray(image, dtype=np.float32)

    def _screen(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        image = self._crop(('text', 'camera', 'coins', 'motorcycle_left'), shape, 0.8, rng) * 0.8
        border = max(2, round(0.015 / texel))
        image[:border] = image[-border:] = 0.05
        image[:, :border] = image[:, -border:] = 0.05
        return image

    def _carton(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        image = rng.uniform(0.45, 0.6) + 0.03 * self._cover(('moon', 'gravel'), shape, 1.0, rng)
        label = (max(4, shape[0] // 2), max(4, shape[1] // 2))
        top = int(rng.integers(shape[0] - label[0] + 1))
        left = int(rng.integers(shape[1] - label[1] + 1))
        area = self._crop(_PICTURES, label, rng.uniform(0.7, 1.2), rng)
        image[top : top + label[0], left : left + label[1]] = area
        return np.asarray(image, dtype=np.float32)

    def _lamp(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        image = np.full(shape, 0.9, np.float32)
        image[:2] = image[-2:] = 0.6
        image[:, :2] = image[:, -2:] = 0.6
        return image

    def _skin(self, shape: tuple[int, int], texel: float, rng: np.random.Generator) -> Grey:
        face = self._crop(('astronaut', 'grace_hopper'), shape, 1.5, rng)
        return np.asarray(0.35 + 0.3 * face)


def _resize(image: Grey, shape: tuple[int, int], enlarge: int = cv2.INTER_LINEAR) -> Grey:
    shrinks = shape[0] < image.shape[0] or shape[1] < image.shape[1]
    method = cv2.INTER_AREA if shrinks else enlarge
    return np.asarray(cv2.resize(image, (shape[1], shape[0]), interpolation=method), np.float32)


def _normalized(image: NDArray[np.floating]) -> Grey:
    mean, deviation = cv2.meanStdDev(image)
    scale = 1 / (float(deviation[0, 0]) + 1e-3)
    return np.asarray((image - np.float32(mean[0, 0])) * np.float32(scale), dtype=np.float32)
