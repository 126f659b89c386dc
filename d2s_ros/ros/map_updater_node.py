"""The map updater node: services to update, cancel and roll back a map, and a status."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float32
from std_srvs.srv import Trigger

from d2s_ros.errors import D2SError
from d2s_ros.map_update.ledger import UpdateLedger
from d2s_ros.map_update.log_folder import find_logs
from d2s_ros.maps.store import MapStore
from d2s_ros.ros.diagnostics import key_values
from d2s_ros.ros.map_updater_config import MapUpdaterConfig
from d2s_ros.ros.parameters import ParameterUpdates, declare_from_dataclass, read_dataclass
from d2s_ros.ros.spinning import spin_node
from d2s_ros.ros.update_job import UpdateJob

_LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
_LEVELS = {
    'idle': DiagnosticStatus.OK,
    'running': DiagnosticStatus.OK,
    'done': DiagnosticStatus.OK,
    'cancelled': DiagnosticStatus.WARN,
    'failed': DiagnosticStatus.ERROR,
}
#: Shorter than what `spin_node` leaves to a node that is told to end.
_STOP_SECONDS = 0.8


class MapUpdaterNode(Node):
    """Updates a D2S map from the logs in a folder; the work is done by another process.

    Args:
        arguments: Passed on to rclpy's node (context, namespace, parameter_overrides, ...).

    Raises:
        ConfigError: a parameter has a wrong type or value.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__('map_updater', **arguments)
        self.input_group: CallbackGroup | None = None
        self.on_inputs_changed: Callable[[], None] = lambda: None
        declare_from_dataclass(self, MapUpdaterConfig)
        self.config = read_dataclass(self, MapUpdaterConfig)
        self._updates = ParameterUpdates(
            self, MapUpdaterConfig, lambda: True, self._commit, 'while the node is not running'
        )
        self._job: UpdateJob | None = None
        self._published: dict[str, Any] = {}
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._status = self.create_publisher(DiagnosticArray, 'd2s/update_status', _LATCHED)
        self._progress = self.create_publisher(Float32, 'd2s/update_progress', _LATCHED)
        for name, callback in (
            ('d2s/update_map', self._on_update),
            ('d2s/cancel_update', self._on_cancel),
            ('d2s/rollback_map', self._on_rollback),
            ('d2s/promote_map', self._on_promote),
        ):
            self.create_service(Trigger, name, callback)
        self._timer = self.create_timer(self.config.status_period, self._look, clock=self._steady)
        self._publish({'state': 'idle', 'step': '', 'percent': 0.0})

    def _commit(self, config: MapUpdaterConfig) -> None:
        restart = config.status_period != self.config.status_period
        self.config = config
        if restart:
            self.destroy_timer(self._timer)
            self._timer = self.create_timer(config.status_period, self._look, clock=self._steady)

    # ---------------------------------------------------------------- services

    def _on_update(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, self._start)

    def _on_cancel(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def cancel() -> tuple[bool, str]:
            if self._job is None or not self._job.running:
                return False, 'no update is running'
            self._job.cancel()
            return True, f'{self._job.id} is being cancelled; the map stays as it is'

        return self._answer(response, cancel)

    def _on_rollback(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        def rollback() -> tuple[bool, str]:
            return True, MapStore(self.config.map).rollback()

        return self._answer(response, rollback)

    def _on_promote(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def promote() -> tuple[bool, str]:
            store = MapStore(self.config.map)
            version = store.suggested()
            store.promote(version)
            return True, version

        return self._answer(response, promote)

    def _answer(self, response: Trigger.Response, action: Any) -> Trigger.Response:
        try:
            response.success, response.message = action()
        except (D2SError, OSError, ValueError) as error:  # ValueError: a path with a zero byte
            response.success, response.message = False, str(error)
        if not response.success:
            self.get_logger().warning(response.message)
        return response

    def _start(self) -> tuple[bool, str]:
        config = self.config
        if config.update_mode == 'frozen':
            return False, 'the map is not updated: update_mode is frozen'
        if self._job is not None and self._job.running:
            return False, f'{self._job.id} is running already'
        root = Path(config.map)
        if not config.map or not (root / 'current').is_file():
            return False, f'there is no map at {config.map!r}; set the parameter map'
        if not config.log_dir or not Path(config.log_dir).is_dir():
            return False, f'there is no folder {config.log_dir!r}; set the parameter log_dir'
        ledger = UpdateLedger(root)
        if ledger.running():
            return False, 'another process is updating the map'
        found = find_logs(config.log_dir)
        if not found:
            return False, f'there is no rosbag2 log in {config.log_dir}'
        logs = ledger.unused(found, config.log_options())
        if not logs:
            return False, (
                f'nothing new: every log in {config.log_dir} was used already or cannot be read'
            )
        free = shutil.disk_usage(root).free / 1e6
        if free < config.min_free_megabytes:
            return (
                False,
                f'the disk is too full: {free:.0f} MB free, {config.min_free_megabytes} MB needed',
            )
        folder = Path(config.job_dir) if config.job_dir else ledger.folder / 'jobs'
        self._job = UpdateJob(config, folder, logs)
        self.get_logger().info(f'{self._job.id} started with {len(logs)} logs')
        self._look()
        return True, self._job.id

    # ---------------------------------------------------------------- status

    def _look(self) -> None:
        """Tell what the job says; whatever that is, the node goes on."""
        try:
            self._tell_job()
        except Exception as error:
            self.get_logger().error(
                f'the status of the update cannot be told: {error!r}', throttle_duration_sec=10.0
            )

    def _tell_job(self) -> None:
        if self._job is None:
            return
        status = self._job.status()
        if status != self._published:
            self._publish(status)
            if status['state'] in ('done', 'failed', 'cancelled'):
                reasons = '; '.join(status.get('reasons', []))
                self.get_logger().info(f'{self._job.id}: {status.get("verdict", "")}: {reasons}')

    def _publish(self, status: dict[str, Any]) -> None:
        self._published = status
        state = str(status['state'])
        verdict = str(status.get('verdict', ''))
        reasons = '; '.join(map(str, status.get('reasons', [])))
        values: dict[str, Any] = {
            'state': state,
            'step': status.get('step', ''),
            'percent': status.get('percent', 0.0),
            'verdict': verdict,
            'reasons': reasons,
            'map': self.config.map,
        }
        if self._job is not None:
            values |= {
                'job': self._job.id,
                'logs': ', '.join(log.name for log in self._job.logs),
                'log file': self._job.files.log,
                'report': self._job.files.report,
            }
        values |= {f'count: {name}': value for name, value in status.get('counts', {}).items()}
        for part in ('old', 'new'):
            figures = status.get('figures', {}).get(part)
            if figures:
                values |= {
                    f'{part}: {side} {name}': value
                    for side in ('incumbent', 'candidate')
                    for name, value in figures.get(side, {}).items()
                }
                values |= {f'{part}: {name}': figures.get(name) for name in ('frames', 'gain')}
        message = ' '.join(part for part in (verdict or state, reasons) if part)
        array = DiagnosticArray(
            status=[
                DiagnosticStatus(
                    level=_LEVELS.get(state, DiagnosticStatus.WARN),
                    name=f'{self.get_fully_qualified_name().lstrip("/")}: update',
                    message=message,
                    hardware_id=self.config.map,
                    values=key_values(values),
                )
            ]
        )
        array.header.stamp = self.get_clock().now().to_msg()
        self._status.publish(array)
        self._progress.publish(Float32(data=float(status.get('percent', 0.0)) / 100.0))

    def begin(self) -> bool:
        """Return that the node waits for calls from the start."""
        return True

    def close(self) -> bool:
        """Stop a running update; it goes on when it is asked for again."""
        if self._job is not None:
            self._job.kill(_STOP_SECONDS)
        return True


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop; return the exit status."""
    return spin_node(MapUpdaterNode, args, end_in_time=True)


if __name__ == '__main__':
    sys.exit(main())
