"""Start localizer and map updater: ros2 launch d2s_ros localize.launch.py map:=/path/to/map.

An argument that is left empty takes its value from params_file.
"""

from __future__ import annotations

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

#: Launch arguments that are node parameters of the same name.
PARAMETERS = {
    'map': 'folder of the map',
    'image_topic': 'base name of the image topic, such as /camera/image_raw',
    'camera_info_topic': 'topic of the calibration, if not beside the image topic',
    'image_transport': 'auto, raw or compressed',
    'device': 'auto, cpu or cuda',
    'weights': 'weight file of network features, if the map needs one',
    'tf_mode': 'auto, none, map_to_camera, map_to_base or map_to_odom',
    'pose_frame': 'auto, base or camera',
    'odom_frame': 'odometry frame',
    'base_frame': 'robot frame',
    'fuse_odometry': 'true to publish what images and odometry tell together',
    'odometry_drift': 'most that odometry is off by, as a share of its motion',
    'tracking_seconds': 'how long images may lean on the last proven pose; 0 for never',
    'camera_frame': "camera's optical frame, if the images do not name it",
    'frame_prefix': 'put before the odometry and robot frames, such as robot1/',
    'autostart': 'true, or false where a lifecycle manager configures the node',
    'use_sim_time': 'true to take time from /clock',
}
_BOOLEANS = ('autostart', 'use_sim_time', 'fuse_odometry')
_NUMBERS = ('odometry_drift', 'tracking_seconds')


def _typed(name: str, value: str) -> str | bool | float:
    if name in _BOOLEANS:
        return value.lower() == 'true'
    return float(value) if name in _NUMBERS else value


def start(context: LaunchContext) -> list[Node]:
    """Make the node from the arguments that were given."""
    overrides: dict[str, object] = {}
    for name in PARAMETERS:
        value = LaunchConfiguration(name).perform(context)
        if value != '':
            overrides[name] = _typed(name, value)
    nodes = [
        Node(
            package='d2s_ros',
            executable='localizer',
            name=LaunchConfiguration('name').perform(context),
            namespace=LaunchConfiguration('namespace').perform(context),
            parameters=[LaunchConfiguration('params_file').perform(context), overrides],
            arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
            output='screen',
            emulate_tty=True,
        )
    ]
    if LaunchConfiguration('updates').perform(context).lower() == 'true':
        names = ('map', 'device', 'weights', 'log_dir')
        values = {name: LaunchConfiguration(name).perform(context) for name in names}
        given = {name: value for name, value in values.items() if value != ''}
        nodes.append(
            Node(
                package='d2s_ros',
                executable='map_updater',
                name='map_updater',
                namespace=LaunchConfiguration('namespace').perform(context),
                parameters=[LaunchConfiguration('updates_file').perform(context), given],
                arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
                output='screen',
                emulate_tty=True,
            )
        )
    return nodes


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    config = os.path.join(get_package_share_directory('d2s_ros'), 'config')
    defaults = os.path.join(config, 'localizer.yaml')
    updates = os.path.join(config, 'map_updater.yaml')
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value='', description=text)
                for name, text in PARAMETERS.items()
            ),
            DeclareLaunchArgument('params_file', default_value=defaults, description='YAML file'),
            DeclareLaunchArgument(
                'updates', default_value='true', description='false to start no map updater'
            ),
            DeclareLaunchArgument(
                'log_dir', default_value='', description='folder of logs that updates learn from'
            ),
            DeclareLaunchArgument(
                'updates_file', default_value=updates, description='YAML file of the map updater'
            ),
            DeclareLaunchArgument('name', default_value='localizer', description='node name'),
            DeclareLaunchArgument('namespace', default_value='', description='node namespace'),
            DeclareLaunchArgument('log_level', default_value='info', description='log level'),
            OpaqueFunction(function=start),
        ]
    )
