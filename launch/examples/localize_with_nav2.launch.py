"""Localizer in the place of amcl: ros2 launch d2s_ros localize_with_nav2.launch.py map:=MAP.

The localizer broadcasts map -> odom under Nav2's lifecycle manager. Start Nav2 beside it with
navigation_launch.py (not bringup_launch.py, which starts amcl): nothing else may broadcast
map -> odom. map_yaml is the occupancy grid for planning, in the same map frame.
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
    defaults = os.path.join(share, 'config', 'examples', 'nav2_localizer.yaml')
    parameters = [
        LaunchConfiguration('params_file'),
        {'use_sim_time': LaunchConfiguration('use_sim_time')},
    ]
    localizer = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(share, 'launch', 'localize.launch.py')),
        launch_arguments={
            'map': LaunchConfiguration('map'),
            'image_topic': LaunchConfiguration('image_topic'),
            'camera_info_topic': LaunchConfiguration('camera_info_topic'),
            'namespace': LaunchConfiguration('namespace'),
            'tf_topic': LaunchConfiguration('tf_topic'),
            'use_sim_time': LaunchConfiguration('use_sim_time'),
            'params_file': LaunchConfiguration('params_file'),
        }.items(),
    )
    map_server = Node(
        package='nav2_map_server',
        executable='map_server',
        name='map_server',
        namespace=LaunchConfiguration('namespace'),
        parameters=[*parameters, {'yaml_filename': LaunchConfiguration('map_yaml')}],
        output='screen',
    )
    manager = Node(
        package='nav2_lifecycle_manager',
        executable='lifecycle_manager',
        name='lifecycle_manager_localization',
        namespace=LaunchConfiguration('namespace'),
        parameters=parameters,
        output='screen',
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument('map', description='folder of the D2S map'),
            DeclareLaunchArgument('map_yaml', description='occupancy grid for planning'),
            DeclareLaunchArgument('image_topic', default_value='/camera/image_raw'),
            DeclareLaunchArgument('camera_info_topic', default_value=''),
            DeclareLaunchArgument('namespace', default_value=''),
            DeclareLaunchArgument('tf_topic', default_value='/tf'),
            DeclareLaunchArgument('use_sim_time', default_value='false'),
            DeclareLaunchArgument('params_file', default_value=defaults),
            localizer,
            map_server,
            manager,
        ]
    )
