"""Pictures and a page for people: trajectory against truth, reliable and unreliable keypoints."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.evaluation.metrics import RECALL_THRESHOLDS
from d2s_ros.features.types import to_grey
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.advice import what_to_do
from d2s_ros.localization.result import FrameDetails

#: Where curves are usually read.
RECALL_METRES = tuple(sorted({metres for metres, _ in RECALL_THRESHOLDS}))
RECALL_DEGREES = tuple(sorted({degrees for _, degrees in RECALL_THRESHOLDS}))

#: Refused frames that a page lists.
_MOST_REFUSED = 50
#: Pictures keep their white paper in the dark.
_STYLE = (
    ':root{color-scheme:light dark;--back:#fff;--text:#222;--line:#ddd;--soft:#555}'
    '@media(prefers-color-scheme:dark){:root{--back:#15181c;--text:#ddd;--line:#444;--soft:#aaa}}'
    'body{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;'
    'background:var(--back);color:var(--text)}'
    'table{border-collapse:collapse}th,td{text-align:left;padding:.25rem .8rem;'
    'border-bottom:1px solid var(--line)}th{font-weight:600}img{max-width:100%;background:#fff}'
    'figure{margin:1.5rem 0}figcaption{color:var(--soft)}'
    'pre{border:1px solid var(--line);padding:.6rem;overflow:auto}'
)

_GREEN, _RED, _BLUE, _GREY = '#1a9641', '#d7191c', '#2c7bb6', '#9e9e9e'


def draw_trajectory(
    truth: Sequence[RigidTransform],
    estimates: Sequence[RigidTransform | None],
    mapping: Sequence[RigidTransform] = (),
    points_in_map: NDArray[Any] | None = None,
    *,
    unit: str = 'm',
) -> bytes:
    """Return a PNG of camera centres from above (map x and y).

    Args:
        truth: map_from_camera of every query frame.
        estimates: The same frames; None where refused.
        mapping: map_from_camera of the mapping frames.
        points_in_map: (N, 3) landmarks, for orientation.
        unit: Of the map.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6.0), layout='constrained')
    axes = figure.add_subplot()
    if points_in_map is not None and len(points_in_map):
        low, high = np.percentile(points_in_map, [1, 99], axis=0)
        inside = ((points_in_map >= low) & (points_in_map <= high)).all(axis=1)
        shown = points_in_map[inside]
        axes.scatter(shown[:, 0], shown[:, 1], s=1, c='#dddddd', label='landmarks')
    if mapping:
        path = np.stack([pose.translation for pose in mapping])
        axes.plot(path[:, 0], path[:, 1], '-', color=_GREY, lw=1, label='mapping path')
    centres = np.stack([pose.translation for pose in truth])
    axes.plot(centres[:, 0], centres[:, 1], 'o', mfc='none', mec=_BLUE, ms=8, label='truth')
    for pose in truth:
        ahead = pose.translation + 0.3 * pose.rotation[:, 2]
        axes.plot(
            [pose.translation[0], ahead[0]], [pose.translation[1], ahead[1]], color=_BLUE, lw=0.8
        )
    found = [pose.translation for pose in estimates if pose is not None]
    if found:
        positions = np.stack(found)
        axes.plot(positions[:, 0], positions[:, 1], '.', color=_GREEN, ms=7, label='localized')
    refused = [t.translation for t, e in zip(truth, estimates, strict=True) if e is None]
    if refused:
        positions = np.stack(refused)
        axes.plot(positions[:, 0], positions[:, 1], 'x', color=_RED, ms=8, label='refused')
    axes.set_aspect('equal')
    axes.set_xlabel(f'map x [{unit}]')
    axes.set_ylabel(f'map y [{unit}]')
    axes.set_title('camera positions from above')
    axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return _png(figure)


def draw_cumulative_errors(
    curves: Mapping[str, tuple[Sequence[tuple[float, float]], int]], unit: str = 'm'
) -> bytes:
    """Return a PNG of the share of queries below an error, of position and of rotation.

    Args:
        curves: Method to the (position, degrees) errors of localized queries and the number of all.
        unit: Of positions.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.2), layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    kinds = (
        (f'position error [{unit}]', RECALL_METRES, (1e-4, 1.0)),
        ('rotation error [deg]', RECALL_DEGREES, (1e-3, 20.0)),
    )
    for column, (axes, (label, limits, shown)) in enumerate(zip(panels, kinds, strict=True)):
        for limit in limits:
            axes.axvline(limit, color='#e0e0e0', lw=0.8)
        for (name, (errors, total)), (color, style) in zip(
            curves.items(), ((_GREEN, '-'), (_BLUE, '--'), (_RED, ':'), (_GREY, '-.')), strict=False
        ):
            values = np.sort(np.array([error[column] for error in errors], dtype=np.float64))
            values = np.clip(values, shown[0], None)
            share = 100.0 * np.arange(len(values) + 1) / max(1, total)
            # From the left edge to the right one: what was not localized never comes.
            edges = np.concatenate([[shown[0]], values, [max(shown[1], *values, shown[0])]])
            axes.step(
                edges,
                np.concatenate([share, share[-1:]]),
                where='post',
                color=color,
                ls=style,
                label=name,
            )
        axes.set_xscale('log')
        axes.set_xlim(*shown)
        axes.set_ylim(0, 101)
        axes.set_xlabel(label)
        axes.grid(axis='y', color='#e0e0e0', lw=0.6)
    panels[0].set_ylabel('share of all queries [%]')
    panels[1].legend(loc='lower right', fontsize=9)
    figure.suptitle('cumulative errors', fontsize=11)
    return _png(figure)


def draw_reliability(image: NDArray[np.uint8], details: FrameDetails, title: str = '') -> bytes:
    """Return a PNG of an image: inliers green, other reliable keypoints blue, the rest red."""
    from matplotlib.figure import Figure

    grey = to_grey(image)
    height, width = grey.shape
    figure = Figure(figsize=(8.0, 8.0 * height / width + 0.4), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(grey, cmap='gray', vmin=0, vmax=255)
    other = details.reliable & ~details.inlier
    for mask, color, name in (
        (~details.reliable & ~details.inlier, _RED, 'unreliable'),
        (other, _BLUE, 'reliable, no inlier'),
        (details.inlier, _GREEN, 'inlier'),
    ):
        points = details.keypoints[mask]
        axes.scatter(
            points[:, 0], points[:, 1], s=8, c=color, linewidths=0, label=f'{name} ({mask.sum()})'
        )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    axes.legend(loc='lower right', fontsize=8)
    if title:
        axes.set_title(title, fontsize=9)
    return _png(figure)


def draw_overview(
    image: NDArray[np.uint8],
    details: FrameDetails,
    pose: RigidTransform,
    poses: Sequence[RigidTransform],
    points_in_map: NDArray[Any],
    *,
    unit: str = 'm',
) -> bytes:
    """Return a PNG that shows what localizing is: an image, and where it was taken in the map.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        details: Of its localization.
        pose: map_from_camera that was found for it.
        poses: The same of other images.
        points_in_map: (N, 3) landmarks.
        unit: Of the map.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    left.imshow(to_grey(image), cmap='gray')
    keypoints = details.keypoints[details.inlier]
    left.plot(keypoints[:, 0], keypoints[:, 1], '.', color=_GREEN, ms=4)
    left.set_axis_off()
    left.set_title(f'one image: {len(keypoints)} inliers (green) give the pose', fontsize=10)
    x, y = points_in_map[:, 0], points_in_map[:, 1]
    right.plot(x, y, '.', color='#a0a0a0', ms=1.5, label='landmarks of the map')
    # Where most landmarks are, and all cameras.
    corners = np.percentile(points_in_map[:, :2], [3, 97], axis=0)
    places = np.stack([*corners, *(one.translation[:2] for one in [*poses, pose])])
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.05 * float(np.max(high - low)) + 1e-6
    length = 0.05 * float(np.max(high - low)) + 1e-6
    for one in [*poses, pose]:
        this = one is pose
        ahead = one.rotation[:2, 2] * length * (1.6 if this else 0.9)
        right.arrow(
            *one.translation[:2],
            *ahead,
            head_width=0.35 * length,
            color=_RED if this else _BLUE,
            zorder=3 + this,
        )
    right.plot([], [], '-', color=_BLUE, label='cameras localized')
    right.plot([], [], '-', color=_RED, label='the image on the left')
    right.set_xlim(low[0] - margin, high[0] + margin)
    right.set_ylim(low[1] - margin, high[1] + margin)
    right.set_aspect('equal')
    right.set_xlabel(f'map x [{unit}]')
    right.set_ylabel(f'map y [{unit}]')
    # Below the image: labels of axes of equal scale reach into what is reserved below them.
    figure.legend(loc='outside lower left', ncols=3, fontsize=8)
    right.set_title('the map from above', fontsize=10)
    return _png(figure)


def write_page(
    path: Path,
    title: str,
    rows: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, bytes]],
    *,
    refused: Sequence[tuple[str, str, str]] = (),
    try_next: Sequence[str] = (),
) -> None:
    """Write an HTML page that needs no other file, light or dark as the reader's computer is.

    Args:
        path: Of the page.
        title: Of the page.
        rows: A table of names and values.
        pictures: Captions and PNG files; the first opens the page.
        refused: Name, status and reason of frames that were refused; what to do is added.
        try_next: Commands.
    """
    table = ''.join(
        f'<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    figures = [
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption>{html.escape(caption)}</figcaption>'
        '</figure>'
        for caption, png in pictures
    ]
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>'
        f'<h1>{html.escape(title)}</h1>{"".join(figures[:1])}<table>{table}</table>'
        f'{"".join(figures[1:])}{_refused_section(refused)}{_next_section(try_next)}'
        '</body></html>\n',
        encoding='utf-8',
    )


def _refused_section(refused: Sequence[tuple[str, str, str]]) -> str:
    """Return the frames that were refused: why, and what to do."""
    if not refused:
        return ''
    rows = ''.join(
        '<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in (*frame, what_to_do(frame[1])))
        for frame in refused[:_MOST_REFUSED]
    )
    more = len(refused) - _MOST_REFUSED
    rest = f'<p>{more} more are in the report.</p>' if more > 0 else ''
    return (
        '<h2>Refused frames</h2><table><tr><th>frame</th><th>status</th><th>reason</th>'
        f'<th>what to do</th></tr>{rows}</table>{rest}'
    )


def _next_section(commands: Sequence[str]) -> str:
    if not commands:
        return ''
    return f'<h2>Try next</h2><pre>{html.escape(chr(10).join(commands))}</pre>'


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
