"""The HTML report of an update: what happened to each frame, and both maps before and after.

The page stands alone and holds plots and figures only, no image of the logs.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.errors import InputError
from d2s_ros.evaluation.coverage_summary import CoverageSummary
from d2s_ros.map_update.result import UpdateResult

_COLOURS = {'used': '#2a7f3f', 'held_out': '#2b5fa8', 'dropped': '#b03a2e'}
_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 62em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; text-align: left;
border-bottom: 1px solid #ddd } th { background: #f4f4f4 } .used { color: #2a7f3f }
.dropped { color: #b03a2e } .held_out { color: #2b5fa8 } img { max-width: 100% }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 1.8em }
"""


def write_report(
    path: str | os.PathLike[str],
    result: UpdateResult,
    title: str,
    *,
    coverage: CoverageSummary | None = None,
) -> None:
    """Write the report of an update; an existing file is replaced when the new one is complete.

    Args:
        path: The file.
        result: Of the update.
        title: Of the page.
        coverage: Where the version that was written localizes; left out if None.

    Raises:
        InputError: if it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        temporary.write_text(report_html(result, title, coverage=coverage), encoding='utf-8')
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f'cannot write {target}: {error.strerror}') from error


def report_html(
    result: UpdateResult, title: str, *, coverage: CoverageSummary | None = None
) -> str:
    """Return the page as text."""
    reasons = ''.join(f'<li>{html.escape(reason)}</li>' for reason in result.reasons)
    parts = [
        f'<h1>{html.escape(title)}</h1>',
        f'<p><b>{html.escape(result.verdict.replace("_", " "))}</b>; live version: '
        f'{html.escape(result.version)}'
        + (
            f'; candidate: {html.escape(result.candidate_version)}'
            if result.candidate_version
            else ''
        )
        + f'</p><ul>{reasons}</ul>',
    ]
    if result.decision is not None:
        parts += ['<h2>Before and after</h2>', _comparison(result.decision.metrics)]
    if result.changes is not None:
        regions = [
            (
                ', '.join(f'{value:.1f}' for value in region.center),
                region.known,
                region.lost,
                region.new,
            )
            for region in result.changes.regions()
        ]
        parts += [
            '<h2>What changed in the place</h2>',
            f'<p>{html.escape(result.changes.sentences()[0])}</p>',
            _table(('around x, y, z', 'points before', 'lost', 'new'), regions),
            _image(result.changes.picture()),
        ]
    if coverage is not None:
        lines = ''.join(f'<li>{html.escape(line)}</li>' for line in coverage.sentences())
        parts += [
            '<h2>Where the map localizes</h2>',
            f'<ul>{lines}</ul>',
            _image(coverage.picture()),
        ]
    parts += ['<h2>Where the frames are</h2>', _image(_trajectory_plot(result))]
    numbers = [
        (name.replace('_', ' '), value)
        for name, value in result.figures.items()
        if isinstance(value, (int, float))
    ]
    parts += ['<h2>Counts</h2>', _table(('what', 'count'), numbers)]
    dropped = result.figures.get('dropped_reasons') or {}
    if dropped:
        parts += [
            '<h2>Why frames were dropped</h2>',
            _table(('reason', 'frames'), dropped.items()),
        ]
    rows = [
        (
            record.log,
            record.name,
            f'<span class="{record.outcome}">{record.outcome.replace("_", " ")}</span>',
            record.reason,
            record.num_labels,
            record.num_inliers,
        )
        for record in result.records
    ]
    header = ('log', 'frame', 'outcome', 'reason', 'labels', 'agreeing')
    parts += ['<h2>Frames</h2>', _table(header, rows, raw_column=2)]
    seconds = result.figures.get('seconds') or {}
    if seconds:
        parts += ['<h2>Seconds</h2>', _table(('step', 'seconds'), seconds.items())]
    body = '\n'.join(parts)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f'</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n'
    )


def _comparison(metrics: dict[str, Any]) -> str:
    rows = []
    compared = [('frames of the old map', metrics['old'])]
    compared += [
        (f'of these, from {name}' if name else 'of these, from the first mapping', figures)
        for name, figures in metrics['old_logs'].items()
    ]
    for label, figures in [*compared, ('held-out frames of the logs', metrics['new'])]:
        before, after = figures['incumbent'], figures['candidate']
        gain = '-'
        if figures['gain'] is not None:
            gain = (
                f'{100 * figures["gain"]:+.1f} points '
                f'({100 * figures["gain_low"]:+.1f} to {100 * figures["gain_high"]:+.1f})'
            )
        rows.append(
            (
                label,
                f'{figures["with_reference"]} of {figures["frames"]}',
                f'{_percent(before["recall"])} to {_percent(after["recall"])}',
                gain,
                f'{_number(before["median_m"])} to {_number(after["median_m"])}',
                f'{before["median_inliers"]:.0f} to {after["median_inliers"]:.0f}',
            )
        )
    header = ('frames', 'with reference', 'recall', 'gain', 'median error', 'median inliers')
    return _table(header, rows) + _image(_recall_plot(metrics))


def _recall_plot(metrics: dict[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6))
    axes = figure.add_subplot()
    for offset, side in ((-0.2, 'incumbent'), (0.2, 'candidate')):
        recalls = [100 * (metrics[name][side]['recall'] or 0.0) for name in ('old', 'new')]
        axes.bar(np.arange(2) + offset, recalls, 0.38, label=side)
    axes.set_xticks([0, 1], ['old frames', 'new frames'])
    axes.set_ylabel('recall [%]')
    axes.set_ylim(0, 105)
    axes.legend(loc='lower right')
    return _png(figure)


def _trajectory_plot(result: UpdateResult) -> bytes:
    """Draw camera positions from above: along the two directions in which they vary most."""
    from matplotlib.figure import Figure

    old = result.old_poses[:, :3]
    new = [
        (frame.map_from_camera.translation, 'held_out' if frame.held_out else 'used')
        for frame in result.frames
        if frame.map_from_camera is not None
    ]
    figure = Figure(figsize=(6, 4.2))
    axes = figure.add_subplot()
    everything = np.concatenate([old, np.array([p for p, _ in new]).reshape(-1, 3)])
    if len(everything):
        order = np.sort(np.argsort(-np.var(everything, axis=0))[:2])
        axes.plot(old[:, order[0]], old[:, order[1]], '.', color='#bbb', label='old images')
        for outcome in ('used', 'held_out'):
            chosen = np.array([p for p, kind in new if kind == outcome]).reshape(-1, 3)
            axes.plot(
                chosen[:, order[0]],
                chosen[:, order[1]],
                'o',
                markersize=4,
                color=_COLOURS[outcome],
                label=f'{outcome.replace("_", " ")}, verified',
            )
        axes.set_xlabel(f'{"xyz"[order[0]]} [m]')
        axes.set_ylabel(f'{"xyz"[order[1]]} [m]')
        axes.set_aspect('equal', adjustable='datalim')
        axes.legend(loc='best')
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110, bbox_inches='tight')
    return buffer.getvalue()


def _image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]], raw_column: int = -1) -> str:
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in header)
    lines = [
        '<tr>'
        + ''.join(
            f'<td>{cell if column == raw_column else html.escape(str(cell))}</td>'
            for column, cell in enumerate(row)
        )
        + '</tr>'
        for row in rows
    ]
    return f'<table><tr>{head}</tr>{"".join(lines)}</table>'


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f} %'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'
