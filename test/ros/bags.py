"""Small rosbag2 logs for tests of playback."""

from __future__ import annotations

import numpy as np
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types


def _header(stamp_ns, frame):
    time = TYPES['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
    return TYPES['std_msgs/msg/Header'](stamp=time, frame_id=frame)


def _transforms(entries):
    kinds = {name: TYPES[f'geometry_msgs/msg/{name}'] for name in ('Vector3', 'Quaternion')}
    return TYPES['tf2_msgs/msg/TFMessage'](
        transforms=[
            TYPES['geometry_msgs/msg/TransformStamped'](
                header=_header(stamp, parent),
                child_frame_id=child,
                transform=TYPES['geometry_msgs/msg/Transform'](
                    translation=kinds['Vector3'](*values[:3]),
                    rotation=kinds['Quaternion'](*values[3:]),
                ),
            )
            for parent, child, stamp, values in entries
        ]
    )


def write_bag(path, frames, focal=50.0, transforms=(), static=()):
    """Write a log.

    Args:
        path: Folder to make.
        frames: (stamp_ns, image (H, W) uint8) of each image.
        transforms, static: (parent, child, stamp_ns, tum values) on /tf and /tf_static.
    """
    with Writer(path, version=9) as writer:
        names = {
            '/camera/image_raw': 'sensor_msgs/msg/Image',
            '/camera/camera_info': 'sensor_msgs/msg/CameraInfo',
            '/tf': 'tf2_msgs/msg/TFMessage',
            '/tf_static': 'tf2_msgs/msg/TFMessage',
        }
        connections = {
            name: writer.add_connection(name, kind, typestore=STORE) for name, kind in names.items()
        }
        messages = []
        if static:
            messages.append((0, '/tf_static', _transforms(static)))
        for entry in transforms:
            messages.append((entry[2], '/tf', _transforms([entry])))
        for stamp, image in frames:
            height, width = image.shape
            matrix = [focal, 0, width / 2 - 0.5, 0, focal, height / 2 - 0.5, 0, 0, 1]
            projection = [*matrix[:3], 0, *matrix[3:6], 0, *matrix[6:], 0]
            info = TYPES['sensor_msgs/msg/CameraInfo'](
                header=_header(stamp, 'camera'),
                height=height,
                width=width,
                distortion_model='plumb_bob',
                d=np.zeros(5),
                k=np.array(matrix, float),
                r=np.eye(3).reshape(-1),
                p=np.array(projection, float),
                binning_x=0,
                binning_y=0,
                roi=TYPES['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False),
            )
            picture = TYPES['sensor_msgs/msg/Image'](
                header=_header(stamp, 'camera'),
                height=height,
                width=width,
                encoding='mono8',
                is_bigendian=0,
                step=width,
                data=image.reshape(-1),
            )
            messages += [
                (stamp, '/camera/camera_info', info),
                (stamp, '/camera/image_raw', picture),
            ]
        start = min(stamp for stamp, *_ in messages if stamp)
        for stamp, name, message in sorted(messages, key=lambda item: item[0]):
            data = STORE.serialize_cdr(message, names[name])
            writer.write(connections[name], max(stamp, start), data)
