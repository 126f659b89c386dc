"""Options of the localizer node: the only home of their defaults.

config/localizer.yaml, the ROS parameters and docs/reference/parameters.md are compared with
this dataclass by tests. Options marked read-only describe the structure of the node; they can be
set while the node is unconfigured and take effect when it is configured.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from d2s_ros.config import option, validate
from d2s_ros.errors import ConfigError
from d2s_ros.localization.limits import Limits
from d2s_ros.ros.camera_names import CameraNames, check_cameras, check_extrinsic, names_of_rig
from d2s_ros.ros.localizer_parameters import SHOWN_LIMITS, LocalizerParameters
from d2s_ros.ros.names import clean_names

_FRAMES = ('map_frame', 'odom_frame', 'base_frame', 'camera_frame', 'frame_prefix')


@dataclass(frozen=True)
class LocalizerNodeConfig:
    """Options of the localizer node; each is a ROS parameter of the same name."""

    #: Names that are no parameters, with where what they mean is set.
    ELSEWHERE: ClassVar[dict[str, str]] = {
        f'localizer.{limit.name}': f'{limit.name} is a field of Limits now: put it into the file '
        'that localizer.limits_file names'
        for limit in dataclasses.fields(Limits)
        if limit.name not in SHOWN_LIMITS
    }

    autostart: bool = option(
        True,
        'Configure and activate without a lifecycle manager; false where Nav2 or launch does it.',
        read_only=True,
    )

    bond_heartbeat_period: float = option(
        0.1,
        "Heartbeats of the bond to Nav2's lifecycle manager while the node is active and autostart "
        'is false; 0 opens none. Needs the package bond.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
        read_only=True,
    )

    map: str = option('', 'Folder of the D2S map; must be given.', read_only=True)
    map_check_period: float = option(
        1.0,
        'How often to look for a new map version and load it; 0 never looks.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
        read_only=True,
    )
    device: str = option(
        'auto',
        'Where the network runs; auto takes a GPU if there is one.',
        choices=('auto', 'cpu', 'cuda'),
        read_only=True,
    )
    allow_cpu_fallback: bool = option(
        False, 'Continue on the CPU when the GPU runs out of memory, instead of an error.'
    )
    precision: str = option(
        'auto',
        'Arithmetic of SuperPoint; auto takes int8 where the CPU has VNNI, else the '
        'compiled network in float32. With fp32, '
        'search and network are in float32 too.',
        choices=('auto', 'fp32', 'int8'),
        read_only=True,
    )
    target_rate: float = option(
        0.0,
        'Rate to hold with fewer keypoints or a smaller image where needed; 0 always does all.',
        unit='Hz',
        minimum=0.0,
        maximum=1000.0,
    )
    threads: int = option(
        0,
        'CPU threads that localizing may use; 0 leaves one core to the robot.',
        minimum=0,
        maximum=1024,
        read_only=True,
    )
    weights: str = option(
        '', 'Weight file of network features; empty where the map needs none.', read_only=True
    )

    image_topic: str = option(
        '/camera/image_raw', 'Base name of the image topic, without /compressed.', read_only=True
    )
    camera_info_topic: str = option(
        '', 'Topic of the calibration; empty: camera_info beside the image topic.', read_only=True
    )
    image_transport: str = option(
        'auto',
        'Image transport; auto takes what is published, raw before compressed.',
        choices=('auto', 'raw', 'compressed'),
        read_only=True,
    )
    rectified: bool = option(
        False,
        'The images are rectified: use P of camera_info without distortion, not K and D.',
        read_only=True,
    )
    camera_info_timeout: float = option(
        0.1,
        'How long an image waits for its camera_info of the same stamp.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
    )

    rig_image_topics: tuple[str, ...] = option(
        (),
        'Image topics of the further cameras of the robot, five at most, as image_topic; all '
        'cameras are localized together. Where they are is looked up in TF.',
        read_only=True,
    )
    rig_camera_info_topics: tuple[str, ...] = option(
        (),
        'Topics of their calibrations, one for each; empty: camera_info beside each image topic.',
        read_only=True,
    )
    rig_tolerance: float = option(
        0.02,
        'Images of several cameras whose stamps differ by less show one moment.',
        unit='s',
        minimum=0.0,
        maximum=1.0,
        read_only=True,
    )
    rig_wait: float = option(
        0.1,
        'How long an image waits for those of the other cameras.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
        read_only=True,
    )

    map_frame: str = option('', "Name of the map frame; empty: the map's own.", read_only=True)
    odom_frame: str = option('odom', 'Name of the odometry frame.', read_only=True)
    base_frame: str = option('base_link', 'Name of the robot frame.', read_only=True)
    camera_frame: str = option(
        '',
        "Name of the camera's optical frame; empty: the frame_id of the images.",
        read_only=True,
    )
    frame_prefix: str = option(
        '',
        'Put before odom_frame and base_frame, such as robot1/ with several robots.',
        read_only=True,
    )
    tf_mode: str = option(
        'auto',
        'Transform to broadcast; auto: map_to_odom where odom->base->camera is known, map_to_base '
        'where only base->camera is, else map_to_camera.',
        choices=('auto', 'none', 'map_to_camera', 'map_to_base', 'map_to_odom'),
        read_only=True,
    )
    pose_frame: str = option(
        'auto',
        'Body whose pose is published; auto: base_frame once its transform to the camera is '
        'known, the camera before.',
        choices=('auto', 'base', 'camera'),
        read_only=True,
    )
    base_from_camera: tuple[float, ...] = option(
        (),
        'Pose of the camera in base_frame, tx ty tz qx qy qz qw; empty: looked up in TF.',
        read_only=True,
    )
    transform_tolerance: float = option(
        0.5,
        'map->odom is stamped this much after the image, so that others need not extrapolate.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
    )
    transform_rate: float = option(
        20.0,
        'map->odom of the last pose is sent again so often while images are refused, so that '
        'others find it at the present; 0 sends it with localized images only.',
        unit='Hz',
        minimum=0.0,
        maximum=200.0,
        read_only=True,
    )
    transform_hold: float = option(
        10.0,
        'How long map->odom is sent again after the last localized image, while odometry goes on; '
        'then it ends with an ERROR.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    transform_timeout: float = option(
        0.1,
        'How long a localized image waits for the odometry transform of its stamp.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
    )
    transform_cache: float = option(
        10.0,
        'How much history of transforms is kept.',
        unit='s',
        minimum=0.1,
        maximum=600.0,
        read_only=True,
    )

    time_jump_threshold: float = option(
        1.0,
        'A stamp this much before the last one resets the node (bag loop); a smaller step back '
        'refuses the image.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    max_future: float = option(
        1.0,
        'Images stamped further than this in the future are refused; 0 accepts all.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    max_image_age: float = option(
        0.0,
        'Images older than this are refused; 0 accepts all, as bags played without their clock '
        'need.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )

    localizer: LocalizerParameters = field(default_factory=LocalizerParameters)

    max_speed: float = option(
        0.0,
        'Fastest the camera moves; a pose that would need more is held back until a second one '
        'agrees. 0 switches this off, as for photographs taken here and there.',
        unit='m/s',
        minimum=0.0,
        maximum=1000.0,
    )
    max_turn_rate: float = option(
        180.0,
        'Fastest the camera turns; used with max_speed.',
        unit='deg/s',
        minimum=0.0,
        maximum=36000.0,
    )
    odometry_drift: float = option(
        0.1,
        'Error of odometry as a share of its motion; where odometry is known it is used instead '
        'of max_speed.',
        minimum=0.0,
        maximum=10.0,
    )
    max_camera_turn: float = option(
        2.0,
        'A camera that turns by more than this where odometry reports no turn is taken for turned '
        'on its mount: no pose until the robot has driven on and shown that it was the robot. '
        'Needs odometry over TF; 0 switches this off.',
        unit='deg',
        minimum=0.0,
        maximum=180.0,
    )
    fuse_odometry: bool = option(
        False,
        'Publish what images and odometry tell together: smoother and more exact, but not for a '
        'filter that takes odometry in as well. Set odometry_drift to what the odometry is good '
        'for. Needs odometry over TF.',
    )
    tracking_seconds: float = option(
        2.0,
        'How long an image that does not prove its pose alone may lean on the last one that did, '
        'moved on by odometry (or max_speed). 0 switches this off.',
        unit='s',
        minimum=0.0,
        maximum=60.0,
    )

    alert_limit: float = option(
        0.0,
        'Largest protection level of a published pose: a pose whose true position may be further '
        'away is refused. 0 publishes every pose; maps of unknown scale have no limit.',
        unit='m',
        minimum=0.0,
        maximum=1000.0,
    )
    lost_after: int = option(
        10,
        'Consecutive refusals after which diagnostics say ERROR lost; fewer are a WARN.',
        minimum=1,
        maximum=100000,
    )
    warn_no_image: float = option(
        2.0, 'WARN when no image came for this long.', unit='s', minimum=0.0, maximum=3600.0
    )
    error_no_image: float = option(
        10.0, 'ERROR when no image came for this long.', unit='s', minimum=0.0, maximum=3600.0
    )
    warn_latency: float = option(
        1.0,
        'WARN when the median time from receiving an image to its pose is longer.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    warn_drop_share: float = option(
        0.9, 'WARN when more than this share of the images is dropped.', minimum=0.0, maximum=1.0
    )
    diagnostics_period: float = option(
        1.0,
        'Period of /diagnostics.',
        unit='s',
        minimum=0.05,
        maximum=60.0,
        read_only=True,
    )

    path_length: int = option(
        1000, 'Poses kept for d2s/path.', minimum=1, maximum=100000, read_only=True
    )
    debug_image_size: int = option(
        800, 'Longest side of d2s/debug_image.', unit='px', minimum=64, maximum=8192
    )

    def __post_init__(self) -> None:
        validate(self)
        clean_names(self, paths=('map', 'weights'), frames=_FRAMES)
        check_extrinsic(self.base_from_camera)
        if self.error_no_image < self.warn_no_image:
            raise ConfigError(
                f'error_no_image is {self.error_no_image}, it must be at least warn_no_image '
                f'({self.warn_no_image})'
            )
        if self.fuse_odometry and self.tf_mode not in ('auto', 'map_to_odom', 'none'):
            raise ConfigError(
                f'fuse_odometry needs odometry, which tf_mode {self.tf_mode} does not look up; use '
                'auto, map_to_odom or none'
            )
        if self.fuse_odometry and self.pose_frame == 'camera':
            raise ConfigError('fuse_odometry is of the robot: pose_frame must be auto or base')
        check_cameras(self.cameras)
        for name in ('image_topic', 'odom_frame', 'base_frame'):
            if not getattr(self, name):
                raise ConfigError(f'{name} must not be empty')

    @property
    def odom(self) -> str:
        """The odometry frame with its prefix."""
        return self.frame_prefix + self.odom_frame

    @property
    def base(self) -> str:
        """The robot frame with its prefix."""
        return self.frame_prefix + self.base_frame

    @property
    def cameras(self) -> tuple[CameraNames, ...]:
        """The topics of all cameras, that of image_topic first."""
        return (
            CameraNames(self.image_topic, self.camera_info_topic),
            *names_of_rig(self.rig_image_topics, self.rig_camera_info_topics),
        )
