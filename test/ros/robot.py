"""A localizer and a map updater as processes on one map, as a test sees them over DDS."""

from __future__ import annotations

import time

from diagnostic_msgs.msg import DiagnosticArray
from ros.helpers import (
    LATCHED,
    RELIABLE,
    Camera,
    Collector,
    image_msg,
    info_msg,
    values_of,
    wait_for,
)
from std_msgs.msg import String
from std_srvs.srv import Trigger

SECOND = 1_000_000_000


class Robot:
    """Both nodes as processes on one map, with what a test sees of them."""

    def __init__(self, start_process, client, map_path, log_dir):
        self._start, self.map_path, self.log_dir = start_process, map_path, log_dir
        self.localizer = start_process(
            'd2s_ros.ros.localizer_node',
            *self._settings(map=map_path, device='cpu', map_check_period=0.2, **RELIABLE),
        )
        self.updater = None
        self.start_updater()
        self.camera = Camera(client)
        self.versions = Collector(client, String, '/d2s/map_version', LATCHED)
        self.status = Collector(client, DiagnosticArray, '/d2s/update_status', LATCHED)
        self._clients = {
            name: client.create_client(Trigger, f'/d2s/{name}')
            for name in ('update_map', 'rollback_map')
        }
        self._stamp = 1_700_000_000 * SECOND

    @staticmethod
    def _settings(**parameters):
        flat = [part for item in parameters.items() for part in ('-p', '{}:={}'.format(*item))]
        return ['--ros-args', *flat]

    def start_updater(self):
        settings = {'map': self.map_path, 'log_dir': self.log_dir, 'status_period': 0.05}
        self.updater = self._start(
            'd2s_ros.ros.map_updater_node',
            *self._settings(device='cpu', min_free_megabytes=1, **settings),
        )

    def call(self, name):
        """Return the answer of a service, also of a node that has just been started again."""
        client = self._clients[name]
        while True:
            wait_for(client.service_is_ready, what=name)
            future = client.call_async(Trigger.Request())
            deadline = time.monotonic() + 20.0
            while time.monotonic() < deadline:
                if future.done():
                    result = future.result()
                    if 'is running already' in result.message:
                        # The answer before came too late; this one names the job as well.
                        return Trigger.Response(success=True, message=result.message.split()[0])
                    return result
                time.sleep(0.005)
            client.remove_pending_request(future)

    def version(self):
        messages = self.versions.messages
        return messages[-1].data if messages else ''

    def states(self, job):
        """Return all statuses of a job that have come."""
        values = [values_of(message.status[0]) for message in self.status.messages]
        return [value for value in values if value.get('job') == job]

    def show(self, frame):
        """Show a frame as if it was taken now; return the status and the pose message, if any."""
        self._stamp += SECOND
        camera = frame.camera
        info = info_msg(self._stamp, (camera.width, camera.height), camera.fx)
        info.k[2], info.k[5] = camera.cx, camera.cy
        info.p[2], info.p[6] = camera.cx, camera.cy
        status = self.camera.show(image_msg(frame.image, self._stamp), info)
        return status, self.camera.poses.stamped(self._stamp)
