"""Each decision of docs/design/segloc_decisions.md, by hand or in NumPy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from d2s_ros.cli.main import main
from d2s_ros.data.sources import open_source
from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.scene_models.labels import paper_losses as losses
from d2s_ros.scene_models.labels.image_pairs import Neighbours, find_pairs
from d2s_ros.scene_models.labels.images import LabelImage
from d2s_ros.scene_models.labels.network import LabelConfig, LabelHead, LabelNetwork, Level
from d2s_ros.scene_models.labels.paper_trainer import (
    LOSSES,
    LabelPaperConfig,
    _Heads,
    point_distributions,
)
from d2s_ros.scene_models.labels.samples import LabelSample
from d2s_ros.scene_models.labels.standard import Standard

CHANNELS = {2: 3, 4: 4, 8: 5, 16: 5, 32: 5}
CAMERA = Camera('pinhole', 64, 64, 50.0, 50.0, 31.5, 31.5)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(shape, generator=generator), dim=1)


def test_equation_2_by_hand():
    """Frequent labels count less: the predictions over the root of their frequency."""
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    target = losses.self_target(logits, torch.tensor([0.64, 0.16, 0.2]))
    parts = np.array([0.5 / 0.8, 0.25 / 0.4, 0.25 / math.sqrt(0.2)])
    np.testing.assert_allclose(target.numpy()[0], parts / parts.sum(), rtol=1e-5)


def test_equation_4_by_hand():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    target = losses.prototype_target(
        torch.tensor([[0.6, 0.8]]), prototypes, torch.tensor([0.1, 0.2])
    )
    expected = np.exp([6.0, 4.0])
    np.testing.assert_allclose(target.numpy()[0], expected / expected.sum(), rtol=1e-5)


def test_targets_teach_and_are_not_taught():
    logits = torch.randn(4, 5, requires_grad=True)
    assert not losses.self_target(logits, torch.full((5,), 0.2)).requires_grad
    features = unit(4, 3).requires_grad_()
    assert not losses.prototype_target(features, unit(5, 3), torch.ones(5)).requires_grad


def test_concentrations_against_numpy():
    """Distances over Z log(Z + 10), cut at the outer tenths, the mean at the temperature."""
    features, prototypes = unit(300, 4), unit(6, 4, seed=1)
    assigned = (features @ prototypes.T).argmax(dim=1)
    assigned[assigned == 5] = 0
    found = losses.concentrations_of(features, prototypes, assigned, 0.1)
    width = []
    for cluster in range(5):
        own = features[assigned == cluster]
        distance = (own - prototypes[cluster]).norm(dim=1).sum().item()
        width.append(distance / (len(own) * math.log(len(own) + 10)))
    # An empty cluster is as wide as the widest.
    width.append(max(width))
    width = np.clip(width, *np.quantile(width[:5], [0.1, 0.9]))
    np.testing.assert_allclose(found.numpy(), width * 0.1 / width.mean(), rtol=1e-4)
    assert found.mean().item() == pytest.approx(0.1)


def test_equation_3_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    target = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    expected = -(math.log(0.5) + 0.5 * (math.log(0.9) + math.log(0.1))) / 2
    assert losses.classification_loss(logits, target).item() == pytest.approx(expected)


def test_correspondence_by_hand():
    """Least where both tell the same label surely: both sides are taught."""
    a, b = np.array([0.7, 0.3]), np.array([0.2, 0.8])
    log_a, log_b = (torch.log(torch.tensor(v[None])).requires_grad_() for v in (a, b))
    value = losses.correspondence_loss(log_a, log_b)
    assert value.item() == pytest.approx(-0.5 * ((a @ np.log(b)) + (b @ np.log(a))))
    value.backward()
    assert log_a.grad.abs().sum() > 0
    assert log_b.grad.abs().sum() > 0
    sure = 20 * torch.eye(2)
    assert losses.correspondence_loss(sure, sure).item() < 1e-6


def test_prototypes_are_told_across_images():
    a, b, prototypes = unit(7, 4), unit(7, 4, seed=2), unit(5, 4, seed=1)
    widths = torch.linspace(0.1, 0.3, 5)
    scores_a, scores_b = a @ prototypes.T / widths, b @ prototypes.T / widths
    log_a, log_b = scores_a.log_softmax(dim=1), scores_b.log_softmax(dim=1)
    rows = torch.arange(7)
    # The prototype of the matched pixel, and back.
    expected = -0.5 * (
        log_a[rows, scores_b.argmax(dim=1)].mean() + log_b[rows, scores_a.argmax(dim=1)].mean()
    )
    torch.testing.assert_close(losses.prototype_loss(a, b, prototypes, widths), expected)


def test_features_are_told_from_all_pixels_of_the_other_image():
    a, b = unit(6, 4), unit(6, 4, seed=3)
    scores = a @ b.T / 0.1
    expected = -0.5 * (
        scores.log_softmax(dim=1).diagonal().mean() + scores.log_softmax(dim=0).diagonal().mean()
    )
    torch.testing.assert_close(losses.feature_loss(a, b, 0.1), expected)


def test_multi_similarity_by_hand():
    anchor = torch.tensor([1.0, 0.0])
    positives = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    negatives = torch.tensor([[0.0, 1.0]])
    expected = math.log(1 + math.exp(-2 * 0.1) + math.exp(-2 * 0.5)) / 2
    alone = losses.multi_similarity_loss(anchor, positives, torch.zeros(0, 2))
    assert alone.item() == pytest.approx(expected)
    expected += math.log(1 + math.exp(50 * -0.5)) / 50
    both = losses.multi_similarity_loss(anchor, positives, negatives)
    assert both.item() == pytest.approx(expected)


def sample_of(points, pixels):
    image = LabelImage(np.zeros((64, 64), np.uint8), CAMERA)
    count = sum(CHANNELS.values())
    generator = torch.Generator().manual_seed(len(points))
    return LabelSample(
        image,
        torch.from_numpy(pixels.astype(np.float32)),
        torch.from_numpy(points),
        torch.randn((len(points), count), generator=generator).half(),
    )


def test_pairs_share_points_all_over_both_images(rng):
    wide = rng.uniform(0, 63, (200, 2))
    wide[:2] = [[0, 0], [63, 63]]
    narrow = rng.uniform(20, 40, (200, 2))
    points = np.arange(200)
    samples = [sample_of(points, wide) for _ in range(5)]
    samples.append(sample_of(rng.permutation(points), narrow))
    samples.append(sample_of(np.r_[np.arange(171, 200), np.arange(500, 671)], wide))
    pairs = {(pair.first, pair.second): pair for pair in find_pairs(samples)}
    assert {key for key in pairs if max(key) < 5} == {(i, j) for j in range(5) for i in range(j)}
    # Its box covers little of it: the three best are kept in any case.
    assert sum(5 in key for key in pairs) == 3
    # 29 points are too few.
    assert not any(6 in key for key in pairs)
    key = next(key for key in pairs if 5 in key)
    first, second = (samples[index].point_idx for index in key)
    assert torch.equal(first[pairs[key].rows_first], second[pairs[key].rows_second])


def test_hard_images_are_near_and_unlike_or_far_and_alike():
    centres = [0.0, 0.3, 0.39, 0.6, 0.9, 2.0]
    poses = [RigidTransform(np.eye(3), np.array([x, 0.0, 0.0])) for x in centres]
    neighbours = Neighbours.of(poses, depth=1.0)
    similarity = np.zeros((6, 6), np.float32)
    similarity[0] = [1.0, 0.9, 0.2, -0.5, 0.3, 0.6]
    # The one at 0.6 is neither near (0.4) nor far (0.8).
    assert neighbours.hard(0, similarity) == (2, 5)
    assert Neighbours.of(poses[:2], depth=1.0).hard(0, similarity[:2, :2]) == (1, None)


def test_normalisation_is_folded_into_the_map():
    torch.manual_seed(0)
    network = LabelNetwork(LabelConfig(num_labels=6, hidden=8), CHANNELS)
    heads = _Heads(network, 3)
    first: Level = network.levels[0]
    columns = [torch.randn(50, CHANNELS[stride]) for stride in first.inputs]
    heads.train()
    for _ in range(30):
        heads.tell(0, columns)
    heads.eval()
    norm = heads.norms[0]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    expected = heads.tell(0, columns)[1]
    heads.fold()
    head = network.heads[0]
    assert isinstance(head, LabelHead)
    torch.testing.assert_close(head(columns), expected, rtol=1e-4, atol=1e-4)


def test_points_have_the_label_that_their_images_tell_in_the_mean(rng):
    network = LabelNetwork(LabelConfig(num_labels=6, hidden=8), CHANNELS)
    points = np.array([0, 1, 2])
    samples = [sample_of(points, rng.uniform(0, 63, (3, 2))) for _ in range(2)]
    standard = Standard.none(CHANNELS)
    head = network.heads[0]
    assert isinstance(head, LabelHead)
    told = point_distributions(network, [(samples[0], 1.0), (samples[1], 3.0)], standard, 4)
    one = [
        torch.softmax(head(standard.columns(network.levels[0], s.features)), dim=1) for s in samples
    ]
    torch.testing.assert_close(told[:3, 0], 0.25 * one[0] + 0.75 * one[1])
    assert told[3].abs().sum() == 0


def test_the_recipe_is_as_published():
    config = budget('standard', head='labels', recipe='paper')
    assert config.head == 'labels'
    assert config.label_recipe == 'paper'
    assert (config.labels.num_labels, config.labels.hidden) == (100, 256)
    paper = config.label_paper
    assert (paper.learning_rate, paper.weight_decay) == (2e-3, 1e-4)
    assert paper.losses == LOSSES == ('CE', 'CC', 'PC', 'PF', 'MS')
    assert budget('standard', head='labels').label_recipe == 'default'
    # Without a head, the recipe is that of D2S.
    assert budget('standard', recipe='paper').head == 'regression'


def test_labels_have_no_recipe_learned(tmp_path, capsys):
    options = ['--head', 'labels', '--recipe', 'learned']
    assert main(['build-map', str(tmp_path), '--map', str(tmp_path / 'map'), *options]) != 0
    assert '--recipe learned is of the regression head' in capsys.readouterr().err


@pytest.mark.slow
def test_it_trains_and_localizes(building_logs, tmp_path):
    """A few steps, and a query of another place."""
    features = FeatureConfig(name='rootsift', max_keypoints=1024)
    config = budget('quick', head='labels', recipe='paper', features=features)
    config = replace(
        config,
        labels=LabelConfig(num_labels=32, hidden=48),
        label_paper=LabelPaperConfig(steps=24, epochs=3),
    )
    log = open_source(building_logs / 'map')
    built = build_map(log, tmp_path / 'map', config, device='cpu', progress=False)
    assert built.scene_map.manifest.metrics['training']['pairs'] > 3
    localizer = Localizer.from_map(tmp_path / 'map', device='cpu')
    errors = []
    for frame in list(log)[:4]:
        result = localizer.localize(frame.image, frame.camera)
        if result.localized:
            errors.append(pose_error(result.map_from_camera, frame.map_from_camera)[0])
    assert len(errors) >= 2
    assert max(errors) < 0.05
    for frame in list(open_source(building_logs / 'other'))[:2]:
        assert not localizer.localize(frame.image, frame.camera).localized
