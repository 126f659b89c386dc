"""Options of the map updater node: the only home of their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from d2s_ros.config import option, validate
from d2s_ros.data.sources import LogOptions
from d2s_ros.ros.names import clean_names


@dataclass(frozen=True)
class MapUpdaterConfig:
    """Options of the map updater node; each is a ROS parameter of the same name."""

    map: str = option('', 'Folder of the D2S map that is updated.', read_only=True)
    log_dir: str = option(
        '', 'Folder of the unlabelled rosbag2 logs to learn from.', read_only=True
    )
    job_dir: str = option(
        '',
        "Folder of log files and reports, one pair for each job; empty: in the map's folder.",
        read_only=True,
    )
    image_topic: str = option(
        '', 'Image topic of the logs; empty: the only one of its type.', read_only=True
    )
    camera_info_topic: str = option(
        '', 'camera_info topic of the logs; empty: the one beside the images.', read_only=True
    )
    calibration: str = option(
        '', "Calibration file to use instead of the logs' camera_info.", read_only=True
    )
    rectified: bool = option(
        False,
        'The images of the logs are rectified: P of camera_info is used, without distortion.',
        read_only=True,
    )
    update_mode: str = option(
        'auto',
        'Whether updates go live: never updated, suggested (what is good enough waits for '
        'd2s/promote_map), or live at once.',
        choices=('frozen', 'suggest', 'auto'),
        read_only=True,
    )
    recipe: str = option(
        'verified',
        'How frames are labelled: checked by the pose the labels imply, or as published.',
        choices=('verified', 'paper'),
    )
    device: str = option('auto', 'Where networks are trained.', choices=('auto', 'cpu', 'cuda'))
    weights: str = option(
        '', 'Weight file of network features; empty where the map needs none.', read_only=True
    )
    niceness: int = option(
        10, 'Priority of the updating process; 19 is the lowest.', minimum=0, maximum=19
    )
    threads: int = option(1, 'Threads of the updating process.', minimum=1, maximum=256)
    max_keyframes: int = option(200, 'Most frames used of one log.', minimum=1, maximum=100000)
    min_free_megabytes: int = option(
        500, 'Updates are refused with less free disk.', unit='MB', minimum=0, maximum=10**9
    )
    status_period: float = option(
        1.0, 'How often a running update is looked at.', unit='s', minimum=0.05, maximum=60.0
    )

    def __post_init__(self) -> None:
        validate(self)
        clean_names(self, paths=('map', 'log_dir', 'job_dir', 'weights', 'calibration'))

    def log_options(self) -> LogOptions:
        """Return how the logs are read."""
        return LogOptions(
            self.image_topic or None,
            self.camera_info_topic or None,
            self.calibration or None,
            self.rectified,
        )
