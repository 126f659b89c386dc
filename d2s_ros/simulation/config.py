"""Options of the simulator: the only home of their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from d2s_ros.config import option, validate
from d2s_ros.geometry.cameras import Camera

TRAJECTORIES = ('loop', 'lawnmower', 'random')
LIGHTINGS = ('day', 'dusk', 'night')
CHANGES = ('none', 'moved', 'removed')
DISTORTIONS = ('none', 'plumb_bob', 'equidistant')
STORAGES = ('sqlite3', 'mcap')


@dataclass(frozen=True)
class SimulationConfig:
    """What to simulate: the place, what happens in it, the camera and what is logged."""

    seed: int = option(0, 'Seed of the building: layout, textures, furniture.', minimum=0)
    frames: int = option(60, 'Number of images.', minimum=1)
    trajectory: str = option('loop', 'How the camera moves.', choices=TRAJECTORIES)
    trajectory_seed: int = option(
        0, 'Seed of the motion and of the sensor noise; a query log uses another one.', minimum=0
    )
    lighting: str = option('day', 'Time of day.', choices=LIGHTINGS)
    change: str = option(
        'none', 'What happened to about a third of the furniture and posters.', choices=CHANGES
    )
    other_place: bool = option(
        False, 'Another building of the same family: same photographs, different layout.'
    )
    people: int = option(0, 'Number of people who walk through.', minimum=0, maximum=20)
    width: int = option(640, 'Image width.', unit='px', minimum=16, maximum=8192)
    height: int = option(480, 'Image height.', unit='px', minimum=16, maximum=8192)
    distortion: str = option('none', 'Lens distortion model.', choices=DISTORTIONS)
    rate_hz: float = option(2.0, 'Images per second.', unit='Hz', minimum=0.01, maximum=1000.0)
    motion_blur: bool = option(False, 'Blur images by the motion during the exposure.')
    compressed: bool = option(True, 'Log JPEG CompressedImage; otherwise raw mono8 Image.')
    jpeg_quality: int = option(92, 'JPEG quality.', minimum=1, maximum=100)
    poses: bool = option(
        True, 'Log /ground_truth/pose; otherwise the truth is in the text file only.'
    )
    cameras: int = option(
        1,
        'Cameras on the robot, evenly around it, the further ones below /camera_2, /camera_3, ...; '
        'where they are is in /tf_static, with odometry.',
        minimum=1,
        maximum=6,
    )
    odometry: bool = option(False, 'Log drifting odometry and its transforms.')
    depth: bool = option(False, 'Log depth images that are registered to those of the camera.')
    tag_size: float = option(
        0.0,
        'Edge of AprilTags (36h11) that hang on walls; 0: none do.',
        unit='m',
        minimum=0.0,
        maximum=0.5,
    )
    storage: str = option('sqlite3', 'Storage of the rosbag2 log.', choices=STORAGES)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def camera(self) -> Camera:
        """The simulated camera: about 70 degrees wide, 95 with the equidistant lens."""
        width, height = self.width, self.height
        # Off-centre on purpose: a principal point in the middle hides mistakes.
        cx, cy = 0.508 * width - 0.5, 0.491 * height - 0.5
        if self.distortion == 'plumb_bob':
            focal = 0.72 * width
            coefficients: tuple[float, ...] = (-0.28, 0.09, 0.0007, -0.0004, -0.012)
            return Camera('plumb_bob', width, height, focal, focal, cx, cy, coefficients)
        if self.distortion == 'equidistant':
            focal = 0.60 * width
            coefficients = (-0.012, 0.004, -0.002, 0.0003)
            return Camera('equidistant', width, height, focal, focal, cx, cy, coefficients)
        focal = 0.72 * width
        return Camera('pinhole', width, height, focal, focal, cx, cy)
