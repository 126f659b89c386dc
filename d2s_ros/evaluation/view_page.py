"""A page that shows a map in 3D: landmarks, mapping path, and what became of the frames of a log.

One HTML file with everything in it: it opens without a network, on any computer, and can be sent to
others. No photograph is in it, since maps keep none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData

#: More landmarks than that make the page slow to turn.
_MAX_POINTS = 60_000
#: Mapping images whose keypoints are in the page.
_MAX_IMAGES = 400


def view_page(scene_map: SceneMap, report: dict[str, Any] | None = None) -> str:
    """Return the page of a map.

    Args:
        scene_map: The map. With update data, its mapping images are shown with their keypoints.
        report: What `d2s localize --report` wrote; its frames are shown too.

    Raises:
        InputError: the report is none.
        MapFormatError: the update data is damaged.
    """
    origin = scene_map.origin
    points = scene_map.model.points_in_map
    if len(points) > _MAX_POINTS:
        points = points[np.linspace(0, len(points) - 1, _MAX_POINTS).astype(int)]
    frames: list[dict[str, Any]] = []
    path: list[list[float]] = []
    if scene_map.has_update_data:
        images = MappingData.from_map(scene_map.in_local_frame()).images
        path = [_rounded(image.map_from_camera.translation) for image in images]
        step = -(-len(images) // _MAX_IMAGES)
        for image in images[::step]:
            labelled = image.point_idx >= 0
            frames.append(
                {
                    'name': image.name,
                    'kind': 'mapping',
                    'status': 'mapping image',
                    'text': f'{int(labelled.sum())} of {len(labelled)} keypoints have a point',
                    'width': image.camera.width,
                    'height': image.camera.height,
                    'keypoints': _packed_keypoints(image.features.keypoints, labelled),
                    **_place(image.map_from_camera),
                }
            )
    localized = refused = 0
    if report is not None:
        for entry in _frames_of(report):
            pose = entry.get('map_from_camera')
            kind = 'refused' if pose is None else 'localized'
            localized += pose is not None
            refused += pose is None
            own = None if pose is None else RigidTransform.from_tum(pose).moved(-origin)
            frames.append(
                {
                    'name': str(entry.get('name', '')),
                    'kind': kind,
                    'status': str(entry.get('status', kind)),
                    'text': str(entry.get('reason') or '')
                    or f'{entry.get("num_inliers")} inliers of {entry.get("num_reliable")} '
                    f'reliable keypoints, {entry.get("num_keypoints")} in all',
                    **({} if own is None else _place(own)),
                }
            )
    manifest = scene_map.manifest
    counts = f'{len(scene_map.model.points_in_map)} landmarks, {len(path)} mapping images'
    if report is not None:
        counts += f', {localized} frames localized, {refused} refused'
    data = {
        'title': f'version {manifest.version}, frame {manifest.map_frame}',
        'counts': counts,
        'unit': 'm' if manifest.metric else 'units (arbitrary scale)',
        'points': _base64(points.astype('<f4')),
        'path': path,
        'frames': frames,
    }
    template = (resources.files('d2s_ros.evaluation') / 'pages' / 'view.html').read_text('utf-8')
    # A name of a frame must not end the script.
    return template.replace('__DATA__', json.dumps(data).replace('<', '\\u003c'))


def _frames_of(report: dict[str, Any]) -> Sequence[dict[str, Any]]:
    frames = report.get('frames') if isinstance(report, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError('the report has no frames: give one that d2s localize --report wrote')
    return frames


def _place(pose: RigidTransform) -> dict[str, Any]:
    return {'position': _rounded(pose.translation), 'ahead': _rounded(pose.rotation[:, 2])}


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in values]


def _packed_keypoints(keypoints: NDArray[np.float32], labelled: NDArray[np.bool_]) -> str:
    """Return (x, y, has a point) of all keypoints, 16 bits each."""
    rows = np.column_stack([np.rint(keypoints).clip(0, 65535), labelled])
    return _base64(rows.astype('<u2'))


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
