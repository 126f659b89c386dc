"""The services of the localizer node: load the map, forget everything, localize once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Empty, Trigger

from d2s_ros.ros.frame_pipeline import FrameOutcome
from d2s_ros.ros.map_keeper import MapKeeper

#: How long `localize_once` waits for the outcome of an image, in seconds.
_ONCE_SECONDS = 5.0


class LocalizerServices:
    """Serves a configured node.

    Args:
        node: The node.
        keeper: The map in use.
        every: Makes a timer of steady time from a period and a callback.
        forget: Forgets all poses.
        is_active: Whether images are worked on.
    """

    def __init__(
        self,
        node: Node,
        keeper: MapKeeper,
        every: Callable[[float, Callable[[], None]], Any],
        forget: Callable[[], None],
        is_active: Callable[[], bool],
    ) -> None:
        self._node = node
        self._keeper = keeper
        self._every = every
        self._forget = forget
        self._is_active = is_active
        self._waiting: list[Future] = []
        self._services = [
            node.create_service(Trigger, name, callback)
            for name, callback in (
                ('~/reload_map', self._on_reload),
                ('~/reinitialize', self._on_reinitialize),
                ('~/localize_once', self._on_localize_once),
            )
        ]
        # As amcl has it, so that Nav2's behaviour trees can call it.
        self._services.append(
            node.create_service(Empty, 'reinitialize_global_localization', self._on_nav2)
        )

    def _on_reload(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._keeper.reload()
        response.message = (
            f'loading {self._keeper.path}; d2s/map_version tells when it is in use'
            if response.success
            else 'a map is being loaded already'
        )
        return response

    def _on_reinitialize(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        self._forget()
        response.success, response.message = True, 'the next image is localized without memory'
        return response

    def _on_nav2(self, request: Empty.Request, response: Empty.Response) -> Empty.Response:
        self._forget()
        return response

    async def _on_localize_once(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        if not self._is_active():
            response.success, response.message = False, 'the node is not active'
            return response
        future: Future = Future(executor=self._node.executor)
        timer = self._every(_ONCE_SECONDS, lambda: future.done() or future.set_result(None))
        self._waiting.append(future)
        outcome = await future
        self._node.destroy_timer(timer)
        if outcome is None:
            self._waiting = [other for other in self._waiting if other is not future]
            response.success = False
            response.message = f'no image was worked on within {_ONCE_SECONDS:g} s'
            return response
        response.success, response.message = outcome
        return response

    def outcome(self, outcome: FrameOutcome) -> None:
        """Answer who waits for an image; called by the worker."""
        if not self._waiting:
            return
        result = outcome.result
        if outcome.localized and result is not None and result.map_from_camera is not None:
            values = ' '.join(f'{value:.6f}' for value in result.map_from_camera.to_tum())
            place = f' in place {result.place}' if result.place else ''
            answer = True, f'localized{place}: map_from_camera {values} (tx ty tz qx qy qz qw)'
        else:
            answer = False, f'{outcome.status}: {outcome.reason}'
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(answer)

    def close(self) -> None:
        """Destroy the services; who waits gets no pose."""
        for future in self._waiting:
            future.set_result((False, 'the node stops'))
        self._waiting = []
        for service in self._services:
            self._node.destroy_service(service)
        self._services = []
