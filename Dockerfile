# A robot's or a workstation's image: ROS 2, the package and what it needs, on x86-64 and ARM64.
#   docker build -t d2s_ros --build-arg ROS_DISTRO=jazzy .
#   docker run --rm --net=host -v MAPS:/maps d2s_ros ros2 launch d2s_ros localize.launch.py map:=/maps/map
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /workspace/src/d2s_ros
WORKDIR /workspace
RUN apt-get update \
    && rosdep update \
    && rosdep install --from-paths src --ignore-src -y --skip-keys python3-torch \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/d2s \
    && . /opt/d2s/bin/activate \
    && pip install --no-cache-dir colcon-common-extensions \
    && pip install --no-cache-dir torch safetensors rosbags \
    && . /opt/ros/${ROS_DISTRO}/setup.bash \
    && colcon build --packages-select d2s_ros
RUN printf '#!/bin/bash\nset -e\n. /opt/d2s/bin/activate\n. /opt/ros/%s/setup.bash\n. /workspace/install/setup.bash\nexec "$@"\n' "${ROS_DISTRO}" > /entrypoint.sh \
    && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "d2s_ros", "localize.launch.py", "--show-args"]
