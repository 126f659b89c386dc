"""Simulated camera logs: as frames in memory, or written as a rosbag2 folder with its truth."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from d2s_ros.config import to_dict
from d2s_ros.data.frames import Frame
from d2s_ros.geometry.transforms import (
    RigidTransform,
    interpolate,
    rotation_from_vector,
    vector_from_rotation,
)
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.lighting import Lighting, make_lighting
from d2s_ros.simulation.log_writer import TUM_HEADER, LogWriter, tum_line
from d2s_ros.simulation.rendering import RenderedImage, render
from d2s_ros.simulation.scene import Scene, build_scene
from d2s_ros.simulation.trajectories import BODY_FROM_CAMERA, People, sample_trajectory

#: Time of the first image: a round number of seconds.
START_NS = 1_700_000_000 * 1_000_000_000
MAP_FRAME = 'map'
ODOM_FRAME = 'odom'
BASE_FRAME = 'base_link'
#: Where the camera sits on the robot: 0.2 m ahead of the base and 0.3 m above it.
BASE_FROM_CAMERA = RigidTransform(BODY_FROM_CAMERA.rotation, np.array([0.2, 0.0, 0.3]))
#: Largest number of sub-exposures of a blurred image.
_MAX_SUBEXPOSURES = 8


def frames(config: SimulationConfig) -> Iterator[Frame]:
    """Yield the images of a simulated log with cameras and exact poses.

    The image is what the sensor gives, without the loss of JPEG.

    Raises:
        InputError: if the photographs for the textures are missing.
    """
    for frame, _ in rendered_frames(config):
        yield frame


def rendered_frames(
    config: SimulationConfig, scene: Scene | None = None, camera_index: int = 0
) -> Iterator[tuple[Frame, RenderedImage]]:
    """Yield as `frames` does, each with its depth and surface ids.

    Args:
        config: What to simulate.
        scene: `build_scene(config)`, where the caller has it already.
        camera_index: Which camera of the robot, below `config.cameras`; poses are of this one.
    """
    scene = scene or build_scene(config)
    poses = sample_trajectory(scene, config)
    people = People(config, poses)
    lighting = make_lighting(config.lighting)
    camera = config.camera
    first_from_camera = base_from_camera(config, 0).inverse() @ base_from_camera(
        config, camera_index
    )
    if camera_index:
        poses = [pose @ first_from_camera for pose in poses]
    for index, pose in enumerate(poses):
        key = [config.seed, int(config.other_place), 13, config.trajectory_seed, index]
        key += [camera_index] if camera_index else []
        rng = np.random.default_rng(key)
        blur = _blur(config, scene, poses, index, lighting) if config.motion_blur else ()
        rendered = render(scene, camera, pose, lighting, rng, people.surfaces(index), blur)
        stamp_ns = stamp_of(config, index)
        yield Frame(str(stamp_ns), stamp_ns, rendered.image, camera, pose), rendered


def base_from_camera(config: SimulationConfig, index: int) -> RigidTransform:
    """Return where a camera is on the robot: all of them evenly around its middle, looking out."""
    turn = RigidTransform(
        rotation_from_vector([0.0, 0.0, 2 * np.pi * index / config.cameras]), np.zeros(3)
    )
    return turn @ BASE_FROM_CAMERA if index else BASE_FROM_CAMERA


def camera_name(index: int) -> str:
    """Return the namespace of the topics of a camera; its frame is NAME_optical_frame."""
    return f'camera_{index + 1}' if index else 'camera'


def stamp_of(config: SimulationConfig, index: int) -> int:
    """Return the acquisition time of an image in nanoseconds."""
    return START_NS + round(index * 1e9 / config.rate_hz)


def simulate_log(
    config: SimulationConfig,
    out_dir: str | os.PathLike[str],
    progress: bool = True,
    scene: Scene | None = None,
) -> Path:
    """Write a simulated log: a rosbag2 folder with `groundtruth_tum.txt` and `simulation.json`.

    Args:
        config: What to simulate.
        out_dir: The folder to make. It appears when it is complete.
        progress: Whether to show a progress bar.
        scene: `build_scene(config)`, where the caller has it already.

    Returns:
        The folder.

    Raises:
        UsageError: if the folder exists and is not empty.
        InputError: if it cannot be written, or photographs for the textures are missing.
    """
    with LogWriter(out_dir, config.storage) as log:
        scene = scene or build_scene(config)
        truth = [TUM_HEADER]
        odometry = _odometry_messages(log, config, scene) if config.odometry else iter(())
        pending = next(odometry, None)
        bar = tqdm(
            zip(
                *(rendered_frames(config, scene, index) for index in range(config.cameras)),
                strict=True,
            ),
            total=config.frames,
            desc='simulate',
            unit='frame',
            disable=not progress,
        )
        for shots in bar:
            frame = shots[0][0]
            assert frame.map_from_camera is not None
            stamp, pose = frame.stamp_ns, frame.map_from_camera
            while pending is not None and pending[1] <= stamp:
                log.write(*pending)
                pending = next(odometry, None)
            for index, (one, rendered) in enumerate(shots):
                _write_image(log, config, camera_name(index), one)
                if config.depth:
                    name = camera_name(index)
                    message = log.depth_image(stamp, f'{name}_optical_frame', rendered.depth)
                    log.write(f'/{name}/aligned_depth/image_raw', stamp, message)
            if config.poses:
                message = log.pose_stamped(stamp, MAP_FRAME, pose)
                log.write('/ground_truth/pose', stamp, message)
            truth.append(tum_line(stamp, pose))
        (log.folder / 'groundtruth_tum.txt').write_text(''.join(truth), encoding='utf-8')
        text = json.dumps(to_dict(config), indent=2) + '\n'
        (log.folder / 'simulation.json').write_text(text, encoding='utf-8')
    return Path(out_dir)


def _write_image(log: LogWriter, config: SimulationConfig, name: str, frame: Frame) -> None:
    """Write an image and its calibration."""
    assert frame.image is not None
    assert frame.camera is not None
    stamp, frame_id = frame.stamp_ns, f'{name}_optical_frame'
    log.write(f'/{name}/camera_info', stamp, log.camera_info(stamp, frame_id, frame.camera))
    if config.compressed:
        image = log.compressed_image(stamp, frame_id, frame.image, config.jpeg_quality)
        log.write(f'/{name}/image_raw/compressed', stamp, image)
    else:
        log.write(f'/{name}/image_raw', stamp, log.image(stamp, frame_id, frame.image))


def drifting_odometry(
    config: SimulationConfig, poses: Sequence[RigidTransform]
) -> list[RigidTransform]:
    """Return odom_from_base (one per pose): true motion with errors that add up.

    About 2 % of the distance and 1 degree per 10 m, as wheels or visual odometry have.
    """
    rng = np.random.default_rng([config.seed, 14, config.trajectory_seed])
    camera_from_base = BASE_FROM_CAMERA.inverse()
    scale = 1 + 0.02 * rng.standard_normal()
    bias = np.radians(0.1) * rng.standard_normal(3) * [0.2, 0.2, 1.0]
    bases = [pose @ camera_from_base for pose in poses]
    odometry = [RigidTransform.identity()]
    for before, after in itertools.pairwise(bases):
        step = before.inverse() @ after
        length = float(np.linalg.norm(step.translation))
        translation = scale * step.translation + 0.005 * length * rng.standard_normal(3)
        error = bias * length + np.radians(0.15) * np.sqrt(length) * rng.standard_normal(3)
        rotation = step.rotation @ rotation_from_vector(error)
        odometry.append(odometry[-1] @ RigidTransform(rotation, translation))
    return odometry


def _odometry_messages(
    log: LogWriter, config: SimulationConfig, scene: Scene
) -> Iterator[tuple[str, int, Any]]:
    """Yield (topic, stamp, message) in order of time, at least ten odometries a second."""
    static = log.transforms(
        START_NS,
        [
            (BASE_FRAME, f'{camera_name(index)}_optical_frame', base_from_camera(config, index))
            for index in range(config.cameras)
        ],
    )
    yield '/tf_static', START_NS, static
    odometry = drifting_odometry(config, sample_trajectory(scene, config))
    parts = max(1, int(np.ceil(10 / config.rate_hz)))
    for index, pose in enumerate(odometry):
        following = odometry[min(index + 1, len(odometry) - 1)]
        step = pose.inverse() @ following
        velocity = np.concatenate([step.translation, vector_from_rotation(step.rotation)])
        last = index == len(odometry) - 1
        for part in range(1 if last else parts):
            begin, end = stamp_of(config, index), stamp_of(config, index + 1)
            stamp = begin + (end - begin) * part // parts
            here = interpolate(pose, following, part / parts)
            twist = velocity * config.rate_hz
            message = log.odometry(stamp, ODOM_FRAME, BASE_FRAME, here, twist)
            yield '/odom', stamp, message
            yield '/tf', stamp, log.transforms(stamp, [(ODOM_FRAME, BASE_FRAME, here)])


def _blur(
    config: SimulationConfig,
    scene: Scene,
    poses: Sequence[RigidTransform],
    index: int,
    lighting: Lighting,
) -> tuple[RigidTransform, ...]:
    """Poses during the exposure, centred on the frame's own pose."""
    if len(poses) < 2:
        return ()
    before, after = poses[max(index - 1, 0)], poses[min(index + 1, len(poses) - 1)]
    span_s = (min(index + 1, len(poses) - 1) - max(index - 1, 0)) / config.rate_hz
    # Dark scenes are exposed as long as the sensor allows; bright ones about as long as 1.
    duration = lighting.exposure_s * (lighting.max_exposure if config.lighting != 'day' else 1.5)
    step = before.inverse() @ after
    fraction = duration / span_s
    pixels = (
        fraction
        * config.camera.fx
        * (
            float(np.linalg.norm(vector_from_rotation(step.rotation)))
            + float(np.linalg.norm(step.translation)) / 2.0
        )
    )
    count = int(np.clip(np.ceil(pixels / 0.7), 1, _MAX_SUBEXPOSURES))
    if count == 1:
        return ()
    offsets = (np.arange(count) + 0.5) / count - 0.5
    moves = [interpolate(RigidTransform.identity(), step, fraction * offset) for offset in offsets]
    return tuple(poses[index] @ move for move in moves)
