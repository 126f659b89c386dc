"""Pictures and a page for people: trajectory against truth, reliable and unreliable keypoints."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.extractor import to_grey
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.result import FrameDetails

_GREEN, _RED, _BLUE, _GREY = '#1a9641', '#d7191c', '#2c7bb6', '#9e9e9e'


def draw_trajectory(
    truth: Sequence[RigidTransform],
    estimates: Sequence[RigidTransform | None],
    mapping: Sequence[RigidTransform] = (),
    points_in_map: NDArray[Any] | None = None,
) -> bytes:
    """Return a PNG of camera centres from above (map x and y).

    Args:
        truth: map_from_camera of every query frame.
        estimates: The same frames; None where refused.
        mapping: map_from_camera of the mapping frames.
        points_in_map: (N, 3) landmarks, for orientation.
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
    axes.set_xlabel('map x [m]')
    axes.set_ylabel('map y [m]')
    axes.set_title('camera positions from above')
    axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return _png(figure)


def draw_reliability(image: NDArray[np.uint8], details: FrameDetails, title: str = '') -> bytes:
    """Return a PNG of an image with reliable keypoints green and unreliable ones red."""
    from matplotlib.figure import Figure

    grey = to_grey(image)
    height, width = grey.shape
    figure = Figure(figsize=(8.0, 8.0 * height / width + 0.4), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(grey, cmap='gray', vmin=0, vmax=255)
    for mask, color, name in (
        (~details.reliable, _RED, 'unreliable'),
        (details.reliable, _GREEN, 'reliable'),
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


def write_page(
    path: Path, title: str, rows: Sequence[tuple[str, str]], pictures: Sequence[tuple[str, bytes]]
) -> None:
    """Write an HTML page that needs no other file: a table and captioned pictures."""
    table = ''.join(
        f'<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    figures = ''.join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption>{html.escape(caption)}</figcaption>'
        '</figure>'
        for caption, png in pictures
    )
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<title>{html.escape(title)}</title><style>'
        'body{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}'
        'table{border-collapse:collapse}th,td{text-align:left;padding:.25rem .8rem;'
        'border-bottom:1px solid #ddd}th{font-weight:600}img{max-width:100%}'
        'figure{margin:1.5rem 0}figcaption{color:#555}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><table>{table}</table>{figures}</body></html>\n',
        encoding='utf-8',
    )


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
