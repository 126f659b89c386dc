"""The subscriptions to images and calibrations: which topics, which types, which QoS.

The topics are searched by the types that are published there, not by their names, and the
subscriptions follow the QoS of the publishers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from d2s_ros.errors import ConfigError
from d2s_ros.ros.camera_names import CameraNames
from d2s_ros.ros.camera_reader import CameraInfos

#: How often to look who publishes, in seconds.
LOOK_PERIOD = 0.2

_MESSAGES: dict[str, Any] = {'raw': Image, 'compressed': CompressedImage}
_TRANSPORTS = {
    'sensor_msgs/msg/Image': 'raw',
    'sensor_msgs/msg/CompressedImage': 'compressed',
}
_RELIABILITIES = {
    'reliable': ReliabilityPolicy.RELIABLE,
    'best_effort': ReliabilityPolicy.BEST_EFFORT,
}


@dataclass(frozen=True)
class CameraTopics:
    """Names of the topics of one camera, as they are on the wire.

    Attributes:
        image: Where raw images are expected, by the name given.
        compressed: Where compressed images are expected.
        info: The calibration.
        only_compressed: The name given was that of compressed images.
    """

    image: str
    compressed: str
    info: str
    only_compressed: bool = False

    @classmethod
    def resolve(cls, node: Node, names: CameraNames) -> CameraTopics:
        """Expand and remap the names of a camera, as the node's command line says.

        The base name is remapped before a suffix or its sibling is made of it; these can be
        remapped by names of their own.
        """
        image = node.resolve_topic_name(names.base_image_topic)
        given = node.resolve_topic_name(names.info_topic, only_expand=True)
        info = node.resolve_topic_name(names.info_topic)
        if not names.camera_info_topic and info == given:
            info = node.resolve_topic_name(f'{image.rpartition("/")[0]}/camera_info')
        compressed = node.resolve_topic_name(f'{image}/compressed')
        return cls(image, compressed, info, names.image_topic.endswith('/compressed'))


@dataclass(frozen=True)
class _Choice:
    """A subscription to images: where, which type, and whether reliable."""

    topic: str
    transport: str
    reliability: ReliabilityPolicy


class ImageInputs:
    """Subscribes to the images and calibrations of one camera.

    Args:
        node: The node.
        transport: 'auto', 'raw' or 'compressed'.
        topics: The names, resolved.
        group: Callback group of the subscriptions.
        infos: Takes the calibrations.
        on_image: Takes the images, with the topic that they came from.
        on_change: Called after a subscription was made or destroyed.

    Attributes:
        lost: Images that the middleware says were lost on the way.
    """

    def __init__(
        self,
        node: Node,
        transport: str,
        topics: CameraTopics,
        group: CallbackGroup | None,
        infos: CameraInfos,
        on_image: Callable[[Image | CompressedImage, str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._node = node
        self._only = transport
        if transport == 'auto' and topics.only_compressed:
            self._only = 'compressed'
        self._topics = topics
        self._group = group
        self._take_info = infos.put
        self._on_image = on_image
        self._on_change = on_change
        self._choice: _Choice | None = None
        self._images: Any = None
        self._latched_infos: Any = None
        self.lost = 0
        self._infos: Any = node.create_subscription(
            CameraInfo,
            topics.info,
            infos.put,
            QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
            callback_group=group,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._reliabilities = {
            topic: self._reliability_parameter(topic) for topic in (topics.image, topics.compressed)
        }
        self.look()
        if self._choice is None and self._only != 'auto':
            self._subscribe(self._expected(self._only))
        on_change()

    @property
    def topic(self) -> str:
        """The topic of the images."""
        return self._choice.topic if self._choice is not None else self._topics.image

    @property
    def transport(self) -> str:
        """'raw' or 'compressed'; empty as long as neither is published."""
        return self._choice.transport if self._choice is not None else ''

    @property
    def info_topic(self) -> str:
        """The topic of the calibration."""
        return self._topics.info

    def _expected(self, transport: str) -> _Choice:
        topic = self._topics.compressed if transport == 'compressed' else self._topics.image
        reliability = _RELIABILITIES.get(self._reliabilities[topic], ReliabilityPolicy.BEST_EFFORT)
        return _Choice(topic, transport, reliability)

    def _reliability_parameter(self, topic: str) -> str:
        """Return what the user wants for a topic; auto is what its publisher offers.

        It is read here, as rclpy's own overriding keeps the first default for good.
        """
        name = f'qos_overrides.{topic}.subscription.reliability'
        if not self._node.has_parameter(name):
            self._node.declare_parameter(name, 'auto')
        value = str(self._node.get_parameter(name).value)
        if value not in ('auto', *_RELIABILITIES):
            raise ConfigError(
                f'{name} is {value!r}, it must be one of auto, {", ".join(_RELIABILITIES)}'
            )
        return value

    # ---------------------------------------------------------------- who publishes

    def publishers(self) -> int:
        """Return how many publish images of the type that is subscribed to."""
        return sum(choice == self._choice for choice, _ in self._published())

    def _published(self) -> list[tuple[_Choice, Any]]:
        """Return how to subscribe to each publisher of images on the names of this camera."""
        found = []
        for topic, wanted in self._reliabilities.items():
            for info in self._node.get_publishers_info_by_topic(topic):
                transport = _TRANSPORTS.get(info.topic_type)
                if transport is None:
                    continue
                offered = ReliabilityPolicy(info.qos_profile.reliability)
                if offered != ReliabilityPolicy.RELIABLE:
                    offered = ReliabilityPolicy.BEST_EFFORT
                reliability = _RELIABILITIES.get(wanted, offered)
                found.append((_Choice(topic, transport, reliability), info))
        return found

    def look(self) -> None:
        """Subscribe to what is published; change when it ends and something else is."""
        choices = [choice for choice, _ in self._published()]
        if self._only != 'auto':
            choices = [choice for choice in choices if choice.transport == self._only]
        best = self._best(choices)
        if best is not None and best != self._choice:
            self._subscribe(best)
        self._look_for_latched_infos()

    def _best(self, choices: list[_Choice]) -> _Choice | None:
        """Return the present topic while it is published, else raw before compressed."""
        if not choices:
            return None
        present = [
            choice
            for choice in choices
            if self._choice is not None
            and (choice.topic, choice.transport) == (self._choice.topic, self._choice.transport)
        ]
        if not present:
            first = min(choices, key=lambda choice: choice.transport != 'raw')
            place = (first.topic, first.transport)
            present = [choice for choice in choices if (choice.topic, choice.transport) == place]
        # A reliable subscription gets nothing from a best-effort publisher.
        return min(present, key=lambda choice: choice.reliability != ReliabilityPolicy.BEST_EFFORT)

    def _look_for_latched_infos(self) -> None:
        """Subscribe to calibrations that were published once, before this node came.

        Beside the other subscription: where one publisher is latched another may not be.
        """
        latched = [
            info.qos_profile.reliability
            for info in self._node.get_publishers_info_by_topic(self._topics.info)
            if info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        ]
        if not latched or self._latched_infos is not None:
            return
        self._latched_infos = self._node.create_subscription(
            CameraInfo,
            self._topics.info,
            self._take_info,
            QoSProfile(
                depth=10,
                reliability=latched[0],
                durability=DurabilityPolicy.TRANSIENT_LOCAL,
            ),
            callback_group=self._group,
        )
        self._on_change()

    # ---------------------------------------------------------------- subscriptions

    def _subscribe(self, choice: _Choice) -> None:
        if self._images is not None:
            self._node.destroy_subscription(self._images)
        self._choice = choice
        self._images = self._create(choice)
        self._on_change()
        self._node.get_logger().info(
            f'images from {choice.topic} ({choice.transport}, '
            f'{choice.reliability.name.lower().replace("_", " ")}), calibration from '
            f'{self._topics.info}'
        )

    def _create(self, choice: _Choice) -> Any:
        def take(message: Image | CompressedImage) -> None:
            self._on_image(message, choice.topic)

        options: dict[str, Any] = {
            'callback_group': self._group,
            'qos_overriding_options': QoSOverridingOptions(
                (QoSPolicyKind.DEPTH, QoSPolicyKind.HISTORY)
            ),
        }
        profile = QoSProfile(
            depth=1,
            history=qos_profile_sensor_data.history,
            reliability=choice.reliability,
            durability=DurabilityPolicy.VOLATILE,
        )
        message = _MESSAGES[choice.transport]
        try:
            return self._node.create_subscription(
                message,
                choice.topic,
                take,
                profile,
                event_callbacks=SubscriptionEventCallbacks(message_lost=self._on_lost),
                **options,
            )
        except UnsupportedEventTypeError:
            return self._node.create_subscription(message, choice.topic, take, profile, **options)

    def _on_lost(self, event: Any) -> None:
        self.lost += event.total_count_change

    def close(self) -> None:
        """Destroy the subscriptions."""
        for subscription in (self._images, self._infos, self._latched_infos):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._images = self._infos = self._latched_infos = None
        self._on_change()
