"""The topics of the cameras of one robot, as they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2s_ros.errors import ConfigError
from d2s_ros.geometry.transforms import RigidTransform

#: Most cameras of one robot.
MAX_CAMERAS = 6


@dataclass(frozen=True)
class CameraNames:
    """The topics of one camera as they were given.

    Attributes:
        image_topic: With or without the suffix of a transport.
        camera_info_topic: Of the calibration; empty: beside the image topic.
    """

    image_topic: str
    camera_info_topic: str = ''

    @property
    def base_image_topic(self) -> str:
        """The image topic without the suffix of a transport."""
        return self.image_topic.removesuffix('/compressed')

    @property
    def info_topic(self) -> str:
        """The calibration topic: as given, or the sibling of the image topic."""
        if self.camera_info_topic:
            return self.camera_info_topic
        folder, slash, _ = self.base_image_topic.rpartition('/')
        return f'{folder}{slash}camera_info'


def names_of_rig(images: Sequence[str], infos: Sequence[str]) -> tuple[CameraNames, ...]:
    """Return the topics of further cameras.

    Args:
        images: Image topics.
        infos: Topics of their calibrations, one for each or none.

    Raises:
        ConfigError: some calibrations are named and some are not.
    """
    if infos and len(infos) != len(images):
        raise ConfigError(
            f'rig_camera_info_topics has {len(infos)} topics, rig_image_topics {len(images)}: '
            'give one for each, or none'
        )
    chosen = infos or ('',) * len(images)
    return tuple(CameraNames(*pair) for pair in zip(images, chosen, strict=True))


def check_cameras(cameras: Sequence[CameraNames]) -> None:
    """Check that cameras are not too many, and different ones.

    Raises:
        ConfigError: they are not.
    """
    if len(cameras) > MAX_CAMERAS:
        raise ConfigError(
            f'rig_image_topics names {len(cameras) - 1} cameras, {MAX_CAMERAS - 1} are possible '
            'beside that of image_topic'
        )
    names = [camera.base_image_topic for camera in cameras]
    if '' in names[1:] or len(set(names)) < len(names):
        raise ConfigError(
            f'the image topics {", ".join(names)} must be of different cameras, and not empty'
        )


def check_extrinsic(values: Sequence[float]) -> None:
    """Check that tx ty tz qx qy qz qw are a pose; none at all are.

    Raises:
        ConfigError: they are not.
    """
    if values and len(values) != 7:
        raise ConfigError(
            f'base_from_camera needs 7 numbers tx ty tz qx qy qz qw, found {len(values)}'
        )
    if values:
        try:
            RigidTransform.from_tum(values)
        except Exception as error:
            raise ConfigError(f'base_from_camera: {error}') from error
