"""Labels are learned, stored, searched and refined as documented."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from d2s_ros.cli.main import main
from d2s_ros.data.sources import open_source
from d2s_ros.errors import ConfigError, InputError, NothingLocalizedError, UsageError
from d2s_ros.features.dense import FeaturePyramid, SuperPointEncoder
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, pose_error, rotation_from_vector
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.questions import Question, read_questions
from d2s_ros.localization.result import LocalizationStatus
from d2s_ros.maps.files import LOCALIZATION_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.verification import verify
from d2s_ros.scene_models.base import View
from d2s_ros.scene_models.labels.assignment import balanced_labels
from d2s_ros.scene_models.labels.field import OUTLIERS, LabelField
from d2s_ros.scene_models.labels.images import Undistorter
from d2s_ros.scene_models.labels.matching import keypoint_pixels, mutual_pairs, pose_from_labels
from d2s_ros.scene_models.labels.model import LabelModel
from d2s_ros.scene_models.labels.network import LabelConfig, LabelNetwork
from d2s_ros.scene_models.labels.observer import (
    LEAST_EVIDENCE,
    nearest_images,
    place_evidence,
)
from d2s_ros.scene_models.labels.question import heads_digest, pack_labels, view_of_labels
from d2s_ros.scene_models.labels.refinement import LabelledPoints, refine
from d2s_ros.scene_models.labels.table import LabelTable
from d2s_ros.scene_models.labels.trainer import entropy_bits, label_loss

CAMERA = Camera('pinhole', 128, 96, 100.0, 100.0, 63.5, 47.5)


def random_field(rng, strides=(8, 4, 2), count=16):
    """Return what an image says whose labels change about every 1.5 cells of each level."""
    probabilities = []
    for stride in strides:
        logits = 4.0 * rng.standard_normal((96 // stride, 128 // stride, count))
        soft = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        probabilities.append(soft.astype(np.float32))
    return LabelField.of(probabilities, strides, CAMERA)


def points_of(field, pose, rng, number=400):
    """Return points that a pose sees, with the labels that the image shows where they are."""
    pixels = rng.uniform([4, 4], [123, 91], (number, 2))
    depth = rng.uniform(2, 6, number)
    rays = np.column_stack([(pixels - [CAMERA.cx, CAMERA.cy]) / CAMERA.fx, np.ones(number)])
    labels = []
    for level in field.levels:
        cells, _ = level.cells(pixels)
        labels.append(level.probability.reshape(-1, level.num_labels)[cells].argmax(axis=1))
    return LabelledPoints(pose.inverse().apply(rays * depth[:, None]), np.stack(labels, axis=1))


def test_labels_find_a_pose_without_a_start():
    """Among pairs of which most are wrong, and points that are not in the image."""
    rng = np.random.default_rng(0)
    field = random_field(rng)
    truth = RigidTransform(rotation_from_vector([0.1, -0.2, 0.3]), np.array([0.3, 0.1, -0.2]))
    points = points_of(field, truth, rng)
    # Half of the labels are those of another point, as where a head errs.
    wrong = rng.permutation(200)
    points.labels[:200] = points.labels[wrong]
    pixels = np.concatenate(
        [CAMERA.project(truth.apply(points.points_in_map)), rng.uniform(0, 96, (200, 2))]
    )
    pixels = rng.permutation(pixels + rng.normal(0, 0.5, pixels.shape))
    pixels[7] = np.nan
    start = pose_from_labels(field, pixels, points)
    assert pose_error(start, truth)[1] < 2.0
    found, value = refine(field, points, start, range(3))
    # Half a px is 0.3 degrees here.
    assert pose_error(found, truth)[1] < 0.5
    assert value > 0.2
    # What the pairs are there for: a descent alone stays where it is.
    off = RigidTransform(rotation_from_vector([0.15, 0.2, -0.1]), np.array([0.3, 0, 0.2])) @ truth
    alone, _ = refine(field, points, off, range(3))
    assert pose_error(alone, truth)[1] > 1.0
    assert pose_from_labels(field, pixels[:3], points) is None


def test_pairs_are_each_others_likeliest():
    """Computed in blocks, the same as from all scores at once."""
    rng = np.random.default_rng(3)
    words = [rng.standard_normal((16, 90)).astype(np.float32) for _ in range(3)]
    labels = rng.integers(0, 16, (600, 3))
    scores = np.sum([words[level][labels[:, level]] for level in range(3)], axis=0)
    keypoint, point, score = mutual_pairs(words, labels)
    assert 20 < len(keypoint) < 90
    np.testing.assert_array_equal(scores[:, keypoint].argmax(axis=0), point)
    np.testing.assert_array_equal(scores[point].argmax(axis=1), keypoint)
    np.testing.assert_allclose(scores[point, keypoint], score, rtol=1e-6)
    # All that are each other's likeliest, by another way.
    both = (scores == scores.max(axis=0)) & (scores == scores.max(axis=1, keepdims=True))
    assert len(keypoint) == len(np.unique(np.nonzero(both)[1]))


def test_evidence_does_not_ask_that_all_points_are_seen():
    """Right poses of which most points are hidden have it; wrong ones and chance do not."""
    rng = np.random.default_rng(4)
    field = random_field(rng)
    pose = RigidTransform(rotation_from_vector([0.0, 0.1, 0.0]), np.array([0.1, 0.0, 0.2]))
    points = points_of(field, pose, rng)
    labels = points.labels.copy()
    hidden = rng.random(len(labels)) < 0.4
    labels[hidden] = rng.integers(0, 16, (int(hidden.sum()), 3))

    def evidence(labels, pose):
        table = table_of(points.points_in_map, labels)
        return place_evidence(field, table, np.arange(len(labels)), pose)

    assert evidence(points.labels, pose) > 50
    assert evidence(labels, pose) > LEAST_EVIDENCE
    turned = RigidTransform(rotation_from_vector([0.0, 0.2, 0.0]), np.zeros(3)) @ pose
    assert evidence(points.labels, turned) < 3
    chance = [evidence(rng.integers(0, 16, labels.shape), pose) for _ in range(200)]
    assert max(chance) < np.log(200 * 10)
    # Of what chance makes likelier x times, there is at most one in x.
    assert np.mean(np.exp(chance)) < 2.0
    away = RigidTransform(np.diag([1.0, -1.0, -1.0]), np.zeros(3)) @ pose
    assert evidence(points.labels, away) == 0.0


def table_of(points_in_map, labels):
    """Return a table of points that one image sees."""
    count = len(points_in_map)
    return LabelTable(
        points_in_map.astype(np.float32),
        np.tile(1e-6 * np.eye(3, dtype=np.float32), (count, 1, 1)),
        labels.astype(np.uint8),
        np.array([0, count]),
        np.arange(count, dtype=np.uint16),
        np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32),
        np.ones((1, 32), np.int8),
    )


def test_nearest_images_are_those_of_the_nearest_poses():
    rng = np.random.default_rng(5)
    table = table_of(rng.uniform([-3, -3, 2], [3, 3, 8], (40, 3)), np.zeros((40, 3)))
    quaternions = rng.standard_normal((9, 4)) * [0.3, 0.3, 0.3, 1]
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    table = replace(
        table,
        image_poses=np.hstack([rng.standard_normal((9, 3)), quaternions]).astype(np.float32),
        visible_offsets=np.linspace(0, 40, 10).astype(np.int64),
    )
    asked = RigidTransform(rotation_from_vector([0.1, 0.2, 0.0]), np.array([0.2, 0.1, -0.4]))
    distances = []
    for pose, depth in zip(table.poses, table.depths, strict=True):
        shift, turn = pose_error(asked.inverse(), pose.inverse())
        distances.append(shift / depth + turn / 60.0)
    assert nearest_images(table, asked, 9) == np.argsort(distances).tolist()


def test_refinement_stays_where_nothing_is_told():
    flat = LabelField.of([np.full((12, 16, 4), 0.25, np.float32)], (8,), CAMERA)
    start = RigidTransform.identity()
    points = LabelledPoints(np.array([[0, 0, 4.0], [1, 0, 5.0]]), np.array([[0], [3]]))
    pose, value = refine(flat, points, start, range(1))
    assert pose_error(pose, start) == (0.0, 0.0)
    assert value == pytest.approx(0.0, abs=1e-6)


def test_information_is_that_of_differences_of_likelihood():
    """The Fisher information is the mean square of the slope of the log-likelihood."""
    rng = np.random.default_rng(1)
    coarse = rng.standard_normal((6, 8, 5))
    smooth = np.kron(coarse, np.ones((8, 8, 1)))
    for axis in (0, 1):
        for _ in range(40):
            smooth = (np.roll(smooth, 1, axis) + 2 * smooth + np.roll(smooth, -1, axis)) / 4
    soft = np.exp(smooth) / np.exp(smooth).sum(axis=-1, keepdims=True)
    field = LabelField.of([soft.astype(np.float32)], (2,), CAMERA)
    level = field.levels[0]
    p = level.probability.astype(np.float64)
    slope = np.gradient(np.log(p), 2.0, axis=1)
    expected = (p * slope**2).sum(axis=-1)
    inner = np.s_[4:-4, 4:-4]
    found = level.information[:, 0].reshape(p.shape[:2])
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0.1, atol=1e-5)


def test_outside_and_unknown_labels_are_never_impossible():
    field = random_field(np.random.default_rng(2))
    for level in field.levels:
        assert level.probability.min() >= OUTLIERS / level.num_labels * 0.999
        np.testing.assert_allclose(level.probability.sum(axis=-1), 1.0, rtol=1e-5)
    far = np.array([[1e6, 0], [np.nan, 0]])
    assert field.levels[0].evidence(far, np.array([0, 1]), -3.0).tolist() == [-3.0, -3.0]


def test_labels_are_balanced():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((2000, 16), generator=generator)
    # Without balance one label would stand for everything.
    scores[:, 3] += 3.0
    assert entropy_bits(scores.argmax(dim=1)) < 3.0
    chosen = balanced_labels(scores)
    assert entropy_bits(chosen) > 3.9
    assert torch.bincount(chosen, minlength=16).min() > 0.5 * 2000 / 16


def test_the_loss_wants_labels_that_differ_from_what_is_around():
    labels = torch.tensor([0, 1, 2, 3])
    sure = 10.0 * torch.eye(4)
    other = 10.0 * torch.roll(torch.eye(4), 1, 1)[:, None].expand(-1, 8, -1)
    same = sure[:, None].expand(-1, 8, -1)
    best = float(label_loss(sure, other, labels))
    assert best < 0.1
    assert float(label_loss(sure, same, labels)) > best + 1.0
    assert float(label_loss(other[:, 0], same, labels)) > best + 5.0


def test_dense_and_sparse_heads_agree():
    """A head at a place is the dense one there, where maps are cells of the same grid."""
    channels = {2: 3, 4: 4, 8: 5, 16: 5, 32: 5}
    network = LabelNetwork(LabelConfig(num_labels=6, hidden=8), channels).eval()
    maps = {
        stride: torch.randn(count, 64 // stride, 64 // stride) for stride, count in channels.items()
    }
    dense = network.dense(FeaturePyramid(maps, (64, 64)))
    assert [tuple(value.shape) for value in dense] == [(8, 8, 6), (16, 16, 6), (32, 32, 6)]
    level, head = network.levels[0], network.heads[0]
    columns = []
    for stride in level.inputs:
        enlarged = torch.nn.functional.interpolate(
            maps[stride][None], size=(8, 8), mode='bilinear', align_corners=False
        )
        columns.append(enlarged[0].permute(1, 2, 0))
    torch.testing.assert_close(dense[0], torch.softmax(head(columns), dim=-1))


def test_folded_heads_read_features_as_they_are():
    channels = {2: 3, 4: 4, 8: 5, 16: 5, 32: 5}
    network = LabelNetwork(LabelConfig(num_labels=6, hidden=8), channels)
    means = {stride: torch.randn(count) for stride, count in channels.items()}
    scales = {stride: torch.rand(count) + 0.5 for stride, count in channels.items()}
    level, head = network.levels[1], network.heads[1]
    raw = [torch.randn(7, channels[stride]) for stride in level.inputs]
    standard = [
        (value - means[stride]) / scales[stride]
        for stride, value in zip(level.inputs, raw, strict=True)
    ]
    expected = head(standard)
    network.fold(means, scales)
    torch.testing.assert_close(head(raw), expected, rtol=1e-4, atol=1e-4)


def test_levels_are_coarse_to_fine():
    with pytest.raises(ConfigError, match='the coarsest first'):
        LabelConfig(levels=(2, 4))
    with pytest.raises(ConfigError, match='the coarsest first'):
        LabelConfig(levels=())


def test_label_images_have_no_distortion():
    camera = Camera('plumb_bob', 320, 240, 200.0, 200.0, 159.5, 119.5, (-0.2, 0.05, 0.0, 0.0, 0.0))
    image = np.zeros((240, 320), np.uint8)
    corner = np.array([[40.0, 30.0]])
    image[28:33, 38:43] = 255
    label_image = Undistorter(160)(image, camera)
    assert label_image.camera.model == 'pinhole'
    assert label_image.grey.shape == (120, 160)
    expected = label_image.pixels(camera.undistort(corner), camera)[0]
    rows, columns = np.nonzero(label_image.grey > 100)
    np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=0.6)


def test_dense_features_lie_where_they_say():
    """A spot moves through the maps as it moves through the image."""
    encoder = SuperPointEncoder()
    image = np.full((160, 256), 120, np.uint8)
    image[78:82, 108:112] = 255
    shifted = np.roll(image, 32, axis=1)
    a, b = encoder.maps(image), encoder.maps(shifted)
    assert a.image_size == (256, 160)
    for stride in (2, 4, 8):
        assert a.maps[stride].shape[0] == encoder.channels[stride]
        moved = torch.roll(a.maps[stride], 32 // stride, dims=2)
        # Further than the network sees from the edges.
        inner = np.s_[:, 56 // stride : 104 // stride, 96 // stride : 184 // stride]
        assert float(moved[inner].std(dim=(1, 2)).max()) > 0.01
        torch.testing.assert_close(moved[inner], b.maps[stride][inner], rtol=1e-3, atol=1e-3)


def test_a_map_of_labels_holds_no_descriptor(label_map):
    scene_map = SceneMap.open(label_map)
    model = scene_map.model
    assert isinstance(model, LabelModel)
    assert scene_map.manifest.head == 'labels'
    assert verify(label_map) == []
    assert not list(label_map.rglob('update.safetensors'))
    table = model.table
    assert table.labels.shape == (len(table), 3)
    # Nothing of a point but where it is, how surely, and its labels.
    per_point = {name for name, value in model.tensors().items() if len(value) == len(table)}
    assert per_point == {'points', 'covariances', 'labels'}
    # Nothing of an image but its pose, what it sees, and how frequent labels are in it.
    assert table.image_vectors.shape == (len(table.image_poses), 2 * 32)
    assert scene_map.localization_size_bytes() < 300_000


def test_it_is_read_as_it_was_written(label_map):
    opened = SceneMap.open(label_map)
    stored = load_file(label_map / 'versions' / '0001' / LOCALIZATION_FILE)
    found = opened.model.tensors()
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(
            found[name].astype(np.float64), value.astype(np.float64), rtol=2e-3, atol=1e-6
        )
    broken = dict(opened.model.tensors())
    broken['labels'] = broken['labels'] + np.uint8(200)
    with pytest.raises(ValueError, match='a label is'):
        LabelModel.from_tensors(opened.model.network_config, broken)
    broken = dict(opened.model.tensors())
    broken['visible_points'] = broken['visible_points'][:-1]
    with pytest.raises(ValueError, match='what images see'):
        LabelModel.from_tensors(opened.model.network_config, broken)


def test_it_localizes_and_refuses(label_map, building_logs):
    """A few steps of training do for images of the map; none of another place is let through."""
    localizer = Localizer.from_map(label_map, device='cpu')
    frames = list(open_source(building_logs / 'map'))
    errors, right = [], None
    for frame in frames[:6]:
        result = localizer.localize(frame.image, frame.camera)
        if result.localized:
            right = frame
            errors.append(pose_error(result.map_from_camera, frame.map_from_camera)[0])
            assert np.linalg.eigvalsh(result.covariance).min() > 0
    assert len(errors) >= 2
    assert max(errors) < 0.05
    for frame in list(open_source(building_logs / 'other'))[:3]:
        result = localizer.localize(frame.image, frame.camera)
        assert not result.localized
    # A rough pose is where it starts, instead of retrieval and pairs.
    offset = RigidTransform(rotation_from_vector([0.01, 0.01, 0.0]), np.array([0.02, 0.0, 0.01]))
    prior = PosePrior(right.map_from_camera @ offset, 0.1, 2.0)
    found = localizer.localize(right.image, right.camera, prior=lambda: prior)
    assert found.status is LocalizationStatus.LOCALIZED
    assert pose_error(found.map_from_camera, right.map_from_camera)[0] < 0.05
    with pytest.raises(UsageError, match='features alone'):
        localizer.localize_features(localizer.extractor.extract(right.image), right.camera)


def test_the_likeliest_labels_are_enough_for_a_pose():
    """They jump from cell to cell; blurred by the reader, pairs and refinement find the pose."""
    rng = np.random.default_rng(6)
    field = random_field(rng)
    truth = RigidTransform(rotation_from_vector([0.1, -0.2, 0.3]), np.array([0.3, 0.1, -0.2]))
    points = points_of(field, truth, rng)
    pixels = CAMERA.project(truth.apply(points.points_in_map))
    config = LabelConfig(num_labels=16)
    heads = heads_digest(LabelNetwork(config, {2: 3, 4: 4, 8: 5, 16: 5, 32: 5}))
    arrays = pack_labels(field, config, heads)
    assert {str(value.dtype) for name, value in arrays.items() if name != 'size'} == {'uint8'}
    features = LocalFeatures(
        pixels.astype(np.float32),
        np.ones(len(pixels), np.float32),
        np.zeros((len(pixels), 0), np.float32),
        (128, 96),
        np.ones(len(pixels), np.float32),
    )
    view = view_of_labels(View(features, CAMERA), arrays, config, heads)
    assert view.image is None
    for full, likeliest in zip(field.levels, view.field.levels, strict=True):
        same = full.probability.argmax(axis=2) == likeliest.probability.argmax(axis=2)
        # These labels change from cell to cell: some give way to their neighbours.
        assert same.mean() > 0.5
    start = pose_from_labels(view.field, keypoint_pixels(view.field, view), points)
    found, _ = refine(view.field, points, start, range(3))
    assert pose_error(found, truth)[1] < 1.0
    other = heads_digest(LabelNetwork(config, {2: 3, 4: 4, 8: 5, 16: 5, 32: 5}))
    with pytest.raises(InputError, match='heads of another map'):
        view_of_labels(View(features, CAMERA), arrays, config, other)


def test_labels_are_sent_instead_of_images(label_map, building_logs, tmp_path, capsys):
    """What is written localizes as the images do, holds no picture, and fits no other heads."""
    path = tmp_path / 'robot.questions'
    log = str(building_logs / 'map')
    assert main(['localize', str(label_map), log, '--send-labels', str(path), '--quiet']) == 0
    frames = list(open_source(building_logs / 'map'))
    assert f'labels of {len(frames)} images' in capsys.readouterr().out
    tensors = load_file(path)
    kinds = {name.split('.', 1)[1] for name in tensors if '.' in name}
    assert kinds == {
        'keypoints',
        'scales',
        *(f'sent.{name}' for name in ('size', 'heads', 'labels_8', 'labels_4', 'labels_2')),
    }
    localizer = Localizer.from_map(label_map, device='cpu')
    questions = read_questions(path)
    # The heads of this map are hardly trained: what is published must be right, if anything is.
    result = questions[0].answer(localizer)
    if result.localized:
        assert pose_error(result.map_from_camera, frames[0].map_from_camera)[0] < 0.05
    report = tmp_path / 'report.json'
    code = main(['localize', str(label_map), str(path), '--report', str(report), '--quiet'])
    assert code in (0, NothingLocalizedError.exit_code)
    entries = json.loads(report.read_text())['frames']
    assert [entry['name'] for entry in entries] == [frame.name for frame in frames]
    # Whatever is refused is refused for the place, not for how it was sent.
    unusable = {'bad_image', 'no_calibration', 'calibration_mismatch', 'too_few_keypoints'}
    assert not unusable & {entry['status'] for entry in entries}
    other = replace(questions[0], sent={**questions[0].sent, 'heads': np.zeros(32, np.uint8)})
    with pytest.raises(InputError, match='heads of another map'):
        other.answer(localizer)
    small = replace(
        questions[0],
        sent={**questions[0].sent, 'labels_4': questions[0].sent['labels_4'][:-1]},
    )
    with pytest.raises(InputError, match='stride 4'):
        small.answer(localizer)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match='no file of questions'):
        read_questions(path)


def test_only_maps_of_labels_are_asked_by_labels(small_map, tmp_path, capsys):
    localizer = Localizer.from_map(small_map.path, device='cpu')
    frame = small_map.frames[0]
    with pytest.raises(UsageError, match='--head labels'):
        Question.of(localizer, frame)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--labels', '16'], 'are options of --head labels'),
        (['--label-levels', '2'], 'are options of --head labels'),
        (['--label-points', '500'], 'are options of --head labels'),
        (['--head', 'labels', '--label-points', '5'], 'max_label_points'),
        (['--head', 'labels', '--patience', '3'], '--patience does not go with'),
        (['--head', 'labels', '--label-levels', '2', '8'], 'the coarsest first'),
        (['--head', 'labels', '--label-backbone', 'nothing'], 'backbone'),
        (['--head', 'labels', '--labels', '1'], 'num_labels'),
    ],
)
def test_options_of_labels_are_used_or_refused(options, message, tmp_path, capsys):
    assert main(['build-map', str(tmp_path), '--map', str(tmp_path / 'map'), *options]) != 0
    assert message in capsys.readouterr().err
