"""A page that shows a map in 3D: landmarks, mapping path, and what became of the frames of a log.

One HTML file with everything in it: it opens without a network, on any computer, and can be sent to
others. No photograph is in it, since maps keep none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from d2s_ros.errors import InputError
from d2s_ros.evaluation.keypoint_marks import INLIER, UNKNOWN, packed
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.localization.advice import what_to_do
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData

#: More landmarks than that make the page slow to turn.
_MAX_POINTS = 60_000
#: Mapping images whose keypoints are in the page.
_MAX_IMAGES = 400
#: Landmarks of two versions are the same place within this share of the size of the scene.
_SAME_PLACE = 0.005


def view_page(
    scene_map: SceneMap,
    reports: Mapping[str, dict[str, Any]] | None = None,
    *,
    before: SceneMap | None = None,
    live: bool = False,
) -> str:
    """Return the page of a map.

    Args:
        scene_map: The map. With update data, its mapping images are shown with their keypoints.
        reports: What `d2s localize --report` wrote, by the name of the session; their frames are
            shown too, and each session can be hidden.
        before: An earlier version of the map: what is new and what is gone is coloured.
        live: The page asks the server that it came from for more frames, and for their pictures.

    Raises:
        InputError: a report is none.
        MapFormatError: the update data is damaged.
    """
    origin = scene_map.origin
    points = _fewer(scene_map.model.points_in_map)
    mapping = None
    if scene_map.has_update_data:
        mapping = MappingData.from_map(scene_map.in_local_frame())
    frames = [] if mapping is None else _mapping_frames(mapping)
    colours = None if mapping is None else mapping.colours_of(points)
    path = [frame['position'] for frame in frames]
    step = -(-len(frames) // _MAX_IMAGES) or 1
    frames = frames[::step]
    sessions = ['mapping images'] if frames else []
    localized = refused = 0
    for name, report in (reports or {}).items():
        for entry in _frames_of(report):
            frame = view_frame(entry, origin)
            localized += frame['kind'] == 'localized'
            refused += frame['kind'] == 'refused'
            frames.append({**frame, 'session': len(sessions)})
        sessions.append(name)
    manifest = scene_map.manifest
    counts = f'{len(scene_map.model.points_in_map)} landmarks, {len(path)} mapping images'
    if reports:
        counts += f', {localized} frames localized, {refused} refused'
    data: dict[str, Any] = {
        'title': f'version {manifest.version}, frame {manifest.map_frame}',
        'counts': counts,
        'unit': 'm' if manifest.metric else 'units (arbitrary scale)',
        'points': _base64(points.astype('<f4')),
        'colours': None if colours is None else _base64(colours),
        'path': path,
        'origin': [float(value) for value in origin],
        'frames': frames,
        'sessions': [*sessions, 'live'] if live else sessions,
        'live': live,
    }
    if before is not None:
        earlier = _fewer(before.model.points_in_map + (before.origin - origin))
        data['new'] = _base64(_far_from(points, earlier))
        data['gone'] = _base64(earlier[_far_from(earlier, points)].astype('<f4'))
        data['title'] += f', after version {before.manifest.version}'
    template = (resources.files('d2s_ros.evaluation') / 'pages' / 'view.html').read_text('utf-8')
    # A name of a frame must not end the script.
    page = template.replace('__DATA__', json.dumps(data).replace('<', '\\u003c'))
    return page.replace("default-src 'none'", "default-src 'none'; connect-src 'self'", int(live))


def view_frame(entry: Mapping[str, Any], origin: NDArray[np.float64]) -> dict[str, Any]:
    """Return what the page shows of a frame.

    Args:
        entry: Of the frame in the report of `d2s localize`.
        origin: (3,) of the map.
    """
    pose = entry.get('map_from_camera')
    kind = 'refused' if pose is None else 'localized'
    status = str(entry.get('status', kind))
    text = (
        f'{entry.get("num_inliers")} inliers of {entry.get("num_reliable")} reliable keypoints, '
        f'{entry.get("num_keypoints")} in all'
    )
    frame = {'name': str(entry.get('name', '')), 'kind': kind, 'status': status, 'text': text}
    frame |= {name: entry[name] for name in ('width', 'height', 'keypoints') if name in entry}
    if pose is None:
        frame['text'] = str(entry.get('reason') or text)
        frame['advice'] = what_to_do(status)
        return frame
    return {**frame, **_place(RigidTransform.from_tum(pose).moved(-origin))}


def _mapping_frames(mapping: MappingData) -> list[dict[str, Any]]:
    """Return what the page shows of the mapping images."""
    frames = []
    for image in mapping.images:
        labelled = image.point_idx >= 0
        frames.append(
            {
                'name': image.name,
                'kind': 'mapping',
                'session': 0,
                'status': 'mapping image',
                'text': f'{int(labelled.sum())} of {len(labelled)} keypoints have a point',
                'width': image.camera.width,
                'height': image.camera.height,
                'keypoints': packed(image.features.keypoints, np.where(labelled, INLIER, UNKNOWN)),
                **_place(image.map_from_camera),
            }
        )
    return frames


def _fewer(points: NDArray[Any]) -> NDArray[Any]:
    """Return points (N, 3), evenly fewer where they are too many."""
    if len(points) <= _MAX_POINTS:
        return points
    return points[np.linspace(0, len(points) - 1, _MAX_POINTS).astype(int)]


def _far_from(points: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which points (N, 3) have none of the others near."""
    low, high = np.percentile(np.concatenate([points, others]), [2, 98], axis=0)
    near = _SAME_PLACE * float(np.max(high - low))
    distances, _ = cKDTree(others).query(points, distance_upper_bound=near)
    return ~np.isfinite(distances)


def _frames_of(report: dict[str, Any]) -> Sequence[dict[str, Any]]:
    frames = report.get('frames') if isinstance(report, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError('the report has no frames: give one that d2s localize --report wrote')
    return frames


def _place(pose: RigidTransform) -> dict[str, Any]:
    return {'position': _rounded(pose.translation), 'ahead': _rounded(pose.rotation[:, 2])}


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in values]


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
