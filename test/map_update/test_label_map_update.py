"""A map of labels learns from a log, and holds no more of it than it may."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from d2s_ros.data.sources import open_source
from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_update.config import GateConfig, UpdateConfig
from d2s_ros.map_update.pipeline import update_map
from d2s_ros.maps.files import LOCALIZATION_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.scene_models.labels.memory import remembered_view
from d2s_ros.scene_models.labels.model import LabelModel


@pytest.fixture
def copied(label_map, tmp_path):
    path = tmp_path / 'map'
    shutil.copytree(label_map, path)
    return path


def test_a_map_remembers_its_images(label_map):
    """As the points that they see: left out of retrieval, most are found by the others."""
    scene_map = SceneMap.open(label_map).in_local_frame()
    model = scene_map.model
    assert isinstance(model, LabelModel)
    memory = model.remembered(scene_map.manifest.cameras[0])
    table = model.table
    assert len(memory.images) == len(table.image_poses)
    image = memory.images[3]
    assert image.features.descriptors.shape == (len(image.point_idx), 0)
    view = remembered_view(table, model.network.config, image)
    for number, level in enumerate(view.field.levels):
        np.testing.assert_allclose(level.probability.sum(axis=2), 1.0, rtol=1e-4)
        cells, inside = level.cells(image.ideal_keypoints)
        likeliest = level.probability.reshape(-1, level.num_labels)[cells].argmax(axis=1)
        # Several points share cells; the finest cells have hardly more than one.
        right = (likeliest == table.labels[image.point_idx, number])[inside].mean()
        assert right > (0.3, 0.5, 0.7)[number]
    assert model.leaves_out is False
    assert model.with_mapping(memory).leaves_out


def test_a_log_is_learned_from_within_privacy(copied, building_logs):
    before = SceneMap.open(copied)
    # These heads are hardly trained: they localize some of the log that the map was made from.
    log = building_logs / 'map'
    gate = GateConfig(min_new_frames=1, max_old_images=4)
    result = update_map(copied, [log], UpdateConfig(gate=gate), device='cpu')
    assert result.figures['used'] >= 2
    assert result.figures['points_added'] > 0
    assert result.verdict == 'promoted', result.reasons
    store = MapStore(copied)
    written = copied / 'versions' / result.candidate_version
    assert store.current() == result.candidate_version
    # Nothing of the log is there but what a map of labels has of its own images.
    assert sorted(path.name for path in written.iterdir() if path.suffix == '.safetensors') == [
        LOCALIZATION_FILE
    ]
    assert not [path for path in copied.rglob('*') if path.suffix in ('.log', '.pt', '.npz')]
    old = before.model.tensors()
    new = load_file(written / LOCALIZATION_FILE)
    assert new.keys() == old.keys()
    for name, value in old.items():
        if name.startswith('network.') or name == 'chance':
            np.testing.assert_array_equal(new[name], value)
        elif name in ('points', 'labels', 'image_vectors', 'visible_points'):
            # What was there stays; labels are bytes, points where they lie.
            np.testing.assert_array_equal(new[name][: len(value)], value)
    assert len(new['image_poses']) == len(old['image_poses']) + result.figures['frames_added']
    assert len(new['points']) == len(old['points']) + result.figures['points_added']
    assert result.decision.metrics['old']['frames'] == 4
    assert result.decision.metrics['old']['candidate']['localized'] >= 2
    # The new version localizes the log, and asks for nothing but images.
    localizer = Localizer.from_map(copied, device='cpu')
    errors = []
    for frame in list(open_source(log))[:6]:
        found = localizer.localize(frame.image, frame.camera)
        if found.localized:
            errors.append(pose_error(found.map_from_camera, frame.map_from_camera)[0])
    assert len(errors) >= 2
    assert max(errors) < 0.05


def test_a_log_of_another_place_teaches_nothing(copied, building_logs):
    result = update_map(copied, [building_logs / 'other'], device='cpu')
    assert result.verdict == 'nothing_usable'
    assert MapStore(copied).versions() == ['0001']


def test_descriptors_cannot_be_copied_from_labels(copied, building_logs):
    with pytest.raises(InputError, match='holds none'):
        update_map(copied, [building_logs / 'map'], UpdateConfig(recipe='paper'), device='cpu')
