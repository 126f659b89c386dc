"""The bare table of mean descriptors against matching everything, on a made-up scene."""

from __future__ import annotations

import numpy as np
from scene_models.made_up_scene import made_up_reconstruction

from d2s_ros.evaluation.baseline import MatchingBaseline, TableBaseline
from d2s_ros.geometry.transforms import pose_error


def test_both_localize_what_they_were_made_from():
    reconstruction = made_up_reconstruction(num_images=8, noise_px=0.3)
    everything = MatchingBaseline(reconstruction)
    table = TableBaseline(reconstruction, num_landmarks=100)
    assert table.size_bytes() == 100 * (32 + 2 + 12)
    assert everything.size_bytes() > 5 * table.size_bytes()
    for image in reconstruction.images:
        for method in (everything, table):
            result = method.localize_features(image.features, image.camera)
            assert result.localized
            # 0.3 px at 260 px focal length and 3 to 6 m.
            assert pose_error(result.map_from_camera, image.map_from_camera)[0] < 0.02


def test_matches_are_mutual_and_of_the_longest_tracks():
    reconstruction = made_up_reconstruction(num_images=8)
    table = TableBaseline(reconstruction, num_landmarks=60)
    image = reconstruction.images[3]
    keep, point_idx = table._match(image.features)
    assert len(np.unique(point_idx)) == len(point_idx)
    assert (image.point_idx[keep] == point_idx).mean() > 0.9
    shortest_kept = reconstruction.track_lengths[np.unique(point_idx)].min()
    assert shortest_kept >= np.sort(reconstruction.track_lengths)[-60]


def test_a_blank_image_is_refused():
    reconstruction = made_up_reconstruction(num_images=4)
    image = reconstruction.images[0]
    empty = type(image.features)(
        image.features.keypoints[:3],
        image.features.keypoint_scores[:3],
        image.features.descriptors[:3],
        image.features.image_size,
        image.features.scales[:3],
    )
    for method in (MatchingBaseline(reconstruction), TableBaseline(reconstruction)):
        result = method.localize_features(empty, image.camera)
        assert not result.localized
        assert result.reason
