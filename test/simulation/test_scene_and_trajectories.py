"""Buildings, their changes, and camera paths through them."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pytest

from d2s_ros.errors import ConfigError, InputError
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.simulation import photographs
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.lighting import flat_lighting, make_lighting
from d2s_ros.simulation.rendering import render
from d2s_ros.simulation.scene import CLEARANCE, Scene, Surface, build_scene
from d2s_ros.simulation.simulate import BASE_FROM_CAMERA, drifting_odometry, rendered_frames
from d2s_ros.simulation.textures import Texture, TextureFactory
from d2s_ros.simulation.trajectories import People, sample_trajectory


class NoiseFactory(TextureFactory):
    """Small random textures: fast, and they tell which generator made them."""

    def __init__(self) -> None:
        super().__init__({})

    def make(self, material: str, width: float, height: float, rng: np.random.Generator) -> Texture:
        return Texture.from_image(rng.integers(40, 220, (16, 16)).astype(np.uint8))


@lru_cache(maxsize=16)
def layout(config: SimulationConfig) -> Scene:
    return build_scene(config, NoiseFactory())


@lru_cache(maxsize=4)
def photographic(config: SimulationConfig) -> Scene:
    return build_scene(config)


def same(a: Surface, b: Surface) -> bool:
    return (
        np.array_equal(a.corners, b.corners)
        and a.texture.levels[0].shape == b.texture.levels[0].shape
        and np.array_equal(a.texture.levels[0], b.texture.levels[0])
    )


def small(**changes: object) -> SimulationConfig:
    return SimulationConfig(**{'width': 160, 'height': 120, 'frames': 30, **changes})  # type: ignore[arg-type]


# -- scene -----------------------------------------------------------------------------------


def test_the_same_config_builds_the_same_scene() -> None:
    a, b = build_scene(small(seed=3), NoiseFactory()), layout(small(seed=3))
    assert len(a.surfaces) == len(b.surfaces) > 100
    assert all(same(x, y) for x, y in zip(a.surfaces, b.surfaces, strict=True))


def test_a_building_has_the_size_of_a_building() -> None:
    for seed in range(3):
        scene = layout(small(seed=seed))
        corners = np.concatenate([surface.corners for surface in scene.surfaces])
        assert (corners.min(axis=0) > -0.01).all()
        assert (corners.max(axis=0) < np.array(scene.size) + 0.01).all()
        assert 10 < scene.size[0] < 13.5
        assert 7 < scene.size[1] < 9
        assert 2.5 < scene.size[2] < 3.2
        assert scene.free.mean() > 0.2
        assert len(scene.objects) > 15
        assert len(scene.windows) >= 3
        assert len(scene.lamps) >= 4


def test_every_surface_has_a_texture_of_its_own() -> None:
    scene = layout(small(seed=3))
    unique = {surface.texture.levels[0].tobytes() for surface in scene.surfaces}
    # Only the ends of wall pieces share theirs.
    assert len(unique) >= len(scene.surfaces) - 6


def test_another_place_shares_no_surface() -> None:
    here, there = layout(small(seed=3)), layout(small(seed=3, other_place=True))
    assert here.size != there.size
    known = {surface.texture.levels[0].tobytes() for surface in here.surfaces}
    assert not any(surface.texture.levels[0].tobytes() in known for surface in there.surfaces)


@pytest.mark.parametrize('change', ['moved', 'removed'])
def test_a_change_concerns_a_third_of_the_objects_and_nothing_else(change: str) -> None:
    before, after = layout(small(seed=3)), layout(small(seed=3, change=change))

    def by_object(scene: Scene) -> dict[int, list[Surface]]:
        groups: dict[int, list[Surface]] = {}
        for surface in scene.surfaces:
            groups.setdefault(surface.object_idx, []).append(surface)
        return groups

    old, new = by_object(before), by_object(after)
    assert all(same(a, b) for a, b in zip(old[-1], new[-1], strict=True))
    changed = []
    for index, surfaces in old.items():
        if index not in new:
            changed.append(index)
            continue
        pairs = list(zip(surfaces, new[index], strict=True))
        assert all(np.array_equal(a.texture.levels[0], b.texture.levels[0]) for a, b in pairs)
        if not all(same(a, b) for a, b in pairs):
            changed.append(index)
    assert 0.2 <= len(changed) / len(before.objects) <= 0.4
    if change == 'removed':
        assert all(index not in new for index in changed)
    else:
        assert set(old) == set(new)
        shifts = [np.linalg.norm(old[i][0].origin - new[i][0].origin) for i in changed]
        assert np.median(shifts) > 0.5
    np.testing.assert_array_equal(before.free, after.free)


@pytest.mark.parametrize('change', ['moved', 'removed'])
def test_a_change_shows_only_where_changed_things_are_or_were(change: str) -> None:
    config = small(seed=3)
    before, after = layout(config), layout(small(seed=3, change=change))
    kept = {surface.corners.tobytes() for surface in after.surfaces} & {
        surface.corners.tobytes() for surface in before.surfaces
    }
    differing = 0
    for pose in sample_trajectory(before, config)[::6]:
        images, unaffected = [], np.ones((120, 160), np.uint8)
        for scene in (before, after):
            rendered = render(scene, config.camera, pose, flat_lighting(), np.random.default_rng(0))
            is_kept = np.array([surface.corners.tobytes() in kept for surface in scene.surfaces])
            unaffected &= is_kept[rendered.surface_idx].astype(np.uint8)
            images.append(rendered.image.astype(int))
        # Edge pixels mix what is beside them.
        inner = cv2.erode(unaffected, np.ones((3, 3), np.uint8)).astype(bool)
        assert inner.mean() > 0.2
        # A sliver narrower than a pixel can miss all pixel centres.
        assert (images[0] != images[1])[inner].mean() < 0.001
        differing += int((images[0] != images[1]).sum())
    assert differing > 500


def test_missing_photographs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    photographs.load_photographs.cache_clear()
    monkeypatch.setattr(photographs, '_PHOTOGRAPHS', {'skimage': ('data/nothing.png',)})
    with pytest.raises(InputError, match=r'nothing\.png'):
        build_scene(small())
    monkeypatch.setattr(photographs, '_PHOTOGRAPHS', {'no_such_package': ('a.png',)})
    monkeypatch.setattr(photographs, '_PACKAGES', {'no_such_package': 'no-such-package'})
    with pytest.raises(InputError, match='pip install no-such-package'):
        build_scene(small())


def test_config_values_are_checked() -> None:
    for wrong in ({'frames': 0}, {'lighting': 'noon'}, {'rate_hz': 0.0}, {'width': 4}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SimulationConfig(**wrong)  # type: ignore[arg-type]


# -- trajectories ----------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['loop', 'lawnmower', 'random'])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_paths_keep_clear_and_upright(kind: str, seed: int) -> None:
    config = small(seed=seed, trajectory=kind, frames=80)
    scene = layout(config)
    poses = sample_trajectory(scene, config)
    assert len(poses) == 80
    positions = np.array([pose.translation for pose in poses])
    assert ((positions[:, 2] >= 0.5) & (positions[:, 2] <= 1.5)).all()
    assert scene.is_free(positions[:, :2]).all()
    # Against the geometry itself: vertical faces that reach camera height stay away.
    for surface in scene.surfaces:
        corners = surface.corners
        if abs(surface.normal[2]) > 0.5 or corners[:, 2].min() > 1.9 or surface.glow:
            continue
        start, end = corners[0, :2], corners[1, :2]
        along = end - start
        fraction = np.clip((positions[:, :2] - start) @ along / (along @ along), 0, 1)
        gap = np.linalg.norm(positions[:, :2] - start - fraction[:, None] * along, axis=1)
        assert gap.min() > CLEARANCE - 0.1
    for pose in poses:
        assert -pose.rotation[2, 1] > np.cos(np.radians(16))  # image up is about map up
    # Several metres of ground are covered, in every direction.
    assert (np.ptp(positions[:, :2], axis=0) > 2.0).all()
    assert sample_trajectory(scene, config)[7].to_tum() == poses[7].to_tum()
    other = sample_trajectory(scene, dataclasses.replace(config, trajectory_seed=5))
    assert pose_error(other[7], poses[7])[0] > 1e-3


def test_a_loop_is_smooth_and_closes() -> None:
    config = small(seed=1, frames=60)
    poses = sample_trajectory(layout(config), config)
    steps = [pose_error(a, b) for a, b in zip(poses, [*poses[1:], poses[0]], strict=True)]
    metres = np.array([step[0] for step in steps])
    assert metres.max() < 0.8
    assert metres.sum() > 8.0
    assert np.median([step[1] for step in steps[:-1]]) < 12
    assert max(step[1] for step in steps[:-1]) < 25


def test_the_path_does_not_depend_on_the_change() -> None:
    reference = sample_trajectory(layout(small(seed=3)), small(seed=3))
    for change in ('moved', 'removed'):
        config = small(seed=3, change=change)
        poses = sample_trajectory(layout(config), config)
        for a, b in zip(reference, poses, strict=True):
            assert a.to_tum() == b.to_tum()


def test_odometry_drifts_slowly() -> None:
    config = small(seed=1, frames=100)
    poses = sample_trajectory(layout(config), config)
    odometry = drifting_odometry(config, poses)
    bases = [pose @ BASE_FROM_CAMERA.inverse() for pose in poses]
    assert odometry[0].to_tum() == [0, 0, 0, 0, 0, 0, 1]
    for index in range(1, 100):
        true_step = bases[index - 1].inverse() @ bases[index]
        step = odometry[index - 1].inverse() @ odometry[index]
        metres, degrees = pose_error(step, true_step)
        assert metres < 0.08 * np.linalg.norm(true_step.translation) + 1e-9
        assert degrees < 1.5
    ends = [bases[0].inverse() @ base for base in bases]
    assert max(pose_error(a, b)[0] for a, b in zip(odometry, ends, strict=True)) > 0.02


def test_people_come_into_view_but_not_into_the_camera() -> None:
    config = small(seed=1, frames=40, people=3)
    scene = photographic(small(seed=1))
    poses = sample_trajectory(scene, config)
    people = People(config, poses)
    seen = []
    for index in range(0, 40, 4):
        surfaces = people.surfaces(index)
        camera = poses[index].translation
        assert all(
            np.linalg.norm((s.corners - camera)[:, :2], axis=1).min() > 0.3 for s in surfaces
        )
        lighting = make_lighting('day')
        rng = np.random.default_rng(0)
        rendered = render(scene, config.camera, poses[index], lighting, rng, surfaces)
        seen.append((rendered.surface_idx >= len(scene.surfaces)).mean())
    assert np.max(seen) > 0.03
    assert np.mean(np.array(seen) > 0) > 0.3
    assert np.max(seen) < 0.8


# -- pictures --------------------------------------------------------------------------------


def test_frames_are_deterministic_and_carry_the_truth() -> None:
    config = small(seed=1, frames=3)
    scene = photographic(small(seed=1))
    first = list(rendered_frames(config, scene))
    second = list(rendered_frames(config, scene))
    assert len(first) == 3
    for (a, _), (b, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.stamp_ns == b.stamp_ns
        assert a.camera == config.camera
        assert a.map_from_camera is not None
    stamps = [frame.stamp_ns for frame, _ in first]
    assert [stamp - stamps[0] for stamp in stamps] == [0, 500_000_000, 1_000_000_000]


def test_motion_blur_softens_but_keeps_the_light() -> None:
    scene = photographic(small(seed=1, lighting='night'))
    # 30 images of a lap in 3 s: running, so that the long exposure at night shows.
    config = small(seed=1, lighting='night', rate_hz=10.0)
    sharp, soft = (
        [frame.image for _, (frame, _) in zip(range(3), rendered_frames(c, scene), strict=False)]
        for c in (config, dataclasses.replace(config, motion_blur=True))
    )
    for a, b in zip(sharp, soft, strict=True):
        assert abs(float(a.mean()) - float(b.mean())) < 2
        along = [
            np.abs(np.diff(cv2.blur(image.astype(float), (1, 5)), axis=1)).mean()
            for image in (a, b)
        ]
        assert along[1] < 0.97 * along[0]


@pytest.mark.parametrize('kind', ['loop', 'lawnmower', 'random'])
def test_very_short_logs_have_poses_too(kind: str) -> None:
    scene = layout(small(seed=0))
    for count in (1, 2, 3):
        config = small(seed=0, frames=count, trajectory=kind, people=1)
        poses = sample_trajectory(scene, config)
        assert len(poses) == count
        People(config, poses).surfaces(count - 1)


def root_sift(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    make: Any = cv2.SIFT_create  # type: ignore[attr-defined]
    keypoints, descriptors = make(1500).detectAndCompute(image, None)
    descriptors = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))
    return np.array([keypoint.pt for keypoint in keypoints]), descriptors


def test_neighbouring_day_frames_match_and_night_is_harder() -> None:
    """Mutual ratio-tested RootSIFT matches, checked with the true epipolar geometry."""
    config = SimulationConfig(seed=1, frames=60)
    camera = config.camera
    day = photographic(small(seed=1))
    night = photographic(small(seed=1, lighting='night'))
    poses = sample_trajectory(day, config)

    def picture(scene: Scene, index: int, lighting: str) -> np.ndarray:
        rng = np.random.default_rng([index, lighting == 'day'])
        return render(scene, camera, poses[index], make_lighting(lighting), rng).image

    def matches(a: np.ndarray, b: np.ndarray, i: int, j: int) -> tuple[int, float]:
        (points_a, descriptors_a), (points_b, descriptors_b) = root_sift(a), root_sift(b)
        similarity = descriptors_a @ descriptors_b.T
        best, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
        gap = np.sqrt(np.maximum(0, 2 + 2 * np.partition(-similarity, 1, axis=1)[:, :2]))
        good = (back[best] == np.arange(len(best))) & (gap[:, 0] < 0.8 * gap[:, 1])
        b_from_a = poses[j].inverse() @ poses[i]
        rays_a = np.c_[camera.normalize(points_a[good]), np.ones(good.sum())]
        rays_b = np.c_[camera.normalize(points_b[best[good]]), np.ones(good.sum())]
        lines = np.cross(b_from_a.translation, rays_a @ b_from_a.rotation.T)
        distance = np.abs((lines * rays_b).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)
        right = distance * camera.fx < 2.0
        return int(right.sum()), float(right.mean())

    day_count, night_count = 0, 0
    for index in (4, 20, 36):
        a, b = picture(day, index, 'day'), picture(day, index + 1, 'day')
        dark = picture(night, index + 1, 'night')
        count, share = matches(a, b, index, index + 1)
        assert count > 150
        assert share > 0.9
        day_count += count
        night_count += matches(a, dark, index, index + 1)[0]
        assert dark.mean() < 0.7 * b.mean()
        assert 80 < b.mean() < 150
        assert b.std() > 20
    assert day_count > 750
    assert 10 < night_count < 0.5 * day_count
