"""A map of labels with further images: what they see, their pooled labels, and new points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.scene_models.labels.matching import keypoint_pixels
from d2s_ros.scene_models.labels.observer import LabelObserver
from d2s_ros.scene_models.labels.table import (
    MAX_POINTS,
    POOLED_LEVELS,
    LabelTable,
    packed_vector,
)
from d2s_ros.scene_models.view_updates import PosedView


def with_views(
    table: LabelTable,
    observer: LabelObserver,
    views: Sequence[PosedView],
    points_in_map: NDArray[np.float64],
    covariances: NDArray[np.float64],
) -> tuple[LabelTable, dict[str, Any]]:
    """Return the table with further images and points, and counts; nothing in it changes.

    New points get the labels that the heads of the map read in the views that see them. Points that
    no view sees are left out.

    Raises:
        InputError: there would be too many points.
    """
    first = len(table)
    if first + len(points_in_map) > MAX_POINTS:
        raise InputError(
            f'the map would have {first + len(points_in_map)} points, {MAX_POINTS} are possible; '
            'build it again'
        )
    scores: list[NDArray[np.float64]] = [
        np.zeros((len(points_in_map), level.num_labels))
        for level in (observer.field(views[0].view).levels if views else ())
    ]
    visible, poses, vectors = [], [], []
    for posed in views:
        field = observer.field(posed.view)
        pixels = keypoint_pixels(field, posed.view)
        new = np.flatnonzero((posed.point_idx >= first) & np.isfinite(pixels).all(axis=1))
        for total, words in zip(scores, field.words(pixels[new]), strict=True):
            np.add.at(total, posed.point_idx[new] - first, words.T)
        visible.append(np.unique(posed.point_idx[posed.point_idx >= 0]))
        pose = posed.map_from_camera
        poses.append(np.concatenate([pose.translation, pose.quaternion]))
        vectors.append(packed_vector(field.pooled(POOLED_LEVELS)))
    labels = np.stack([total.argmax(axis=1) for total in scores], axis=1).astype(np.uint8)
    seen = [len(rows) for rows in visible]
    grown = replace(
        table,
        points_in_map=np.concatenate([table.points_in_map, points_in_map]).astype(np.float32),
        covariances=np.concatenate([table.covariances, covariances]).astype(np.float32),
        labels=np.concatenate([table.labels, labels]),
        visible_offsets=np.concatenate(
            [table.visible_offsets, table.visible_offsets[-1] + np.cumsum(seen)]
        ),
        visible_points=np.concatenate([table.visible_points, *visible]).astype(np.uint16),
        image_poses=np.concatenate([table.image_poses, np.stack(poses)]).astype(np.float32),
        image_vectors=np.concatenate([table.image_vectors, np.stack(vectors)]),
    )
    return grown, {'images_added': len(views), 'points_added': len(points_in_map)}
