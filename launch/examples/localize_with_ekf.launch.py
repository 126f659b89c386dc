"""Localizer and robot_localization's EKF: ros2 launch d2s_ros localize_with_ekf.launch.py map:=MAP.

The filter fuses d2s/pose with wheel odometry and broadcasts map -> odom; the localizer broadcasts
nothing. Needs robot_localization, and odom -> base_link and base_link -> camera on TF.
"""

from __future__ import annotations

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    share = get_package_share_directory('d2s_ros')
    filter_defaults = os.path.join(share, 'config', 'examples', 'ekf_map.yaml')
    localizer = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(share, 'launch', 'localize.launch.py')),
        launch_arguments={
            'map': LaunchConfiguration('map'),
            'image_topic': LaunchConfiguration('image_topic'),
            'camera_info_topic': LaunchConfiguration('camera_info_topic'),
            'namespace': LaunchConfiguration('namespace'),
            'tf_topic': LaunchConfiguration('tf_topic'),
            'use_sim_time': LaunchConfiguration('use_sim_time'),
            'tf_mode': 'none',
            'pose_frame': 'base',
        }.items(),
    )
    ekf = Node(
        package='robot_localization',
        executable='ekf_node',
        name='ekf_map',
        namespace=LaunchConfiguration('namespace'),
        parameters=[
            LaunchConfiguration('ekf_params'),
            {'use_sim_time': LaunchConfiguration('use_sim_time')},
        ],
        remappings=[
            ('odometry/filtered', 'odometry/map'),
            ('/tf', LaunchConfiguration('tf_topic')),
            ('/tf_static', [LaunchConfiguration('tf_topic'), '_static']),
        ],
        output='screen',
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument('map', description='folder of the map'),
            DeclareLaunchArgument('image_topic', default_value='/camera/image_raw'),
            DeclareLaunchArgument('camera_info_topic', default_value=''),
            DeclareLaunchArgument('namespace', default_value=''),
            DeclareLaunchArgument('tf_topic', default_value='/tf'),
            DeclareLaunchArgument('use_sim_time', default_value='false'),
            DeclareLaunchArgument('ekf_params', default_value=filter_defaults),
            localizer,
            ekf,
        ]
    )
