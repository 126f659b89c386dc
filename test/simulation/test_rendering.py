"""The renderer against closed-form geometry and radiometry."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from d2s_ros.errors import ConfigError, InputError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector
from d2s_ros.simulation.lighting import Lighting, flat_lighting, irradiance, make_lighting
from d2s_ros.simulation.rendering import render
from d2s_ros.simulation.scene import Scene, Surface, box
from d2s_ros.simulation.textures import Texture

PINHOLE = Camera('pinhole', 320, 240, 230.0, 232.0, 162.3, 117.2)
CAMERAS = [
    PINHOLE,
    Camera('plumb_bob', 320, 240, 230.0, 232.0, 162.3, 117.2, (-0.28, 0.09, 7e-4, -4e-4, -0.01)),
    Camera(
        'rational_polynomial',
        320,
        240,
        230.0,
        232.0,
        162.3,
        117.2,
        (0.3, 0.02, 3e-4, -2e-4, 0.001, 0.6, 0.05, 0.003),
    ),
    Camera('equidistant', 320, 240, 190.0, 191.0, 158.0, 121.0, (-0.012, 0.004, -0.002, 3e-4)),
]
#: Looks along +y of the map, from the origin: x right = +x, y down = -z.
FORWARD = RigidTransform(np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0.0]]), np.zeros(3))
RNG = np.random.default_rng(0)


def white(level: float = 1.0) -> Texture:
    return Texture.from_image(np.full((8, 8), level, np.float32))


def wall(
    distance: float, half: float, texture: Texture, tilt: float = 0.0, x: float = 0.0
) -> Surface:
    """A square at y = distance that faces the camera, turned about the vertical by `tilt`."""
    along = np.array([np.cos(tilt), np.sin(tilt), 0.0])
    middle = np.array([x, distance, 0.0])
    origin = middle - half * along + [0, 0, half]
    return Surface(origin, 2 * half * along, np.array([0, 0, -2.0 * half]), texture)


def dots(count: int = 7, size: int = 700) -> tuple[Texture, np.ndarray]:
    """White discs on black; returns the fractions (a, b) of their centres."""
    image = np.zeros((size, size), np.uint8)
    step = size // count
    shift = 4
    centres = []
    for row in range(count):
        for column in range(count):
            x, y = step * column + step / 2 + 0.25, step * row + step / 2 - 0.25
            # cv2 takes the centre of the first pixel as 0, textures take its edge.
            center = (round((x - 0.5) * 2**shift), round((y - 0.5) * 2**shift))
            cv2.circle(image, center, round(0.2 * step) << shift, 255, -1, cv2.LINE_AA, shift)
            centres.append((x / size, y / size))
    return Texture.from_image(image), np.array(centres)


def centroids(image: np.ndarray, around: np.ndarray, radius: int) -> np.ndarray:
    """Centre of the light (in linear radiance) of each blob, near where it is expected."""
    linear = (image / 255.0) ** 2.2
    found = []
    for x, y in around:
        left, top = round(x) - radius, round(y) - radius
        part = linear[top : top + 2 * radius + 1, left : left + 2 * radius + 1]
        rows, columns = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]]
        found.append(((part * columns).sum() / part.sum(), (part * rows).sum() / part.sum()))
    return np.array(found)


@pytest.mark.parametrize('camera', CAMERAS, ids=lambda camera: camera.model)
def test_points_appear_where_the_camera_projects_them(camera: Camera) -> None:
    texture, centres = dots()
    surface = wall(2.0, 1.0, texture)
    turned = RigidTransform(rotation_from_vector([0.03, -0.05, 0.2]), np.array([0.05, -0.1, 0.07]))
    map_from_camera = turned @ FORWARD
    image = render(Scene((surface,)), camera, map_from_camera, flat_lighting(), RNG).image
    points = np.stack([surface.point(a, b) for a, b in centres])
    expected = camera.project(map_from_camera.inverse().apply(points))
    margin = 16
    inside = (
        (expected > margin) & (expected < [camera.width - margin, camera.height - margin])
    ).all(axis=1)
    assert inside.sum() >= 25
    error = np.linalg.norm(centroids(image, expected[inside], 14) - expected[inside], axis=1)
    # The centre of a disc's image is not quite the image of its centre: hence not zero.
    assert error.max() < 0.12
    assert np.median(error) < 0.05


def test_edges_lie_where_they_should_within_a_sample() -> None:
    """The covered area tells where a straight edge lies, finer than a pixel."""
    camera = Camera('pinhole', 64, 64, 64.0, 64.0, 31.5, 31.5)
    for half in (0.25, 0.30, 0.35):
        # Edges at 31.5 +- 64 * half: quarter and other fractions of a pixel.
        image = render(
            Scene((wall(1.0, half, white()),)), camera, FORWARD, flat_lighting(), RNG
        ).image
        covered = ((image / 255.0) ** 2.2).sum()
        width = np.sqrt(covered)
        assert width == pytest.approx(128 * half, abs=0.5)  # 2 x 2 samples: half a pixel


@pytest.mark.parametrize('camera', CAMERAS, ids=lambda camera: camera.model)
def test_depth_is_analytic(camera: Camera) -> None:
    tilt = 0.5
    surface = wall(3.0, 2.0, white(), tilt=tilt)
    rendered = render(Scene((surface,)), camera, FORWARD, flat_lighting(), RNG)
    rows, columns = np.mgrid[: camera.height, : camera.width]
    rays = camera.normalize(np.stack([columns.ravel(), rows.ravel()], 1))
    # Plane y = 3 + x tan(tilt); along a ray x = z * rx, y (map) = z.
    expected = (3.0 / (1 - rays[:, 0] * np.tan(tilt))).reshape(rows.shape)
    seen = rendered.surface_idx == 0
    assert seen.mean() > 0.5
    np.testing.assert_allclose(rendered.depth[seen], expected[seen], rtol=2e-5)
    assert np.isinf(rendered.depth[~seen]).all()
    across = expected * rays[:, 0].reshape(rows.shape) / np.cos(tilt)
    up = expected * rays[:, 1].reshape(rows.shape)
    inside = (np.abs(across) < 2.0) & (np.abs(up) < 2.0)
    border = (np.abs(np.abs(across) - 2.0) < 1e-3) | (np.abs(np.abs(up) - 2.0) < 1e-3)
    np.testing.assert_array_equal(seen[~border], inside[~border])


def test_occlusion_order_is_exact() -> None:
    """Interpenetrating walls: each pixel shows the nearer one, and its texture."""
    left = wall(2.0, 1.5, white(0.3), tilt=0.4)
    right = wall(2.0, 1.5, white(0.8), tilt=-0.4)
    for surfaces in ((left, right), (right, left)):
        rendered = render(Scene(surfaces), PINHOLE, FORWARD, flat_lighting(), RNG)
        columns = np.arange(PINHOLE.width)
        x = (columns - PINHOLE.cx) / PINHOLE.fx
        # Turned by +0.4 the left half is nearer; the walls cross at x = 0.
        nearer = np.where(x < 0, surfaces.index(left), surfaces.index(right))
        row = round(PINHOLE.cy)
        away = np.abs(x) > 2 / PINHOLE.fx
        np.testing.assert_array_equal(rendered.surface_idx[row][away], nearer[away])
        level = np.where(x < 0, round(0.3 * 255), round(0.8 * 255))
        np.testing.assert_allclose(rendered.image[row][away], level[away], atol=1)


def test_box_shows_its_front_only() -> None:
    names = ('front', 'back', 'left', 'right', 'top', 'bottom')
    levels = {name: 0.1 + 0.15 * index for index, name in enumerate(names)}
    textures = {name: white(level) for name, level in levels.items()}
    scene = Scene(tuple(box((0, 3, -0.5), (1, 1, 1), textures, bottom=True)))
    normals = {
        name: surface.normal
        for name, surface in zip(
            ('front', 'back', 'right', 'left', 'top', 'bottom'), scene.surfaces, strict=True
        )
    }
    np.testing.assert_allclose(normals['front'], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(normals['left'], [-1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(normals['top'], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(normals['bottom'], [0, 0, -1], atol=1e-12)
    # From -y one sees the back at 2.5 m; from inside nothing at all.
    rendered = render(scene, PINHOLE, FORWARD, flat_lighting(), RNG)
    row, column = round(PINHOLE.cy), round(PINHOLE.cx)
    assert rendered.depth[row, column] == pytest.approx(2.5, rel=1e-5)
    assert rendered.image[row, column] == round(255 * levels['back'])
    inside = RigidTransform(FORWARD.rotation, np.array([0, 3, 0.0]))
    assert (render(scene, PINHOLE, inside, flat_lighting(), RNG).surface_idx == -1).all()


def test_surfaces_through_the_image_plane_are_clipped() -> None:
    """A floor that runs under and behind the camera."""
    floor = Surface(
        np.array([-5, 5, -1.0]), np.array([10, 0, 0.0]), np.array([0, -10, 0.0]), white()
    )
    rendered = render(Scene((floor,)), PINHOLE, FORWARD, flat_lighting(), RNG)
    rows = (np.arange(PINHOLE.height) - PINHOLE.cy) / PINHOLE.fy
    column = round(PINHOLE.cx)
    seen = rows > 0.2001
    np.testing.assert_allclose(rendered.depth[seen, column], 1 / rows[seen], rtol=1e-5)
    assert (rendered.surface_idx[rows < 0.1999, column] == -1).all()


def test_minification_averages_instead_of_aliasing() -> None:
    """A fine checkerboard far away is an even grey, at any phase."""
    checker = ((np.indices((1024, 1024)).sum(axis=0) % 2) * 255).astype(np.uint8)
    surface = wall(20.0, 4.0, Texture.from_image(checker))  # about 11 texels per pixel
    image = render(Scene((surface,)), PINHOLE, FORWARD, flat_lighting(), RNG).image
    row, column = round(PINHOLE.cy), round(PINHOLE.cx)
    middle = image[row - 20 : row + 20, column - 20 : column + 20]
    assert middle.std() < 1.5
    assert 100 < middle.mean() < 155


def test_unusable_distortion_is_refused() -> None:
    camera = Camera('plumb_bob', 320, 240, 120.0, 120.0, 160.0, 120.0, (-0.9, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(InputError, match='distortion'):
        render(Scene((wall(2, 1, white()),)), camera, FORWARD, flat_lighting(), RNG)


def test_bad_surfaces_are_refused() -> None:
    with pytest.raises(InputError, match='parallel'):
        Surface(np.zeros(3), np.array([1, 0, 0.0]), np.array([2, 0, 0.0]), white())
    with pytest.raises(InputError, match='grey'):
        Texture.from_image(np.zeros((4, 4, 3), np.uint8))


# -- light -----------------------------------------------------------------------------------


def test_lamp_light_falls_with_distance_and_cosine() -> None:
    lighting = Lighting(ambient=0.0, lamp=1.0, lamp_share=1.0)
    values = []
    for depth in (1.0, 2.0):
        floor = Surface(
            np.array([-2, 2, -depth]), np.array([4, 0, 0.0]), np.array([0, -4, 0.0]), white()
        )
        scene = Scene((floor,), lamps=np.array([[0, 0, 0.03]]))
        values.append(irradiance(scene, lighting)[0])
    rows, columns = np.array(values[0].shape) // 2
    # Two emitters 0.4 m aside, strength 2 each: 2 * 2 * cos^2 / (d^2 + 0.1), cos^2 = h^2 / d^2.
    for depth, grid in zip((1.0, 2.0), values, strict=True):
        height = depth - 0.003
        square = 0.4**2 + height**2
        expected = 2 * 2 * height**2 / square / (square + 0.1)
        assert grid[rows, columns] == pytest.approx(expected, rel=0.02)
        assert grid[0, 0] < 0.6 * grid[rows, columns]


def test_objects_cast_shadows() -> None:
    lighting = Lighting(ambient=0.0, lamp=1.0, lamp_share=1.0)
    floor = Surface(np.array([-2, 2, 0.0]), np.array([4, 0, 0.0]), np.array([0, -4, 0.0]), white())
    textures = dict.fromkeys(('front', 'back', 'left', 'right', 'top', 'bottom'), white())
    table = box((1.2, 0, 0.7), (0.8, 0.8, 0.05), textures, bottom=True)
    lamps = np.array([[0.0, 0.0, 2.5]])
    bare = irradiance(Scene((floor,), lamps=lamps), lighting)[0]
    shaded = irradiance(Scene((floor, *table), lamps=lamps), lighting)[0]
    middle, rows, columns = bare.shape[0] // 2, bare.shape[0], bare.shape[1]
    # The table's middle throws its shadow at x = 1.2 * 2.5 / (2.5 - 0.7) = 1.67.
    behind = round((1.67 + 2) / 4 * (columns - 1))
    assert shaded[middle, behind] < 0.01 * bare[middle, behind]
    assert shaded[middle, 0] == pytest.approx(bare[middle, 0])
    assert shaded[rows - 1, columns // 2] == pytest.approx(bare[rows - 1, columns // 2])


def grey_card(lighting: Lighting, seed: int = 0, level: float = 0.5) -> np.ndarray:
    surface = wall(1.0, 4.0, Texture.from_image(np.full((8, 8), level, np.float32)))
    rng = np.random.default_rng(seed)
    return render(Scene((surface,)), PINHOLE, FORWARD, lighting, rng).image


def test_flat_light_reproduces_the_texture() -> None:
    assert (grey_card(flat_lighting()) == 128).all()


def test_auto_exposure_reaches_its_target_within_its_limits() -> None:
    base = dataclasses.replace(
        flat_lighting(), target=0.2, max_exposure=10.0, max_gain=10.0, noise=False
    )
    for ambient in (0.2, 1.0, 4.0):
        image = grey_card(dataclasses.replace(base, ambient=ambient))
        assert ((image / 255) ** 2.2).mean() == pytest.approx(0.2, abs=0.004)
    dark = grey_card(dataclasses.replace(base, ambient=1e-4))
    # Reflectance 0.218; exposure and gain at their limits.
    assert ((dark / 255) ** 2.2).mean() == pytest.approx(1e-4 * 0.218 * 100, rel=0.1)


def test_noise_has_the_variance_of_photons_and_readout() -> None:
    lighting = Lighting(
        ambient=1.0,
        ambient_above=0.0,
        target=0.0,
        full_well=2000.0,
        read_noise=10.0,
        vignetting=0.0,
    )
    image = grey_card(lighting, level=0.8)
    linear = (image / 255.0) ** 2.2
    electrons = 0.8**2.2 * 2000
    expected = np.sqrt(electrons + 10.0**2) / 2000
    assert linear.mean() == pytest.approx(0.8**2.2, rel=0.005)
    assert linear.std() == pytest.approx(expected, rel=0.05)
    assert not np.array_equal(image, grey_card(lighting, seed=1, level=0.8))
    np.testing.assert_array_equal(image, grey_card(lighting, level=0.8))


def test_vignetting_darkens_the_corners_only() -> None:
    image = grey_card(dataclasses.replace(flat_lighting(), vignetting=0.4))
    linear = (image / 255.0) ** 2.2
    assert linear[0, 0] / linear[120, 160] == pytest.approx(0.6, abs=0.02)
    assert image[120, 160] == 128


def test_lighting_names_are_checked() -> None:
    with pytest.raises(ConfigError, match='day, dusk, night'):
        make_lighting('noon')
    with pytest.raises(ConfigError, match='ambient'):
        Lighting(ambient=-1.0)


def test_blur_averages_the_poses() -> None:
    texture, _ = dots()
    scene = Scene((wall(2.0, 1.0, texture),))
    moves = [np.array([shift, 0, 0]) for shift in (-0.02, 0.0, 0.02)]
    poses = [RigidTransform(FORWARD.rotation, move) for move in moves]
    sharp = [render(scene, PINHOLE, pose, flat_lighting(), RNG).image for pose in poses]
    blurred = render(scene, PINHOLE, FORWARD, flat_lighting(), RNG, blur=poses)
    mean = np.mean([(image / 255.0) ** 2.2 for image in sharp], axis=0)
    np.testing.assert_allclose((blurred.image / 255.0) ** 2.2, mean, atol=0.012)
    np.testing.assert_allclose(blurred.depth[100:140, 140:180], 2.0, rtol=1e-5)


def test_occluders_hide_the_scene() -> None:
    scene = Scene((wall(3.0, 4.0, white(0.8)),))
    person = wall(1.5, 0.2, white(0.2))
    rendered = render(scene, PINHOLE, FORWARD, flat_lighting(), RNG, occluders=[person])
    row, column = round(PINHOLE.cy), round(PINHOLE.cx)
    assert rendered.surface_idx[row, column] == 1
    assert rendered.depth[row, column] == pytest.approx(1.5, rel=1e-5)
    assert rendered.image[row, column] < 60
    assert rendered.surface_idx[row, 10] == 0
