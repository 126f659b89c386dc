"""What a frame costs, stage by stage: time, memory, page faults, allocations; and the floor.

The floor of the features is the bare forward pass of their network, timed on the same images in
the same run. Wall times depend on what else runs; CPU times, counts and ratios hardly do.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.data.frames import Frame
from d2s_ros.errors import InputError
from d2s_ros.evaluation.baseline import MatchingBaseline
from d2s_ros.evaluation.operations import count_operations
from d2s_ros.features.types import to_grey
from d2s_ros.localization.covariance import covariance_of_pose
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.scene_models.base import View

#: In the order of a frame; 'total' is without 'decode'.
STAGES = ('decode', 'features', 'network', 'pose', 'total')


def percentiles(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Return median, p95 and p99 of a list that is not empty."""
    array = np.asarray(values, dtype=np.float64)
    return {
        'median': round(float(np.median(array)), 3),
        'p95': round(float(np.percentile(array, 95)), 3),
        'p99': round(float(np.percentile(array, 99)), 3),
    }


def timed_frames(frames: Iterable[Frame], limit: int) -> tuple[list[Frame], list[float]]:
    """Return at most `limit` frames that can be localized and the ms that reading each took."""
    read, times = [], []
    started = time.perf_counter()
    for frame in frames:
        took = 1e3 * (time.perf_counter() - started)
        if frame.image is not None and frame.camera is not None:
            read.append(frame)
            times.append(took)
        if len(read) == limit:
            break
        started = time.perf_counter()
    if not read:
        raise InputError('the input has no images with a calibration')
    return read, times


class Meter:
    """Wall and CPU time, page faults and Python blocks of one call."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def __enter__(self) -> Meter:
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.rows.append(
            {
                'wall_ms': 1e3 * wall,
                'cpu_ms': 1e3 * cpu,
                'page_faults': float(usage.ru_minflt - self._usage.ru_minflt),
            }
        )

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the percentiles of each figure."""
        return {name: percentiles([row[name] for row in self.rows]) for name in self.rows[0]}


def benchmark(
    localizer: Localizer,
    frames: Iterable[Frame],
    *,
    limit: int = 50,
    warmup: int = 3,
    baseline: MatchingBaseline | None = None,
) -> dict[str, Any]:
    """Localize frames one by one and measure (JSON types).

    Args:
        localizer: Not used before, so that its first frame is the first.
        frames: Images with cameras.
        limit: Most frames that are read; the whole list is held in memory.
        warmup: Frames that are localized before the measurement.
        baseline: Localized from the same features, after each frame.

    Raises:
        InputError: no frame has an image and a camera.
    """
    images, decode_ms = timed_frames(frames, limit)
    first = Meter()
    with first:
        result = localizer.localize(images[0].image, images[0].camera)
    first_stages = dict(result.latency_ms)
    for index in range(warmup):
        frame = images[index % len(images)]
        localizer.localize(frame.image, frame.camera)
    whole, bare, other = Meter(), Meter(), Meter()
    results: list[LocalizationResult] = []
    baseline_ms: list[dict[str, float]] = []
    covariance_ms: list[float] = []
    forward = _bare_forward(localizer)
    for frame in images:
        with whole:
            result = localizer.localize(frame.image, frame.camera)
        results.append(result)
        if forward is not None:
            with bare:
                forward(frame)
        if result.map_from_camera is not None and result.covariance is not None:
            covariance_ms.append(_covariance_ms(result))
        if baseline is not None:
            assert frame.camera is not None
            features = localizer.extractor.extract(frame.image)  # type: ignore[arg-type]
            with other:
                outcome = baseline.localize_features(features, frame.camera)
            baseline_ms.append(
                outcome.latency_ms | {'features': result.latency_ms.get('features', 0.0)}
            )
    stages = {
        stage: percentiles([r.latency_ms[stage] for r in results if stage in r.latency_ms])
        for stage in STAGES[1:]
        if any(stage in r.latency_ms for r in results)
    }
    if covariance_ms:
        stages['covariance'] = percentiles(covariance_ms)
    report: dict[str, Any] = {
        'map': {
            'features': localizer.scene_map.manifest.features.name,
            'max_keypoints': localizer.extractor.config.max_keypoints,
            'landmarks': len(localizer.scene_map.model.points_in_map),
        },
        'device': localizer.device,
        'precision': getattr(localizer.extractor, 'precision', 'fp32'),
        'threads': torch.get_num_threads(),
        'image': list(images[0].image.shape[1::-1]),  # type: ignore[union-attr]
        'frames': len(results),
        'localized': sum(r.localized for r in results),
        'keypoints': float(np.median([r.num_keypoints for r in results])),
        'stages_ms': {'decode': percentiles(decode_ms), **stages},
        'frame': whole.summary(),
        'first_frame_ms': {
            'wall': round(first.rows[0]['wall_ms'], 3),
            **{stage: round(value, 3) for stage, value in first_stages.items()},
        },
        'memory': memory_report(localizer, images),
        'operations': stage_operations(localizer, images[0]),
    }
    graph = getattr(localizer.extractor, 'graph_state', None)
    if graph is not None:
        report['cuda_graph'] = {'features': graph}
    if forward is not None:
        report['bare_forward'] = bare.summary()
        report['ratios'] = {
            f'frame over bare forward pass ({clock})': round(
                report['frame'][clock]['median'] / report['bare_forward'][clock]['median'], 3
            )
            for clock in ('wall_ms', 'cpu_ms')
        }
    if baseline is not None:
        report['baseline'] = _baseline_report(baseline, baseline_ms, other, report)
    return report


def _baseline_report(
    baseline: MatchingBaseline, rows: list[dict[str, float]], meter: Meter, report: dict[str, Any]
) -> dict[str, Any]:
    totals = [row.get('total', row['network']) + row['features'] for row in rows]
    result: dict[str, Any] = {
        'database_descriptors': baseline.num_descriptors,
        'database_mb': round(baseline.size_bytes() / 1e6, 1),
        'stages_ms': {
            'features': report['stages_ms']['features'],
            'matching': percentiles([row['network'] for row in rows]),
            'pose': percentiles([row.get('pose', 0.0) for row in rows]),
            'total': percentiles(totals),
        },
        'without_features': meter.summary(),
    }
    ours = report['frame']['wall_ms']['median']
    result['baseline over ours (wall_ms)'] = round(float(np.median(totals)) / ours, 3)
    return result


def _bare_forward(localizer: Localizer) -> Any:
    """Return what runs the feature network alone on a frame; None where there is none."""
    from d2s_ros.features.network_images import pad_to_cells
    from d2s_ros.features.superpoint.compiled import CompiledSuperPoint
    from d2s_ros.features.superpoint.extractor import SuperPoint

    extractor = localizer.extractor
    if not isinstance(extractor, (SuperPoint, CompiledSuperPoint)):
        return None

    @torch.inference_mode()
    def forward(frame: Frame) -> None:
        assert frame.image is not None
        grey, _ = extractor.prepared(to_grey(frame.image))
        extractor.forward(pad_to_cells(grey))
        if localizer.device.startswith('cuda'):
            torch.cuda.synchronize()

    return forward


def _covariance_ms(result: LocalizationResult) -> float:
    """Return the ms that the covariance takes; it is a part of the stage 'pose'."""
    assert result.map_from_camera is not None
    assert result.covariance is not None
    camera_from_map = result.map_from_camera.inverse()
    information = np.asarray(np.linalg.inv(result.covariance), np.float64)
    started = time.perf_counter()
    covariance_of_pose(camera_from_map, information)
    return 1e3 * (time.perf_counter() - started)


def memory_report(localizer: Localizer, frames: Sequence[Frame], count: int = 3) -> dict[str, Any]:
    """Return resident memory and what it grows by over warm frames."""
    before = _resident_mb()
    for index in range(count):
        frame = frames[index % len(frames)]
        localizer.localize(frame.image, frame.camera)
    after = _resident_mb()
    result = {
        'resident_mb': round(after, 1),
        'growth_mb_per_frame': round((after - before) / count, 3),
        'peak_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }
    if localizer.device == 'cuda':
        result['peak_device_mb'] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return result


def _resident_mb() -> float:
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def stage_operations(localizer: Localizer, frame: Frame) -> dict[str, dict[str, Any]]:
    """Count what PyTorch does for a warm frame: features (RootSIFT uses OpenCV), network, pose."""
    image, camera = frame.image, frame.camera
    assert image is not None
    assert camera is not None
    features = localizer.extractor.extract(image)
    return {
        'features': count_operations(lambda: localizer.extractor.extract(image)),
        'network': count_operations(lambda: localizer.observer.observe(View(features, camera))),
        'frame': count_operations(lambda: localizer.localize(image, camera)),
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as text."""
    info = report['map']
    lines = [
        f'{info["features"]} ({report["precision"]}, {report["device"]}, {report["threads"]} '
        f'threads), {report["image"][0]}x{report["image"][1]}, {report["keypoints"]:.0f} '
        f'keypoints, {info["landmarks"]} landmarks; {report["localized"]} of {report["frames"]} '
        'frames localized',
        '',
        f'{"stage [ms]":<28}{"median":>10}{"p95":>10}{"p99":>10}{"first":>10}',
    ]

    def row(name: str, values: dict[str, float], first: float | None = None) -> str:
        end = '' if first is None else f'{first:.1f}'
        return (
            f'{name:<28}{values["median"]:>10.2f}{values["p95"]:>10.2f}{values["p99"]:>10.2f}'
            f'{end:>10}'
        )

    firsts = report['first_frame_ms']
    for stage in ('decode', 'features', 'network', 'pose', 'covariance', 'total'):
        if stage in report['stages_ms']:
            label = '  of it covariance' if stage == 'covariance' else stage
            lines.append(row(label, report['stages_ms'][stage], firsts.get(stage)))
    lines.append(row('CPU time of a frame', report['frame']['cpu_ms']))
    if 'bare_forward' in report:
        lines.append(row('bare forward pass', report['bare_forward']['wall_ms']))
        lines.append(row('CPU time of it', report['bare_forward']['cpu_ms']))
    if 'baseline' in report:
        for stage, values in report['baseline']['stages_ms'].items():
            lines.append(row(f'whole database: {stage}', values))
    lines.append('')
    lines += [f'{name}: {value}' for name, value in report.get('ratios', {}).items()]
    if 'baseline' in report:
        base = report['baseline']
        lines.append(
            f'whole database over ours: {base["baseline over ours (wall_ms)"]} '
            f'({base["database_descriptors"]} descriptors, {base["database_mb"]} MB)'
        )
    if report['device'] != 'cpu' and 'cuda_graph' in report:
        lines.append(f'CUDA graph of the features: {report["cuda_graph"]["features"]}')
    memory = report['memory']
    for stage, counts in report['operations'].items():
        lines.append(
            f'{stage}: {counts["operations"]} operations of PyTorch, '
            f'{counts["compiled_calls"]} compiled calls, {counts["gflop"]} GFLOP, '
            f'{counts["tensors"]} tensors of {counts["tensor_mb"]} MB, transfers '
            f'{counts["to_device"]} to the device and {counts["to_host"]} back'
        )
    lines.append(
        f'page faults of a frame: {report["frame"]["page_faults"]["median"]:.0f}; '
        f'resident {memory["resident_mb"]} MB, peak {memory["peak_mb"]} MB, growth '
        f'{memory["growth_mb_per_frame"]} MB a frame'
    )
    return '\n'.join(lines)
