"""The subscriptions to images and calibrations, and which transport of the images is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from d2s_ros.ros.frame_pipeline import CameraInfos
from d2s_ros.ros.localizer_config import LocalizerNodeConfig

#: How often to look whether the chosen transport is still published, in seconds.
TRANSPORT_PERIOD = 0.2


def _image_qos() -> QoSProfile:
    # The profile is changed by QoS overrides, so each subscription gets its own.
    return QoSProfile(
        depth=1,
        history=qos_profile_sensor_data.history,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


class ImageInputs:
    """Subscribes to the images and calibrations of one camera.

    Args:
        node: The node.
        config: Names and transport.
        group: Callback group of the subscriptions.
        infos: Takes the calibrations.
        on_image: Takes the images.
        on_change: Called after a subscription was made or destroyed.

    Attributes:
        transport: 'raw' or 'compressed'; empty as long as neither is published.
    """

    def __init__(
        self,
        node: Node,
        config: LocalizerNodeConfig,
        group: CallbackGroup | None,
        infos: CameraInfos,
        on_image: Callable[[Image | CompressedImage], None],
        on_change: Callable[[], None],
    ) -> None:
        self._node = node
        self._config = config
        self._group = group
        self._on_image = on_image
        self._on_change = on_change
        self._images: Any = None
        self.transport = ''
        self._infos: Any = node.create_subscription(
            CameraInfo,
            config.info_topic,
            infos.put,
            QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
            callback_group=group,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        #: Whether `look` must be called now and then.
        self.searches = False
        if config.image_transport != 'auto':
            self._subscribe(config.image_transport)
        elif config.image_topic.endswith('/compressed'):
            self._subscribe('compressed')
        else:
            self.searches = True
            self.look()
        on_change()

    @property
    def topic(self) -> str:
        """The topic of the images."""
        topic = self._config.base_image_topic
        return f'{topic}/compressed' if self.transport == 'compressed' else topic

    def look(self) -> None:
        """Subscribe to the transport that is published; change when it ends and another is."""
        topic = self._config.base_image_topic
        published = {
            'raw': self._node.count_publishers(topic),
            'compressed': self._node.count_publishers(f'{topic}/compressed'),
        }
        if self.transport and published[self.transport]:
            return
        for transport in ('raw', 'compressed'):
            if published[transport] and transport != self.transport:
                self._subscribe(transport)
                return

    def _subscribe(self, transport: str) -> None:
        if self._images is not None:
            self._node.destroy_subscription(self._images)
        self.transport = transport
        message: Any = CompressedImage if transport == 'compressed' else Image
        self._images = self._node.create_subscription(
            message,
            self.topic,
            self._on_image,
            _image_qos(),
            callback_group=self._group,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._on_change()
        self._node.get_logger().info(
            f'images from {self.topic}, calibration from {self._config.info_topic}'
        )

    def close(self) -> None:
        """Destroy the subscriptions."""
        for subscription in (self._images, self._infos):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._images = self._infos = None
        self._on_change()
