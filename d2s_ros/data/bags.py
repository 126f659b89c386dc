"""Camera images of a rosbag2 log with their calibration and, where recorded, their poses.

Needs the Python package rosbags only, no ROS installation.
"""

from __future__ import annotations

import bisect
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.data.bag_storage import Log, Topic, open_log
from d2s_ros.data.calibration import CameraInfoValues
from d2s_ros.data.frames import Frame
from d2s_ros.data.image_codec import decode_compressed, decode_image
from d2s_ros.data.image_folder import fit_camera
from d2s_ros.data.tum import Trajectory, format_stamp, read_tum
from d2s_ros.errors import BagError, CalibrationError, InputError, UnsupportedImageError
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform

_logger = logging.getLogger(__name__)

_IMAGE = 'sensor_msgs/msg/Image'
_COMPRESSED = 'sensor_msgs/msg/CompressedImage'
_CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
_POSE = 'geometry_msgs/msg/PoseStamped'
_POSE_WITH_COVARIANCE = 'geometry_msgs/msg/PoseWithCovarianceStamped'
_ODOMETRY = 'nav_msgs/msg/Odometry'
_TF = 'tf2_msgs/msg/TFMessage'
#: The frame whose poses a map is built from.
MAP_FRAME = 'map'
#: A chain of transforms longer than this has a loop.
_MAX_CHAIN = 100

PoseLookup = Callable[[int], RigidTransform | None]


class BagSource:
    """A FrameSource over a rosbag2 folder or a single .mcap or .db3 file.

    Images are decoded one at a time while iterating; only calibrations and poses are kept in
    memory. A broken image is a frame without image and with an error, a damaged log raises.

    Attributes:
        image_topic: Topic of the images.
        camera_info_topic: Topic of the calibration; None if there is none.
        pose_topic: Where poses come from ('/tf', a topic, a file); None if there are none.
        pose_problem: Why poses that are in the log are not used; empty if nothing is wrong.
        camera_frame: frame_id of the images.
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
    ) -> None:
        """Find the topics and read calibrations and poses.

        Args:
            path: Folder with metadata.yaml, or one .mcap or .db3 file.
            image_topic: Topic of sensor_msgs/Image or CompressedImage; found by type if None.
            camera_info_topic: Topic of sensor_msgs/CameraInfo; if None the one beside the images.
            pose_topic: Topic of PoseStamped (of the camera's optical frame),
                PoseWithCovarianceStamped or Odometry, or '/tf'. If None, the first kind that the
                log has of PoseStamped, PoseWithCovarianceStamped, TF below `map`, Odometry.
            poses: Trajectory or TUM file of map_from_camera to use instead of the log's poses.
            camera: Calibration to use instead of the log's.
            rectified: The images are rectified: use P of camera_info without distortion.
            partial: Read what is there of a log that is cut off or still being written.

        Raises:
            BagError: unreadable logs, logs without images, topics that do not exist or cannot be
                told apart.
        """
        self._path = Path(path)
        self._log = open_log(self._path, partial)
        topics = self._log.topics
        image = _choose_image(self._path, topics, image_topic)
        self.image_topic = image.name
        self._image_type = image.type
        self._count = image.count
        self._camera = camera
        self._partial = partial
        self.camera_info_topic = _choose_camera_info(
            self._path, topics, image.name, camera_info_topic, camera is not None
        )
        self._infos = _CameraInfos(self._log, self.camera_info_topic, rectified)
        self.camera_frame = self._first_frame_id()
        if partial:
            # The message at the cut may be torn; it is left out.
            messages = self._log.messages([self.image_topic])
            self._count = sum(_deserialize(data, image.type) is not None for *_, data in messages)
            if not self._count:
                raise BagError(f'no image of {path} can be read: record it again')
        self.pose_topic: str | None = None
        self.pose_problem = ''
        self._pose_at: PoseLookup = _no_pose
        if poses is not None:
            trajectory = poses if isinstance(poses, Trajectory) else read_tum(poses)
            self.pose_topic = 'given trajectory' if isinstance(poses, Trajectory) else str(poses)
            self._pose_at = trajectory.at
        else:
            self._find_poses(pose_topic)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        names: Counter[str] = Counter()
        for _topic, received_ns, data in self._log.messages([self.image_topic]):
            message = _deserialize(data, self._image_type)
            if message is None and self._partial:
                continue
            frame = self._frame(received_ns, message)
            names[frame.name] += 1
            if names[frame.name] > 1:
                # Two images of one time: names must stay unique.
                frame = Frame(
                    f'{frame.name}_{names[frame.name]}',
                    frame.stamp_ns,
                    frame.image,
                    frame.camera,
                    frame.map_from_camera,
                    frame.error,
                )
            yield frame

    def _frame(self, received_ns: int, message: Any) -> Frame:
        if message is None:
            error = f'the message at {format_stamp(received_ns)} is damaged'
            return Frame(format_stamp(received_ns), received_ns, None, error=error)
        stamp_ns = _stamp_ns(message.header) or received_ns
        image, camera, error = None, None, ''
        try:
            if self._image_type == _COMPRESSED:
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
                camera, error = self._infos.at(stamp_ns, width, height)
        pose = self._pose_at(stamp_ns)
        return Frame(format_stamp(stamp_ns), stamp_ns, image, camera, pose, error)

    def _first_frame_id(self) -> str:
        for _topic, _received, data in self._log.messages([self.image_topic]):
            message = _deserialize(data, self._image_type)
            if message is not None:
                return str(message.header.frame_id)
        return ''

    def _find_poses(self, pose_topic: str | None) -> None:
        topics = {topic.name: topic for topic in self._log.topics if topic.count}
        transforms = _TransformTree(
            self._log, [name for name, topic in topics.items() if topic.type == _TF]
        )
        if pose_topic is not None:
            if pose_topic not in topics:
                raise BagError(f'{self._path} has no messages on {pose_topic}; {_listing(topics)}')
            chosen = topics[pose_topic]
            if chosen.type == _TF:
                if not transforms.reaches(MAP_FRAME, self.camera_frame):
                    raise BagError(
                        f"{self._path}: no chain of transforms from {MAP_FRAME} to the images' "
                        f'frame {self.camera_frame!r}'
                    )
                self._use_transforms(transforms, pose_topic)
                return
            if chosen.type not in (_POSE, _POSE_WITH_COVARIANCE, _ODOMETRY):
                raise BagError(f'{pose_topic} is a {chosen.type}, which gives no poses')
            problem = self._use_topic(chosen, transforms)
            if problem:
                raise BagError(f'{self._path}: {problem}')
            return
        for kind in (_POSE, _POSE_WITH_COVARIANCE, _TF, _ODOMETRY):
            if kind == _TF:
                if transforms.reaches(MAP_FRAME, self.camera_frame):
                    self._use_transforms(transforms, '/tf')
                    return
                continue
            candidates = [topic for topic in topics.values() if topic.type == kind]
            if len(candidates) > 1:
                names = ', '.join(sorted(topic.name for topic in candidates))
                self.pose_problem = f'several pose topics ({names}); choose one'
            elif candidates:
                self.pose_problem = self._use_topic(candidates[0], transforms)
            if self.pose_topic is not None:
                self.pose_problem = ''
                return
            if self.pose_problem:
                _logger.warning('%s: poses are not used: %s', self._path, self.pose_problem)
                return

    def _use_transforms(self, transforms: _TransformTree, name: str) -> None:
        self.pose_topic = name
        self._pose_at = functools.partial(transforms.lookup, MAP_FRAME, self.camera_frame)

    def _use_topic(self, topic: Topic, transforms: _TransformTree) -> str:
        """Take poses from a topic; return why that is not possible, or an empty text."""
        samples: dict[int, RigidTransform] = {}
        children: set[str] = set()
        for _name, received_ns, data in self._log.messages([topic.name]):
            message = _deserialize(data, topic.type)
            if message is None:
                continue
            pose = message.pose if topic.type == _POSE else message.pose.pose
            transform = _rigid(pose.position, pose.orientation)
            if transform is None:
                continue
            if topic.type == _ODOMETRY:
                children.add(_clean(message.child_frame_id))
            samples[_stamp_ns(message.header) or received_ns] = transform
        if not samples:
            return f'{topic.name} holds no valid poses'
        if len(children) > 1:
            return f'{topic.name} mixes poses of the frames {", ".join(sorted(children))}'
        trajectory = _trajectory(samples)
        child = children.pop() if children else ''
        camera = _clean(self.camera_frame)
        if child and child != camera:
            child_from_camera = transforms.fixed(child, camera)
            if child_from_camera is None:
                return (
                    f'{topic.name} gives poses of {child!r}, but the fixed transform from there '
                    f'to the camera ({camera!r}) is not in the log; record /tf_static'
                )
            trajectory = Trajectory(
                trajectory.stamps_ns, tuple(pose @ child_from_camera for pose in trajectory.poses)
            )
        self.pose_topic = topic.name
        self._pose_at = trajectory.at
        return ''


class _CameraInfos:
    """Calibrations over time; equal messages are kept once."""

    def __init__(self, log: Log, topic: str | None, rectified: bool) -> None:
        self._rectified = rectified
        self._cameras: dict[Any, tuple[Camera | None, str]] = {}
        entries: list[tuple[int, CameraInfoValues]] = []
        for _topic, received_ns, data in log.messages([topic]) if topic is not None else ():
            message = _deserialize(data, _CAMERA_INFO)
            if message is None:
                continue
            values = CameraInfoValues.from_message(message)
            if not entries or values != entries[-1][1]:
                entries.append((_stamp_ns(message.header) or received_ns, values))
        entries.sort(key=lambda entry: entry[0])
        self._stamps = [stamp for stamp, _values in entries]
        self._values = [values for _stamp, values in entries]

    def at(self, stamp_ns: int, width: int, height: int) -> tuple[Camera | None, str]:
        """Return the camera of an image, or None and the reason why there is none.

        The latest calibration up to the image's time counts, the first one for images before it.
        """
        if not self._values:
            return None, 'the log has no camera_info for the images'
        values = self._values[max(0, bisect.bisect_right(self._stamps, stamp_ns) - 1)]
        key = (values, width, height)
        if key not in self._cameras:
            try:
                self._cameras[key] = values.camera(width, height, self._rectified), ''
            except CalibrationError as error:
                self._cameras[key] = None, str(error)
        return self._cameras[key]


@dataclass
class _Edge:
    """The transforms of one child frame to its parent: fixed, or sampled over time."""

    parent: str
    fixed: RigidTransform | None
    trajectory: Trajectory | None


class _TransformTree:
    """What /tf and /tf_static say; parent_from_child per child frame."""

    def __init__(self, log: Log, topics: Sequence[str]) -> None:
        self._edges: dict[str, _Edge] = {}
        samples: dict[str, tuple[str, dict[int, RigidTransform]]] = {}
        ignored: set[str] = set()
        for topic, received_ns, data in log.messages(topics) if topics else ():
            message = _deserialize(data, _TF)
            for item in message.transforms if message is not None else ():
                parent, child = _clean(item.header.frame_id), _clean(item.child_frame_id)
                transform = _rigid(item.transform.translation, item.transform.rotation)
                if transform is None or not parent or not child:
                    continue
                if topic.endswith('tf_static'):
                    self._edges[child] = _Edge(parent, transform, None)
                    continue
                known = samples.setdefault(child, (parent, {}))
                if known[0] == parent:
                    known[1][_stamp_ns(item.header) or received_ns] = transform
                else:
                    ignored.add(f'{parent} to {child}')
        for child, (parent, found) in samples.items():
            if child not in self._edges:
                self._edges[child] = _Edge(parent, None, _trajectory(found))
        if ignored:
            _logger.warning('frames with several parents; ignored: %s', ', '.join(sorted(ignored)))

    def reaches(self, target: str, source: str) -> bool:
        """Whether `target` is an ancestor of `source`."""
        return self._chain(_clean(target), _clean(source)) is not None

    def lookup(self, target: str, source: str, stamp_ns: int) -> RigidTransform | None:
        """Return target_from_source at a time, None if a part of the chain has no sample near."""
        result = RigidTransform.identity()
        for edge in self._chain(_clean(target), _clean(source)) or ():
            part = edge.fixed
            if part is None and edge.trajectory is not None:
                part = edge.trajectory.at(stamp_ns)
            if part is None:
                return None
            result = part @ result
        return result

    def fixed(self, target: str, source: str) -> RigidTransform | None:
        """Return target_from_source if the chain between them is fixed."""
        chain = self._chain(_clean(target), _clean(source))
        if not chain or any(edge.fixed is None for edge in chain):
            return None
        return self.lookup(target, source, 0)

    def _chain(self, target: str, source: str) -> list[_Edge] | None:
        chain: list[_Edge] = []
        frame = source
        while frame != target:
            edge = self._edges.get(frame)
            if edge is None or len(chain) > _MAX_CHAIN:
                return None
            chain.append(edge)
            frame = edge.parent
        return chain


def _choose_image(path: Path, topics: Sequence[Topic], wanted: str | None) -> Topic:
    images = [
        topic
        for topic in topics
        if topic.type in (_IMAGE, _COMPRESSED) and not topic.name.endswith('/compressedDepth')
    ]
    if wanted is not None:
        for topic in images:
            if topic.name == wanted:
                if not topic.count:
                    raise BagError(f'{path} has no messages on {wanted}')
                return topic
        raise BagError(f'{path} has no images on {wanted}; {_listing_of(images, "image topics")}')
    filled = {topic.name: topic for topic in images if topic.count}
    if not filled:
        raise BagError(
            f'{path} holds no images (sensor_msgs/Image or CompressedImage); '
            f'{_listing_of(topics, "topics")}'
        )
    # The raw and the compressed form of one camera are one candidate; raw loses nothing.
    candidates = {
        name: topic
        for name, topic in filled.items()
        if not (name.endswith('/compressed') and name.removesuffix('/compressed') in filled)
    }
    if len(candidates) > 1:
        raise BagError(
            f'{path} holds several image topics ({", ".join(sorted(candidates))}); choose one '
            f'with --image-topic'
        )
    return next(iter(candidates.values()))


def _choose_camera_info(
    path: Path, topics: Sequence[Topic], image_topic: str, wanted: str | None, given: bool
) -> str | None:
    names = sorted(topic.name for topic in topics if topic.type == _CAMERA_INFO and topic.count)
    if wanted is not None:
        if wanted not in names:
            infos = [topic for topic in topics if topic.type == _CAMERA_INFO]
            raise BagError(
                f'{path} has no camera_info on {wanted}; {_listing_of(infos, "camera_info topics")}'
            )
        return wanted
    if given or not names:
        return None
    base = image_topic
    while '/' in base:
        base = base.rpartition('/')[0]
        if f'{base}/camera_info' in names:
            return f'{base}/camera_info'
    if len(names) > 1:
        raise BagError(
            f'{path} holds several camera_info topics ({", ".join(names)}), none beside '
            f'{image_topic}; choose one with --camera-info-topic'
        )
    return names[0]


def _listing(topics: dict[str, Topic]) -> str:
    return _listing_of(list(topics.values()), 'topics')


def _listing_of(topics: Sequence[Topic], what: str) -> str:
    names = ', '.join(sorted(topic.name for topic in topics)) or 'none'
    return f'{what} in the log: {names}'


@functools.cache
def _typestore() -> Any:
    from rosbags.typesys import Stores, get_typestore

    # The messages read here have not changed since Humble, so one type store serves all.
    return get_typestore(Stores.ROS2_JAZZY)


def _deserialize(data: bytes, message_type: str) -> Any:
    """Return the message, None if its bytes are damaged."""
    try:
        return _typestore().deserialize_cdr(data, message_type)
    except Exception as error:  # a parser on damaged bytes fails in any way
        _logger.warning('a %s cannot be read: %s', message_type, error)
        return None


def _stamp_ns(header: Any) -> int:
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def _clean(frame_id: str) -> str:
    return str(frame_id).lstrip('/')


def _rigid(translation: Any, rotation: Any) -> RigidTransform | None:
    """Return the transform, None for a quaternion of zeros or values that are not finite."""
    try:
        return RigidTransform.from_quaternion(
            [rotation.x, rotation.y, rotation.z, rotation.w],
            [translation.x, translation.y, translation.z],
        )
    except InputError:
        return None


def _trajectory(samples: dict[int, RigidTransform]) -> Trajectory:
    stamps = sorted(samples)
    return Trajectory(np.array(stamps, dtype=np.int64), tuple(samples[stamp] for stamp in stamps))


def _no_pose(_stamp_ns: int) -> RigidTransform | None:
    return None
