"""The comparison of features as a table, and pictures of matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.features.evaluation import TOLERANCE, match_mutual
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.features.warped_pairs import CONDITIONS, make_warped_pair, warp_points

Image = NDArray[np.uint8]

#: method -> condition -> figure.
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]

_WARP_COLUMNS = (
    ('repeatability', 'repeatability', '{:.3f}'),
    ('localization_error', 'error px', '{:.2f}'),
    ('homography_1', 'homography 1 px', '{:.2f}'),
    ('homography_3', '3 px', '{:.2f}'),
    ('homography_5', '5 px', '{:.2f}'),
    ('mma', 'MMA 3 px', '{:.3f}'),
    ('matching_score', 'matching score', '{:.3f}'),
)
_POSED_COLUMNS = (('verified', 'verified matches', '{:.0f}'), ('precision', 'precision', '{:.3f}'))


_INTRODUCTION = """# Local features compared

Made by `d2s features evaluate`. All methods get the same images, the same number of keypoints and
mutual nearest neighbours without a ratio test. Error is the mean distance of repeated keypoints;
homography is the share of pairs whose corners are right to that many px; MMA is the share of right
matches; matching score is right matches per keypoint in the common part. On real pairs a match is
verified if the known poses confirm it to 3 px."""


def markdown(results: Mapping[str, Figures]) -> str:
    """Return the tables as markdown.

    Args:
        results: 'warps' and the names of posed image sets -> figures.
    """
    parts = [_INTRODUCTION]
    for name, figures in results.items():
        columns = _WARP_COLUMNS if name == 'warps' else _POSED_COLUMNS
        title = 'Warps of held-out photographs' if name == 'warps' else f'Real pairs: {name}'
        header = ['condition', 'features', *(column for _, column, _ in columns)]
        lines = [f'## {title}', '', _row(header), _row(['---'] * len(header))]
        methods = list(figures)
        for condition in figures[methods[0]] if methods else ():
            for method in methods:
                values = figures[method][condition]
                cells = [form.format(values[key]) for key, _, form in columns]
                lines.append(_row([condition, method, *cells]))
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def _row(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'


def draw_matches(
    photographs: Sequence[Image],
    extractors: Mapping[str, FeatureExtractor],
    *,
    keypoints: int = 300,
    width: int = 190,
    seed: int = 3,
) -> Image:
    """Draw matches of one pair per row and one method per column; (H, W, 3) BGR.

    Right matches (within 3 px of the truth) are green, wrong ones red. The pairs take turns
    through viewpoint, blur, exposure and night.
    """
    chosen = [condition for condition in CONDITIONS if condition.name != 'noise']
    rows = []
    for index, photograph in enumerate(photographs):
        scale = 2 * width / photograph.shape[1]
        size = (round(photograph.shape[1] * scale), round(photograph.shape[0] * scale))
        resized = np.asarray(cv2.resize(photograph, size, interpolation=cv2.INTER_AREA), np.uint8)
        condition = chosen[index % len(chosen)]
        pair = make_warped_pair(resized, condition, seed + index)
        cells = []
        for name, extractor in extractors.items():
            first = extractor.extract(pair.first).strongest(keypoints)
            second = extractor.extract(pair.second).strongest(keypoints)
            matches = match_mutual(first.descriptors, second.descriptors)
            points = first.keypoints[matches[:, 0]]
            others = second.keypoints[matches[:, 1]]
            truth = warp_points(pair.second_from_first, points)
            right = np.linalg.norm(truth - others, axis=1) <= TOLERANCE
            title = f'{name}, {condition.name}: {int(right.sum())} of {len(right)} right'
            cells.append(_draw_pair(pair.first, pair.second, points, others, right, title))
        rows.append(np.hstack(cells))
    return np.asarray(np.vstack(rows), np.uint8)


def _draw_pair(
    first: Image,
    second: Image,
    points: NDArray[np.float32],
    others: NDArray[np.float32],
    right: NDArray[np.bool_],
    title: str,
) -> Image:
    """Draw one pair side by side at half its size, with a line per match."""
    both = cv2.resize(
        np.hstack([first, second]), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA
    )
    # Sixteen greys are enough behind the lines, and make a smaller file.
    coarse = np.asarray(both, np.uint8) // 16 * 16
    canvas = np.asarray(cv2.cvtColor(coarse, cv2.COLOR_GRAY2BGR), np.uint8)
    offset = canvas.shape[1] / 2
    # Wrong matches first, so that the right ones stay visible.
    for index in np.argsort(right, kind='stable'):
        colour = (80, 200, 60) if right[index] else (60, 60, 230)
        start = (int(points[index, 0] / 2), int(points[index, 1] / 2))
        stop = (int(others[index, 0] / 2 + offset), int(others[index, 1] / 2))
        cv2.line(canvas, start, stop, colour, 1, cv2.LINE_AA)
    cv2.rectangle(canvas, (0, 0), (canvas.shape[1], 18), (0, 0, 0), -1)
    cv2.putText(
        canvas, title, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA
    )
    return canvas
