"""A page of images that a map published although they show another place."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

#: Name of a mapping image, its position (3,) in the map, and its pixels or where they are.
Mapped = tuple[str, np.ndarray, np.ndarray | Path]
_WIDTH = 480
_STYLE = (
    'body { font-family: sans-serif; margin: 2em; } figure { display: inline-block; margin: 4px; }'
    'td, th { text-align: left; padding: 0 1em 0 0; } .failed { color: #b00; }'
)


def page(
    rows: list[dict[str, Any]],
    mapped: Callable[[str], list[Mapped]],
    picture: Callable[[dict[str, Any]], np.ndarray | None],
) -> str:
    """Return a page with each published image beside the mapping image nearest to its pose.

    Args:
        rows: Of `false_accepts.py`.
        mapped: Returns the mapping images of a map.
        picture: Returns the image of a row.
    """
    published = [row for row in rows if row['published']]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>False accepts</title>',
        f'<style>{_STYLE}</style>',
        f'<p>{len(published)} of {len(rows)} images of other places were published.</p>',
    ]
    for row in published:
        images = mapped(row['map'])
        away = [float(np.linalg.norm(position - row['camera'])) for _, position, _ in images]
        name, _, pixels = images[int(np.argmin(away))]
        title = f'{row["source"]} {row["frame"]}, {row["condition"]}, in the map {row["map"]}'
        parts.append(f'<h2>{html.escape(title)}</h2>')
        parts.append(_figure(picture(row), f'asked: {row["frame"]}'))
        near = cv2.imread(str(pixels)) if isinstance(pixels, Path) else pixels
        parts.append(_figure(near, f'mapping image nearest to the pose: {name}'))
        parts.append(_checks(row))
    return '\n'.join(parts) + '</html>\n'


def _figure(image: np.ndarray | None, caption: str) -> str:
    text = html.escape(caption)
    if image is None:
        return f'<figure><figcaption>{text} (cannot be read)</figcaption></figure>'
    image = cv2.resize(image, (_WIDTH, round(_WIDTH * image.shape[0] / image.shape[1])))
    data = base64.b64encode(cv2.imencode('.jpg', image)[1].tobytes()).decode()
    return (
        f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}">'
        f'<figcaption>{text}</figcaption></figure>'
    )


def _checks(row: dict[str, Any]) -> str:
    """Return the checks of a row with their limits, and what else is known, as a table."""
    cells = [
        f'<tr><td>{html.escape(name)}</td><td>{value:.4g}</td><td>{limit:.4g}</td></tr>'
        for name, (value, limit) in row['checks'].items()
    ]
    for name in ('keypoints', 'reliable', 'used', 'support'):
        cells.append(f'<tr><td>{name}</td><td>{row.get(name, 0)}</td><td></td></tr>')
    head = '<tr><th>check</th><th>value</th><th>limit</th></tr>'
    return f'<table>{head}{"".join(cells)}</table>'
