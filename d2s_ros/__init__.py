"""Camera relocalization from one image: D2S maps, pose with covariance, ROS 2 nodes.

Importing this package loads neither torch nor rclpy; see docs/architecture.md for the layers.
"""

__version__ = '0.1.0'
