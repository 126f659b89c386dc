"""Camera images of a rosbag2 log with their calibration and, where recorded, their poses.

Needs the Python package rosbags only, no ROS installation.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.bag_camera_infos import CameraInfos
from d2s_ros.data.bag_depth import DepthImages, find_depth
from d2s_ros.data.bag_messages import (
    COMPRESSED_IMAGE,
    clean_frame,
    deserialize,
    peek_stamp_ns,
    stamp_ns,
)
from d2s_ros.data.bag_poses import FoundPoses, PoseSource, find_poses
from d2s_ros.data.bag_storage import open_log
from d2s_ros.data.bag_topics import (
    choose_camera_info,
    choose_image,
    first_message,
    is_video,
)
from d2s_ros.data.frames import Frame
from d2s_ros.data.image_codec import decode_compressed, decode_image
from d2s_ros.data.image_folder import fit_camera
from d2s_ros.data.tum import Trajectory, format_stamp, read_tum
from d2s_ros.errors import BagError, UnsupportedImageError
from d2s_ros.geometry.cameras import Camera

_logger = logging.getLogger(__name__)


class BagSource:
    """A FrameSource over a rosbag2 folder or a single storage file.

    Images are decoded one at a time while iterating; only calibrations and poses are kept in
    memory. A broken image is a frame without image and with an error, a damaged log raises.

    Attributes:
        image_topic: Topic of the images.
        camera_info_topic: Topic of the calibration; None if there is none.
        pose_topic: Where poses come from ('/tf', a topic, a file); None if there are none.
        pose_problem: Why poses that are in the log are not used; empty if nothing is wrong.
        camera_frame: frame_id of the images, without a leading slash.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_topic: str | None = None,
        camera_info_topic: str | None = None,
        pose_topic: str | None = None,
        poses: Trajectory | str | os.PathLike[str] | None = None,
        *,
        camera: Camera | None = None,
        rectified: bool = False,
        partial: bool = False,
        want_poses: bool = True,
    ) -> None:
        """Find the topics and read calibrations and poses.

        Args:
            path: Folder with metadata.yaml, or one storage file (.mcap or .db3, also .zstd).
            image_topic: Topic of sensor_msgs/Image or CompressedImage; found by type if None.
            camera_info_topic: Topic of sensor_msgs/CameraInfo; if None the one beside the images.
            pose_topic: Topic of PoseStamped (of the camera's optical frame),
                PoseWithCovarianceStamped or Odometry, or '/tf'; see `find_poses` for None.
            poses: Trajectory or TUM file of map_from_camera to use instead of the log's poses.
            camera: Calibration to use instead of the log's.
            rectified: The images are rectified: use P of camera_info without distortion.
            partial: Read what is there of a log that is cut off or still being written.
            want_poses: Look for poses in the log; without, frames have none.

        Raises:
            BagError: unreadable logs, logs without images, topics that do not exist or cannot be
                distinguished, a rectified topic whose camera_info has distortion.
        """
        self._path = Path(path)
        self._log = open_log(self._path, partial)
        image = choose_image(self._path, self._log, image_topic)
        self.image_topic = image.name
        self._image_type = image.type
        self._count = image.count
        self._camera = camera
        self._partial = partial
        first = first_message(self._log, image)
        self.camera_frame = '' if first is None else clean_frame(first.header.frame_id)
        if first is not None and not stamp_ns(first.header):
            _logger.warning(
                '%s: images of %s have stamps of zero; the times of receipt are used instead',
                path,
                image.name,
            )
        info = choose_camera_info(
            self._path,
            self._log,
            image.name,
            self.camera_frame,
            camera_info_topic,
            camera is not None,
        )
        self.camera_info_topic = None if info is None else info.name
        self._infos = CameraInfos(self._log, self.camera_info_topic, rectified)
        if camera is None:
            problem = self._infos.rectification_problem(image.name)
            if problem:
                raise BagError(f'{path}: {problem}')
        if partial:
            # The message at the cut may be torn; it is left out.
            messages = self._log.messages([self.image_topic])
            self._count = sum(deserialize(data, image.type) is not None for *_, data in messages)
            if not self._count:
                raise BagError(f'no image of {path} can be read: record it again')
        found = FoundPoses(None)
        if poses is not None:
            trajectory = poses if isinstance(poses, Trajectory) else read_tum(poses)
            name = 'given trajectory' if isinstance(poses, Trajectory) else str(poses)
            found = FoundPoses(PoseSource(name, trajectory.at, None))
        elif want_poses:
            found = find_poses(
                self._path, self._log, self.camera_frame, pose_topic, self._image_stamps
            )
        if found.problem:
            _logger.warning('%s: poses are not used: %s', self._path, found.problem)
        self.pose_problem = found.problem
        self.pose_topic = None if found.source is None else found.source.name
        self._pose_at = None if found.source is None else found.source.at

    @property
    def depth(self) -> DepthImages | None:
        """Depth images with the pixels of the images; None if the log has none."""
        return find_depth(self._log, self.camera_frame)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        names: Counter[str] = Counter()
        for _topic, received_ns, data in self._log.messages([self.image_topic]):
            message = deserialize(data, self._image_type)
            if message is None and self._partial:
                continue
            frame = self._frame(received_ns, message)
            names[frame.name] += 1
            if names[frame.name] > 1:
                # Two images of one time: names must stay unique.
                frame = replace(frame, name=f'{frame.name}_{names[frame.name]}')
            yield frame

    def _frame(self, received_ns: int, message: Any) -> Frame:
        if message is None:
            error = f'the message at {format_stamp(received_ns)} is damaged'
            return Frame(format_stamp(received_ns), received_ns, None, error=error)
        taken_ns = stamp_ns(message.header) or received_ns
        image, camera, error = None, None, ''
        try:
            if self._image_type == COMPRESSED_IMAGE and is_video(str(message.format)):
                error = (
                    f'{self.image_topic} carries packets of a video (format {message.format!r}), '
                    'which are no pictures; record raw images, JPEG or PNG'
                )
            elif self._image_type == COMPRESSED_IMAGE:
                image = decode_compressed(message.data, message.format)
            else:
                image = decode_image(
                    message.encoding,
                    message.height,
                    message.width,
                    message.step,
                    message.is_bigendian,
                    message.data,
                )
        except UnsupportedImageError as problem:
            error = str(problem)
        if image is not None:
            height, width = image.shape[:2]
            if self._camera is not None:
                camera, error = fit_camera(self._camera, width, height)
            else:
                camera, error = self._infos.at(taken_ns, width, height)
        pose = None if self._pose_at is None else self._pose_at(taken_ns)
        return Frame(format_stamp(taken_ns), taken_ns, image, camera, pose, error)

    def _image_stamps(self) -> NDArray[np.int64]:
        """Return the times of all images in ns, without decoding any."""
        return np.array(
            [
                peek_stamp_ns(data) or received
                for _topic, received, data in self._log.messages([self.image_topic])
            ],
            dtype=np.int64,
        )
