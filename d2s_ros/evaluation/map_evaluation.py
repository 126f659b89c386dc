"""A map measured on queries with known poses: table, curves and pictures, beside a baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2s_ros.data.frames import FrameSource
from d2s_ros.errors import InputError
from d2s_ros.evaluation.baseline import MatchingBaseline
from d2s_ros.evaluation.metrics import metrics_from_errors
from d2s_ros.evaluation.report import (
    draw_cumulative_errors,
    draw_reliability,
    draw_trajectory,
    write_page,
)
from d2s_ros.evaluation.run import summarise
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult

OURS, BASELINE = 'map', 'matching'


@dataclass(frozen=True, eq=False)
class Outcome:
    """One query.

    Attributes:
        name: Of the image.
        truth: True map_from_camera.
        results: Method to what it answered.
        image: Only of queries that pictures are made of, whose results have details.
    """

    name: str
    truth: RigidTransform
    results: dict[str, LocalizationResult]
    image: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Queries and what the methods need.

    Attributes:
        outcomes: Queries with a true pose, in order.
        without_truth: Queries without, which were not compared.
        sizes_mb: Method to the size of what it needs.
        build_seconds: Method to how long that took to make; None where it is not known.
        unit: 'm', or 'units' of a map of arbitrary scale.
    """

    outcomes: list[Outcome]
    without_truth: int
    sizes_mb: dict[str, float]
    build_seconds: dict[str, float | None]
    unit: str


def evaluate_map(
    localizer: Localizer,
    queries: FrameSource,
    *,
    baseline: MatchingBaseline | None = None,
    baseline_seconds: float | None = None,
    pictures: int = 4,
    progress: bool = False,
) -> Evaluation:
    """Localize queries whose poses are known.

    Args:
        localizer: The map.
        queries: Frames with true poses; those without are counted and left out.
        baseline: Matches the whole mapping database, with the same features, in the same run.
        baseline_seconds: How long it took to make.
        pictures: Queries, evenly chosen, whose image and details are kept.
        progress: Show a progress bar.

    Raises:
        InputError: no query has a true pose.
    """
    total = len(queries)
    shown = set(np.linspace(0, total - 1, min(total, pictures)).round().astype(int).tolist())
    outcomes, without_truth = [], 0
    bar = tqdm(queries, total=total, desc='localizing', unit='image', disable=not progress)
    for index, frame in enumerate(bar):
        if frame.map_from_camera is None:
            without_truth += 1
            continue
        details = index in shown
        results = {OURS: localizer.localize(frame.image, frame.camera, details=details)}
        if baseline is not None and frame.image is not None and frame.camera is not None:
            features = localizer.extractor.extract(frame.image)
            results[BASELINE] = baseline.localize_features(features, frame.camera)
        outcomes.append(
            Outcome(frame.name, frame.map_from_camera, results, frame.image if details else None)
        )
    if not outcomes:
        raise InputError(
            f'none of the {total} queries has a true pose; give --truth, and check that its stamps '
            '(or names) fit'
        )
    manifest = localizer.scene_map.manifest
    seconds = manifest.metrics.get('seconds', {}).get('total')
    sizes = {OURS: localizer.scene_map.localization_size_bytes() / 1e6}
    times: dict[str, float | None] = {OURS: None if seconds is None else float(seconds)}
    if baseline is not None:
        sizes[BASELINE] = baseline.size_bytes() / 1e6
        times[BASELINE] = baseline_seconds
    return Evaluation(outcomes, without_truth, sizes, times, 'm' if manifest.metric else 'units')


def summary(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Return for each method its errors, recalls, size, build time and latency (JSON types)."""
    methods: dict[str, dict[str, Any]] = {}
    for method in evaluation.sizes_mb:
        results = [o.results[method] for o in evaluation.outcomes if method in o.results]
        metrics = metrics_from_errors(_errors(evaluation, method), len(evaluation.outcomes))
        counts = summarise(results)
        methods[method] = {
            **metrics.to_dict(),
            'refused': counts['refused'],
            'median_inlier_share': counts['median_inlier_share'],
            'latency_ms': counts['latency_ms'],
            'size_mb': round(evaluation.sizes_mb[method], 3),
            'build_seconds': evaluation.build_seconds[method],
        }
    return methods


def _errors(evaluation: Evaluation, method: str) -> list[tuple[float, float]]:
    return [
        pose_error(result.map_from_camera, outcome.truth)
        for outcome in evaluation.outcomes
        if (result := outcome.results.get(method)) is not None
        and result.map_from_camera is not None
    ]


def markdown_table(methods: dict[str, dict[str, Any]], unit: str) -> str:
    """Return the summary as a markdown table, a column for each method."""
    names = list(methods)
    lines = ['| | ' + ' | '.join(names) + ' |', '|---|' + '---|' * len(names)]

    def row(title: str, cell: Any) -> None:
        lines.append(f'| {title} | ' + ' | '.join(cell(methods[name]) for name in names) + ' |')

    def number(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)

    row('localized', lambda m: f'{m["num_localized"]}/{m["num_frames"]}')
    for title, key in (('median', 'median'), ('95 %', 'p95'), ('worst', 'max')):
        row(f'{title} error [{unit}]', lambda m, key=key: number(m[f'{key}_m'], '.4f'))
        row(f'{title} error [deg]', lambda m, key=key: number(m[f'{key}_deg'], '.3f'))
    for name in methods[names[0]]['recalls']:
        row(f'within {name}', lambda m, name=name: f'{100 * m["recalls"][name]:.1f} %')
    row('share of inliers', lambda m: number(m['median_inlier_share'], '.2f'))
    row('size [MB]', lambda m: number(m['size_mb'], '.2f'))
    row('build time [s]', lambda m: number(m['build_seconds'], '.0f'))
    for stage in ('features', 'network', 'pose', 'total'):
        row(
            f'latency, {stage} [ms]',
            lambda m, stage=stage: number(m['latency_ms'].get(stage, {}).get('median'), '.1f'),
        )
    return '\n'.join(lines) + '\n'


def write_report(
    evaluation: Evaluation,
    folder: Path,
    *,
    title: str,
    mapping: Sequence[RigidTransform] = (),
    points_in_map: NDArray[Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write table.md, report.json, report.html and the pictures as PNG; return the summary.

    Args:
        evaluation: What was measured.
        folder: Made if it is missing; files of the same names are replaced.
        title: Of the page.
        mapping: Poses of the mapping images, for the picture of the trajectory.
        points_in_map: (N, 3) landmarks, for the same.

    Raises:
        InputError: the folder cannot be written.
    """
    methods = summary(evaluation)
    outcomes = evaluation.outcomes
    curves = {
        method: (_errors(evaluation, method), len(outcomes)) for method in evaluation.sizes_mb
    }
    pictures = [
        (
            'errors',
            'Share of queries within an error',
            draw_cumulative_errors(curves, evaluation.unit),
        ),
        (
            'trajectory',
            'Camera positions from above: truth and estimates of the map',
            draw_trajectory(
                [outcome.truth for outcome in outcomes],
                [outcome.results[OURS].map_from_camera for outcome in outcomes],
                mapping,
                points_in_map,
                unit=evaluation.unit,
            ),
        ),
    ]
    for outcome in outcomes:
        details = outcome.results[OURS].details
        if outcome.image is None or details is None:
            continue
        result = outcome.results[OURS]
        text = f'{outcome.name}: {result.status.value}, {result.num_inliers} inliers'
        number = sum(name.startswith('reliability') for name, _, _ in pictures) + 1
        pictures.append(
            (f'reliability_{number}', text, draw_reliability(outcome.image, details, text))
        )
    document = {
        'methods': methods,
        'unit': evaluation.unit,
        'without_truth': evaluation.without_truth,
        'queries': [_query_document(outcome) for outcome in outcomes],
    }
    table = markdown_table(methods, evaluation.unit)
    rows = [
        tuple(cell.strip() for cell in line.strip('|').split('|', 1))
        for line in table.splitlines()
        if not line.startswith('|---')
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'table.md').write_text(table)
        (folder / 'report.json').write_text(json.dumps(document, indent=1) + '\n')
        for name, _, png in pictures:
            (folder / f'{name}.png').write_bytes(png)
        write_page(
            folder / 'report.html',
            title,
            [(name, value.replace('|', ' / ')) for name, value in rows],
            [(caption, png) for _, caption, png in pictures],
            refused=[
                (outcome.name, outcome.results[OURS].status.value, outcome.results[OURS].reason)
                for outcome in outcomes
                if not outcome.results[OURS].localized
            ],
        )
    except OSError as error:
        raise InputError(f'cannot write {folder}: {error.strerror}') from error
    return methods


def _query_document(outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {'name': outcome.name}
    for method, result in outcome.results.items():
        entry[method] = {'status': result.status.value}
        if result.map_from_camera is not None:
            metres, degrees = pose_error(result.map_from_camera, outcome.truth)
            entry[method] |= {'error_m': metres, 'error_deg': degrees}
    return entry
