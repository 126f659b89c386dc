"""Start localizer and map updater: ros2 launch d2s_ros localize.launch.py map:=/path/to/map.

An argument that is left empty takes its value from params_file. The launch ends when the localizer
does, unless respawn starts it again.
"""

from __future__ import annotations

import os
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from d2s_ros.ros.launch_arguments import boolean, names_a_map, parameter_file, typed
from launch import LaunchContext, LaunchDescription

#: Launch arguments that are node parameters of the same name.
PARAMETERS = {
    'map': 'folder of the map',
    'image_topic': 'base name of the image topic, such as /camera/image_raw',
    'camera_info_topic': 'topic of the calibration, if not beside the image topic',
    'image_transport': 'auto, raw or compressed',
    'rectified': 'true where the images are rectified',
    'rig_image_topics': "image topics of further cameras, ['/left/image_raw', '/right/image_raw']",
    'rig_camera_info_topics': 'topics of their calibrations, if not beside the image topics',
    'device': 'auto, cpu or cuda',
    'allow_cpu_fallback': 'true to go on without a GPU that fails',
    'precision': 'auto, fp32, bf16 or int8',
    'target_rate': 'rate to hold with less work, Hz; 0 always does all',
    'weights': 'weight file of network features, if the map needs one',
    'tf_mode': 'auto, none, map_to_camera, map_to_base or map_to_odom',
    'pose_frame': 'auto, base or camera',
    'map_frame': "name of the map frame, if not the map's own",
    'odom_frame': 'odometry frame',
    'base_frame': 'robot frame',
    'base_from_camera': 'pose of the camera in base_frame, [tx, ty, tz, qx, qy, qz, qw]',
    'fuse_odometry': 'true to publish what images and odometry tell together',
    'odometry_drift': 'most that odometry is off by, as a share of its motion',
    'tracking_seconds': 'how long images may lean on the last proven pose; 0 for never',
    'transform_hold': 'how long map->odom goes on while images are refused, seconds',
    'camera_frame': "camera's optical frame, if the images do not name it",
    'frame_prefix': 'put before the odometry and robot frames, such as robot1/',
    'autostart': 'true, or false where a lifecycle manager configures the node',
    'use_sim_time': 'true to take time from /clock',
}


def start(context: LaunchContext) -> list[Any]:
    """Make the nodes from the arguments that were given."""

    def given(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    overrides = {name: typed(name, given(name)) for name in PARAMETERS if given(name) != ''}
    parameters = parameter_file('params_file', given('params_file'))
    if 'map' not in overrides and not names_a_map(parameters):
        raise RuntimeError('map is missing: map:=/path/to/map, or name it in params_file')
    respawn = boolean('respawn', given('respawn'))
    remappings = []
    if given('tf_topic') != '/tf':
        remappings = [('/tf', given('tf_topic')), ('/tf_static', f'{given("tf_topic")}_static')]
    common = {
        'package': 'd2s_ros',
        'namespace': given('namespace'),
        'arguments': ['--ros-args', '--log-level', given('log_level')],
        'output': 'screen',
        'emulate_tty': True,
    }
    actions: list[Any] = [
        Node(
            executable='localizer',
            name=given('name'),
            parameters=[parameters, overrides],
            remappings=remappings,
            respawn=respawn,
            respawn_delay=float(given('respawn_delay')),
            on_exit=None if respawn else end,
            **common,
        )
    ]
    if boolean('updates', given('updates')):
        names = ('map', 'device', 'weights', 'log_dir')
        actions.append(
            Node(
                executable='map_updater',
                name='map_updater',
                parameters=[
                    parameter_file('updates_file', given('updates_file')),
                    {name: given(name) for name in names if given(name) != ''},
                ],
                **common,
            )
        )
    if boolean('rviz', given('rviz')):
        share = get_package_share_directory('d2s_ros')
        view = os.path.join(share, 'config', 'rviz', 'd2s.rviz')
        actions.append(Node(package='rviz2', executable='rviz2', arguments=['-d', view]))
    return actions


def end(event: ProcessExited, context: LaunchContext) -> Shutdown | None:
    """End the launch with the localizer: with an error, which a service manager sees, after one."""
    if context.is_shutdown:
        return None
    if event.returncode:
        raise RuntimeError(f'the localizer ended with exit code {event.returncode}')
    return Shutdown(reason='the localizer ended')


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    config = os.path.join(get_package_share_directory('d2s_ros'), 'config')
    others = {
        'params_file': (os.path.join(config, 'localizer.yaml'), 'YAML file'),
        'updates': ('true', 'false to start no map updater'),
        'log_dir': ('', 'folder of logs that updates learn from'),
        'updates_file': (os.path.join(config, 'map_updater.yaml'), 'YAML file of the map updater'),
        'name': ('localizer', 'node name'),
        'namespace': ('', 'node namespace'),
        'tf_topic': ('/tf', 'tf below a namespace, as Nav2 has it with several robots'),
        'respawn': ('false', 'true to start the localizer again when it ends'),
        'respawn_delay': ('2.0', 'seconds before that'),
        'rviz': ('false', 'true to show poses and points in RViz'),
        'log_level': ('info', 'log level'),
    }
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value='', description=text)
                for name, text in PARAMETERS.items()
            ),
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, (default, text) in others.items()
            ),
            OpaqueFunction(function=start),
        ]
    )
