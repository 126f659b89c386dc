"""A map that was made with one camera, asked with others.

    python benchmarks/second_camera.py [--work DIR] [--seeds 21 23 24] [--record]

Simulated buildings are mapped with a camera of 640 by 480 px. Then pictures are taken from the same
random places with that camera and with three others, and localized. Another camera is compared with
a map that it made itself, from where the first camera made its own, over the pictures that both
maps localize: the pictures of one camera have another resolution than those of another, so its
poses are less exact in any map. It is also compared with the camera of the map, over the places
from which the pictures of both are localized. Errors are medians over the pictures of all
buildings.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.lighting import make_lighting
from d2s_ros.simulation.rendering import render
from d2s_ros.simulation.scene import Scene, build_scene
from d2s_ros.simulation.simulate import stamp_of
from d2s_ros.simulation.trajectories import sample_trajectory
from d2s_ros.threads import set_passive_omp_wait

#: The first one makes the map; of 83, 83, 96 and 115 degrees across.
CAMERAS = {
    'the camera of the map, 640 x 480': Camera('pinhole', 640, 480, 461.0, 461.0, 324.6, 235.2),
    'half the resolution, 320 x 240': Camera('pinhole', 320, 240, 230.5, 230.5, 162.05, 117.35),
    'wider, distorted, 640 x 480': Camera(
        'plumb_bob', 640, 480, 340.0, 340.0, 315.0, 244.0, (-0.16, 0.02, 0.0005, -0.0003, 0.0)
    ),
    'fisheye, 640 x 480': Camera(
        'equidistant', 640, 480, 320.0, 320.0, 322.0, 238.0, (-0.012, 0.004, -0.002, 0.0003)
    ),
}


class Frames(list[Frame]):
    """Frames in memory, as a source."""


def pictures(scene: Scene, config: SimulationConfig, camera: Camera) -> Frames:
    """Return the pictures of a walk with a camera, with exact poses."""
    lighting = make_lighting(config.lighting)
    found = Frames()
    for index, pose in enumerate(sample_trajectory(scene, config)):
        rng = np.random.default_rng([config.seed, 15, config.trajectory_seed, index])
        image = render(scene, camera, pose, lighting, rng).image
        stamp = stamp_of(config, index)
        found.append(Frame(str(stamp), stamp, image, camera, pose))
    return found


def map_of(scene: Scene, config: SimulationConfig, camera: Camera, place: Path) -> Localizer:
    """Return the localizer of the map that a camera makes; what is in the folder is used again."""
    if not (place / 'current').exists():
        options = budget('quick', features=FeatureConfig(name='rootsift', max_keypoints=1500))
        frames = pictures(scene, config, camera)
        build_map(frames, place, options, device='cpu', progress=False)
    return Localizer.from_map(place, device='cpu')


Errors = dict[tuple[int, str], tuple[float, float]]


def errors(localizer: Localizer, frames: Frames, seed: int) -> Errors:
    """Return the errors (m, deg) of the pictures that are published, by building and name."""
    found = {}
    for frame in frames:
        result = localizer.localize(frame.image, frame.camera)
        if result.localized:
            assert result.map_from_camera is not None
            assert frame.map_from_camera is not None
            found[seed, frame.name] = pose_error(result.map_from_camera, frame.map_from_camera)
    return found


def main() -> int:
    """Measure, print, and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, default=Path('second_camera_work'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[21, 23, 24])
    parser.add_argument('--frames', type=int, default=40)
    parser.add_argument('--views', type=int, default=80)
    parser.add_argument('--record', action='store_true')
    args = parser.parse_args()
    started = time.time()
    set_passive_omp_wait()
    in_map: dict[str, Errors] = {name: {} for name in CAMERAS}
    in_own: dict[str, Errors] = {name: {} for name in CAMERAS}
    for seed in args.seeds:
        config = SimulationConfig(seed=seed, frames=args.frames)
        walk = replace(config, frames=args.views, trajectory='random', trajectory_seed=17)
        scene = build_scene(config)
        localizer = None
        for number, (name, camera) in enumerate(CAMERAS.items()):
            frames = pictures(scene, walk, camera)
            own = map_of(scene, config, camera, args.work / str(seed) / f'map_{number}')
            localizer = localizer or own
            in_map[name].update(errors(localizer, frames, seed))
            in_own[name].update(errors(own, frames, seed))
            print(seed, name, len(in_map[name]), _medians(in_map[name], in_own[name]), flush=True)
    asked = args.views * len(args.seeds)
    figures: dict[str, Any] = {}
    table = [
        '| pictures of | published | in a map of its own | median error | in a map of its own '
        '| ratio | to the camera of the map |',
        '|---|---|---|---|---|---|---|',
    ]
    of_first = next(iter(in_map.values()))
    for name in CAMERAS:
        of_map, of_own = in_map[name], in_own[name]
        medians = _medians(of_map, of_own)
        ratio = medians[0][0] / medians[1][0]
        beside = _medians(of_map, of_first)
        to_first = beside[0][0] / beside[1][0]
        by_building = {}
        for seed in args.seeds:
            part = {key: value for key, value in of_map.items() if key[0] == seed}
            two = _medians(part, of_own)
            by_building[str(seed)] = round(two[0][0] / two[1][0], 3)
        figures[name] = {
            'asked': asked,
            'published': len(of_map),
            'published_in_its_own': len(of_own),
            'median_m_deg': medians[0],
            'median_m_deg_in_its_own': medians[1],
            'worst_m': max(metres for metres, _ in of_map.values()),
            'ratio': round(ratio, 3),
            'ratio_by_building': by_building,
            'median_m_deg_of_the_camera_of_the_map': beside[1],
            'ratio_to_the_camera_of_the_map': round(to_first, 3),
        }
        table.append(
            f'| {name} | {len(of_map)} of {asked} | {len(of_own)} of {asked} | '
            f'{_error(medians[0])} | {_error(medians[1])} | {ratio:.2f} | {to_first:.2f} |'
        )
    print('\n'.join(table))
    if args.record:
        print(write_record('second_camera', figures, started, tables={'cameras': table}))
    return 0


def _medians(one: Errors, other: Errors) -> list[list[float]]:
    """Return the median errors (m, deg) of either over the pictures that both have."""
    both = sorted(one.keys() & other.keys())
    return [np.median([found[key] for key in both], axis=0).tolist() for found in (one, other)]


def _error(median: list[float]) -> str:
    return f'{100 * median[0]:.2f} cm, {median[1]:.3f} deg'


if __name__ == '__main__':
    raise SystemExit(main())
