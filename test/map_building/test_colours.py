"""Colours of points: those of the pixels that see them, kept for the eye and through an update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2s_ros.errors import MapFormatError
from d2s_ros.map_building.colours import point_colours
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.maps.update_data import NO_COLOUR, MappingData, collect_update_data


def test_points_have_the_colours_of_their_pixels(small_map, tmp_path):
    scene_map = SceneMap.open(small_map.path)
    data = MappingData.from_map(scene_map)
    assert data.colours is None
    assert data.colours_of(data.points_in_map) is None
    reconstruction = data.reconstruction()
    # Green by day for the eye, whatever was photographed; a grey camera has one channel.
    frames = []
    for number, frame in enumerate(small_map.frames):
        painted = np.zeros((*frame.image.shape[:2], 3), np.uint8)
        painted[..., 1] = 200
        painted[..., 0] = 10
        grey = np.full(frame.image.shape[:2], 70, np.uint8)
        frames.append(replace(frame, image=painted if number % 2 else grey))
    colours = point_colours(reconstruction, frames)
    names = {frame.name: number for number, frame in enumerate(frames)}
    seen = {}
    for image in reconstruction.images:
        for point in image.point_idx[image.point_idx >= 0]:
            seen.setdefault(int(point), []).append(names[image.name] % 2)
    for point, kinds in list(seen.items())[::20]:
        share = np.mean(kinds)
        expected = share * np.array([0, 200, 10]) + (1 - share) * 70
        np.testing.assert_allclose(colours[point], expected, atol=1)
    unseen = np.setdiff1d(np.arange(len(colours)), list(seen))
    assert (colours[unseen] == NO_COLOUR).all()

    tensors = collect_update_data(
        reconstruction, max_keypoints=64, max_megabytes=1.0, colours=colours
    )
    written = MapStore(tmp_path / 'map').write(replace(scene_map, path=None), tensors)
    kept = MappingData.from_map(written)
    # What an update takes over: old points by their place, new ones have none.
    points = np.concatenate([data.points_in_map[5:9], data.points_in_map[:1] + 40.0])
    np.testing.assert_array_equal(
        kept.colours_of(points), [*colours[5:9], [NO_COLOUR, NO_COLOUR, NO_COLOUR]]
    )
    damaged = {**tensors, 'point_colours': colours[:-1]}
    written = MapStore(tmp_path / 'damaged').write(replace(scene_map, path=None), damaged)
    with pytest.raises(MapFormatError, match='point_colours'):
        MappingData.from_map(written)
