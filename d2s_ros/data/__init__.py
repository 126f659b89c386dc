"""Images, poses and bags on disk (no torch, no ROS installation)."""
