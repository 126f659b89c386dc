"""What the benchmark of false accepts counts, keeps and shows."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from d2s_ros.localization.localizer import Localizer


def a_row(name, source='fox', scene_map='redkitchen:0', published=False, **more):
    return {
        'map': scene_map,
        'source': source,
        'condition': 'as taken',
        'frame': name,
        'published': published,
        'inliers': 5,
        'keypoints': 900,
        'reliable': 7,
        'used': 80,
        'checks': {'inliers': [5.0, 28.0]},
        **({} if published else {'failed': 'inliers'}),
        **more,
    }


def test_floors_that_look_alike_are_counted_by_themselves(benchmark_module):
    module = benchmark_module('false_accepts')
    rows = [
        a_row('1', 'tower/floor3', 'fox:0'),
        a_row('1', 'tower/floor3', 'floor11', published=True, camera=[0, 0, 0], inliers=30),
        a_row('1', 'walk_loop', 'floor11'),
    ]
    lines, figures = module.tables(rows)
    by_source = figures['sources']
    assert by_source['tower']['published'] == 0
    assert by_source['tower, in the map of another floor']['published'] == 1
    assert by_source['all']['asked'] == 3
    assert by_source['all']['most_inliers'] == 30
    assert by_source['tower']['bound'] == pytest.approx(0.95)
    assert figures['maps']['floor11']['wrong'] == [['floor11', 'tower/floor3', '1']]
    assert '| all | 3 | 1 |' in lines['maps'][-1]
    assert module.shows('tower/floor11', 'floor11')
    assert module.shows('fox', 'fox:0')
    assert not module.shows('tower/floor3', 'floor11')


def test_the_page_has_both_pictures_and_the_checks(benchmark_module, tmp_path):
    page = benchmark_module('false_accepts_page').page
    near = tmp_path / 'near.png'
    cv2.imwrite(str(near), np.full((40, 60), 90, np.uint8))
    mapped = [
        ('far', np.array([9.0, 0, 0]), np.zeros((40, 60), np.uint8)),
        ('near', np.array([1.0, 0, 0]), near),
    ]
    rows = [a_row('a<b', published=True, camera=[0.9, 0, 0]), a_row('refused')]
    text = page(rows, lambda _: mapped, lambda _: np.full((30, 50), 200, np.uint8))
    assert '1 of 2 images' in text
    assert text.count('<img ') == 2
    assert 'a&lt;b' in text
    assert 'nearest to the pose: near' in text
    assert '<td>inliers</td><td>5</td><td>28</td>' in text
    assert 'refused' not in text
    assert 'cannot be read' in page(rows, lambda _: mapped, lambda _: None)


def test_a_run_goes_on_where_it_was(benchmark_module, small_map, tmp_path, monkeypatch):
    """Answers are kept: what was asked is not asked again, and time that is over asks nothing."""
    module = benchmark_module('false_accepts')
    places = benchmark_module('places')
    monkeypatch.setattr(module, 'DEGRADED', {})
    localizer = Localizer.from_map(small_map.path, device='cpu')
    frames = [
        places.Observed(
            frame.name,
            localizer.extractor.extract(frame.image),
            frame.camera,
            frame.map_from_camera,
        )
        for frame in small_map.frames[:3]
    ]

    class Crossing:
        scenes = type('Scenes', (), {'work': tmp_path, 'extractor': localizer.extractor})

        def map(self, name):
            return localizer.scene_map

        def observed(self, source, condition):
            return frames

    asked = module.ask_all(Crossing(), ['b1'], ['fox'], 1, until=0.0)
    assert asked == []
    asked = module.ask_all(Crossing(), ['b1'], ['fox'], 2, until=float('inf'))
    assert [row['frame'] for row in asked] == [frames[0].name, frames[2].name]
    # They show the place, so that they are published: with where they were put.
    assert all(row['published'] and len(row['camera']) == 3 for row in asked)
    assert 'error' not in asked[0]
    again = module.ask_all(Crossing(), ['b1'], ['fox'], 1, until=float('inf'))
    assert len(again) == 3
    kept = (tmp_path / 'strangers' / 'fox_as_taken.jsonl').read_text().splitlines()
    assert sorted(json.loads(line)['frame'] for line in kept) == sorted(f.name for f in frames)
    assert module.ask_all(Crossing(), ['b1'], ['fox'], 1, until=0.0) == [
        json.loads(line) for line in kept
    ]
