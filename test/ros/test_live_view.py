"""`d2s view --live`: what a running node publishes comes to the page, in a real browser."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from evaluation.test_view_page import CHROMIUM
from geometry_msgs.msg import PoseWithCovarianceStamped
from maps.test_scene_map import make_map
from ros.helpers import wait_for
from sensor_msgs.msg import CompressedImage

from d2s_ros.cli.main import main
from d2s_ros.maps.store import MapStore
from d2s_ros.ros.conversions import compressed_image_to_msg, header
from d2s_ros.ros.live_view import LiveFrames

pytestmark = pytest.mark.ros


class Node:
    """Publishes what a localizer publishes."""

    def __init__(self, client):
        self.poses = client.create_publisher(PoseWithCovarianceStamped, '/robot/d2s/pose', 10)
        self.pictures = client.create_publisher(
            CompressedImage, '/robot/d2s/debug_image/compressed', 1
        )
        self.statuses = client.create_publisher(DiagnosticArray, '/robot/d2s/status', 10)

    def tell(self, stamp_ns, status, quaternion=None):
        if quaternion is not None:
            message = PoseWithCovarianceStamped(header=header(stamp_ns, 'map'))
            message.pose.pose.position.x = 2.0
            q = message.pose.pose.orientation
            q.x, q.y, q.z, q.w = quaternion
            self.poses.publish(message)
        values = [KeyValue(key='reason', value='dark'), KeyValue(key='inliers', value='40')]
        item = DiagnosticStatus(name='localizer', message=status, values=values)
        self.statuses.publish(DiagnosticArray(header=header(stamp_ns, ''), status=[item]))

    def draw(self, stamp_ns):
        picture = np.full((48, 64, 3), (40, 200, 40), np.uint8)
        self.pictures.publish(compressed_image_to_msg(picture, stamp_ns, 'camera'))

    def connected(self):
        topics = self.poses, self.statuses, self.pictures
        return all(topic.get_subscription_count() for topic in topics)


def test_frames_come_whole_and_in_order(client, domain_id, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain_id))
    node = Node(client)
    with LiveFrames('/robot/', np.zeros(3)) as live:
        wait_for(node.connected)
        # A body has z up: it looks along its x.
        node.tell(10**9, 'localized', (0.0, 0.0, 0.0, 1.0))
        node.tell(2 * 10**9, 'too_few_keypoints')
        found = wait_for(lambda: (live.since(0)['next'] == 2) and live.since(0))
        assert (found['localized'], found['refused']) == (1, 1)
        first, second = sorted(found['frames'], key=lambda frame: frame['name'])
        assert first['position'] == [2.0, 0.0, 0.0]
        assert first['ahead'] == [1.0, 0.0, 0.0]
        assert second['text'] == 'dark'
        assert second['advice'].startswith('Light, a shorter exposure')
        assert live.since(1)['frames'] == found['frames'][1:]
        assert live.since(2)['frames'] == []
        assert live.picture('1.000') is None
        node.draw(10**9)
        jpeg = wait_for(lambda: live.picture('1.000'))
        found = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert found.shape == (48, 64, 3)
        assert np.abs(found.mean(axis=(0, 1)) - [40, 200, 40]).max() < 3


@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
def test_the_page_follows_the_node(client, domain_id, tmp_path, monkeypatch):
    from http.server import HTTPServer

    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain_id))
    MapStore(tmp_path / 'map').write(make_map(count=200))
    servers = []
    serve_forever = HTTPServer.serve_forever

    def serve(server):
        servers.append(server)
        serve_forever(server)

    monkeypatch.setattr(HTTPServer, 'serve_forever', serve)
    arguments = ['view', str(tmp_path / 'map'), '--live', '--namespace', '/robot', '--port', '0']
    thread = threading.Thread(target=main, args=(arguments,))
    thread.start()
    try:
        wait_for(lambda: servers)
        node = Node(client)
        wait_for(node.connected)
        url = f'http://127.0.0.1:{servers[0].server_address[1]}'
        node.tell(10**9, 'localized', (0.0, 0.0, 0.0, 1.0))
        node.draw(10**9)

        def answer():
            with urllib.request.urlopen(f'{url}/frames?since=0', timeout=30) as reply:
                return json.loads(reply.read())

        def picture():
            try:
                with urllib.request.urlopen(f'{url}/picture?name=1.000', timeout=30) as reply:
                    return reply.headers['Content-Type'] == 'image/jpeg' and reply.read()
            except urllib.error.HTTPError:
                return None

        wait_for(lambda: answer()['next'] == 1)
        assert wait_for(picture).startswith(b'\xff\xd8')
        with pytest.raises(urllib.error.HTTPError, match='404'):
            urllib.request.urlopen(f'{url}/picture?name=2.000', timeout=30)
        browser = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
        profile = f'--user-data-dir={tmp_path / "profile"}'
        document = subprocess.run(
            [*browser, '--virtual-time-budget=3000', profile, url],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    finally:
        for server in servers:
            server.shutdown()
        thread.join(30)
    assert 'data-live="1"' in document
    assert 'data-picture="1.000"' in document
    assert 'drawn by the node' in document
    assert '1.000: localized. 40 inliers' in document
