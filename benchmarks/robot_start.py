"""How soon the node is ready, and how much memory it keeps, without PyTorch and with it.

    python benchmarks/robot_start.py MAP LOG [MAP LOG ...] [--rounds N] [--record NAME]

A node counts as ready when the version of its map arrives here over DDS. Its memory is read after
it has localized LOG. Without PyTorch its import fails in the process, as where it is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from records import ROOT, write_record
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from d2s_ros.maps.manifest import read_manifest
from d2s_ros.maps.files import version_folder

NODE = 'd2s_ros.ros.localizer_node'


def megabytes(pid: int, field: str) -> float:
    """Return what /proc says of a process, MB."""
    text = Path(f'/proc/{pid}/status').read_text()
    return int(re.findall(rf'^{field}:\s+(\d+) kB', text, re.M)[0]) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the time that a process has used of processors, s."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def measure(path: Path, log: Path, without: bool) -> tuple[float, float, float, float]:
    """Start a node once: return seconds and CPU seconds to ready, resident and largest MB."""
    program = [str(ROOT / 'test' / 'without_torch.py'), NODE] if without else ['-m', NODE]
    topics = ('image_raw', 'image_raw/compressed', 'camera_info')
    parameters: dict[str, Any] = {
        f'qos_overrides./camera/{topic}.subscription.reliability': 'reliable' for topic in topics
    }
    parameters['map'] = path
    flat = [part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')]
    heard: list[str] = []
    node = rclpy.create_node('start_client')
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

    def hear(message: String) -> None:
        heard.append(message.data)

    node.create_subscription(String, 'd2s/map_version', hear, latched)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *program, '--ros-args', *flat], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        while not heard:
            if process.poll() is not None or time.perf_counter() - begin > 120:
                raise SystemExit('the node did not become ready')
            rclpy.spin_once(node, timeout_sec=0.005)
        ready, cpu = time.perf_counter() - begin, cpu_seconds(process.pid)
        player = [sys.executable, '-m', 'd2s_ros.ros.bag_player', str(log), '--lock-step']
        subprocess.run([*player, '--timeout', '120'], env=environment, check=True)
        return ready, cpu, megabytes(process.pid, 'VmRSS'), megabytes(process.pid, 'VmHWM')
    finally:
        process.terminate()
        process.wait(30)
        node.destroy_node()


def main() -> None:
    """Measure in turns, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('inputs', nargs='+', type=Path, metavar='MAP LOG')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--record', metavar='NAME')
    args = parser.parse_args()
    started = time.time()
    pairs = list(zip(args.inputs[::2], args.inputs[1::2], strict=True))
    rclpy.init()
    ways: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(args.rounds):
        for path, log in pairs:
            name = read_manifest(version_folder(path)).features.name
            for without in (True, False):
                way = f'{name}, {"without" if without else "with"} PyTorch'
                ways.setdefault(way, []).append(measure(path, log, without))
    rclpy.shutdown()
    lines = [
        '| node | ready, s | CPU until then, s | resident MB | largest MB |',
        '|---|---|---|---|---|',
    ]
    figures = {}
    for way, rows in ways.items():
        medians = np.median(rows, axis=0)
        figures[way] = [[round(float(x), 2) for x in row] for row in rows]
        lines.append(
            f'| {way} | '
            + ' | '.join(f'{x:.1f}' for x in medians[:2])
            + ' | '
            + ' | '.join(f'{x:.0f}' for x in medians[2:])
            + ' |'
        )
    print('\n'.join(lines))
    if args.record:
        print(write_record(args.record, figures, started, tables={'start': lines}))


if __name__ == '__main__':
    main()
