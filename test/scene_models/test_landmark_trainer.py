"""Training of the landmark head: the loss by hand, progress, and resuming bit for bit."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from d2s_ros.kernels.tensors import candidate_evidence
from d2s_ros.scene_models.landmark.network import (
    LandmarkConfig,
    LandmarkNetwork,
)
from d2s_ros.scene_models.landmark.samples import LandmarkSample
from d2s_ros.scene_models.landmark.trainer import (
    LandmarkTrainingConfig,
    draw_batch,
    landmark_loss,
    one_cycle,
    train_landmark_network,
)
from d2s_ros.scene_models.training_loop import read_checkpoint

NETWORK = LandmarkConfig(
    descriptor_dim=8, num_candidates=3, width=16, num_layers=1, num_heads=2, num_frequencies=2
)
TRAINING = LandmarkTrainingConfig(
    steps=30, images_per_step=2, keypoints_per_image=32, learning_rate=0.01
)


def make_samples(count=4, seed=0):
    """Return images whose right candidate is told by the scale of its keypoint."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        n = 40 - 12 * (index % 2)
        similarity = torch.rand(n, 3, generator=generator).sort(descending=True)[0]
        kind = torch.randint(4, (n,), generator=generator)
        correct = torch.zeros(n, 3, dtype=torch.bool)
        for row in range(n):
            if kind[row] < 3:
                correct[row, kind[row]] = True
        points = torch.randn(n, 3, 3, generator=generator)
        points[..., 0] = torch.where(correct, 1.0, -1.0)
        samples.append(
            LandmarkSample(
                torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1),
                candidate_evidence(similarity, similarity),
                points,
                torch.randn(n, 2, generator=generator),
                kind.float(),
                correct,
            )
        )
    return samples


def test_loss_by_hand():
    logits = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]])
    correct = torch.tensor([[[True, False], [False, False], [True, True]]])
    first = math.exp(2) / (math.exp(2) + math.exp(1) + 1)
    second = math.exp(3) / (2 + math.exp(3))
    third = 2 / 3
    expected = -(math.log(first) + math.log(second) + math.log(third)) / 3
    assert float(landmark_loss(logits, correct)) == pytest.approx(expected, rel=1e-6)
    mask = torch.tensor([[True, False, True]])
    expected = -(math.log(first) + math.log(third)) / 2
    assert float(landmark_loss(logits, correct, mask)) == pytest.approx(expected, rel=1e-6)
    assert float(landmark_loss(logits, correct, torch.zeros(1, 3, dtype=torch.bool))) == 0


def test_loss_has_finite_gradients():
    logits = torch.tensor([[[50.0, -50.0, 0.0], [-80.0, 90.0, 90.0]]], requires_grad=True)
    correct = torch.tensor([[[False, True], [True, False]]])
    loss = landmark_loss(logits, correct)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_one_cycle():
    values = [one_cycle(step, 100) for step in range(100)]
    assert values[0] == pytest.approx(0.05)
    assert max(values) == pytest.approx(1.0, abs=0.01)
    assert values.index(max(values)) == pytest.approx(19, abs=1)
    assert values[-1] == pytest.approx(0.0, abs=1e-6)
    assert values[:19] == sorted(values[:19])
    assert values[20:] == sorted(values[20:], reverse=True)


def test_batches_are_padded_and_reproducible():
    samples = make_samples()
    config = LandmarkTrainingConfig(images_per_step=6, keypoints_per_image=32, seed=3)
    first = draw_batch(samples, config, torch.Generator().manual_seed(1))
    second = draw_batch(samples, config, torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first['correct'].shape == (6, 32, 3)
    counts = first['mask'].sum(dim=1)
    assert set(counts.tolist()) <= {28, 32}
    assert (first['evidence'][~first['mask']] == 0).all()


def test_the_loss_falls():
    losses = []
    _, figures = train_landmark_network(
        make_samples(), NETWORK, TRAINING, on_step=lambda step, loss: losses.append(loss)
    )
    assert figures['steps'] == len(losses) == 30
    assert figures['loss'] == round(losses[-1], 4)
    assert losses[-1] < 0.6 * losses[0]


def test_the_network_learns_what_tells_candidates_apart():
    config = LandmarkTrainingConfig(
        steps=120, images_per_step=3, keypoints_per_image=32, learning_rate=0.01
    )
    network, _ = train_landmark_network(make_samples(), NETWORK, config)
    assert not network.training
    sample = make_samples(1, seed=99)[0]
    names = ('descriptors', 'evidence', 'candidate_points', 'keypoints', 'log_scales')
    with torch.inference_mode():
        logits = network(**{name: getattr(sample, name)[None] for name in names})[0]
    right = torch.cat([sample.correct, ~sample.correct.any(-1, keepdim=True)], dim=-1)
    chosen = right.gather(1, logits.argmax(-1, keepdim=True)).float().mean()
    assert chosen > 0.8


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_gives_the_same_network():
    samples = make_samples()
    first, _ = train_landmark_network(samples, NETWORK, TRAINING)
    torch.manual_seed(12345)
    torch.rand(7)
    second, _ = train_landmark_network(samples, NETWORK, TRAINING)
    assert same(first, second)
    other = LandmarkTrainingConfig(**{**vars(TRAINING), 'seed': 1})
    assert not same(first, train_landmark_network(samples, NETWORK, other)[0])


@pytest.mark.parametrize(('stop', 'error'), [(1, RuntimeError), (17, KeyboardInterrupt)])
def test_resuming_equals_never_stopping(tmp_path, stop, error):
    samples = make_samples()
    whole, whole_figures = train_landmark_network(samples, NETWORK, TRAINING)
    checkpoint = tmp_path / 'training.pt'

    def stop_at(step, loss):
        if step == stop:
            raise error('enough')

    with pytest.raises(error, match='enough'):
        train_landmark_network(samples, NETWORK, TRAINING, checkpoint=checkpoint, on_step=stop_at)
    steps = []
    torch.manual_seed(999)
    resumed, figures = train_landmark_network(
        samples,
        NETWORK,
        TRAINING,
        checkpoint=checkpoint,
        on_step=lambda step, loss: steps.append(step),
    )
    assert steps == list(range(stop + 1, 31))
    assert same(whole, resumed)
    assert figures['loss'] == whole_figures['loss']
    assert [path.name for path in tmp_path.iterdir()] == ['training.pt']


def test_a_previous_network_is_a_start():
    samples = make_samples()
    first, _ = train_landmark_network(samples, NETWORK, TRAINING)
    nothing = LandmarkTrainingConfig(steps=0)
    kept, figures = train_landmark_network(samples, NETWORK, nothing, initial=first.state_dict())
    assert same(first, kept)
    assert figures == {'steps': 0, 'seconds': 0.0, 'loss': None}
    untouched = LandmarkNetwork(NETWORK)
    assert not same(untouched, kept)


def test_the_time_limit_ends_training():
    config = LandmarkTrainingConfig(
        steps=100_000, images_per_step=1, keypoints_per_image=16, max_minutes=1e-6
    )
    _, figures = train_landmark_network(make_samples(), NETWORK, config)
    assert 1 <= figures['steps'] < 1000


def judge(network, samples):
    """Return the mean loss of the network on samples, in float32."""
    names = ('descriptors', 'evidence', 'candidate_points', 'keypoints', 'log_scales')
    with torch.inference_mode():
        return sum(
            float(
                landmark_loss(
                    network(**{name: getattr(sample, name)[None] for name in names}),
                    sample.correct[None],
                )
            )
            for sample in samples
        ) / len(samples)


def spoiled_samples():
    """Return images to train on whose labels are noise: learning them makes others worse."""
    generator = torch.Generator().manual_seed(5)
    return [
        replace(sample, correct=torch.rand(sample.correct.shape, generator=generator) < 0.3)
        for sample in make_samples(2, seed=8)
    ]


def test_training_stops_early_and_keeps_the_best_weights():
    held_out = make_samples(3, seed=4)
    config = replace(TRAINING, steps=300, evaluate_every=5, patience=4)
    network, figures = train_landmark_network(spoiled_samples(), NETWORK, config, held_out=held_out)
    assert figures['steps'] == figures['best_step'] + 4 * 5 < 300
    # bfloat16 in training.
    assert judge(network, held_out) == pytest.approx(figures['best_loss'], rel=0.03, abs=1e-3)
    whole, _ = train_landmark_network(
        spoiled_samples(), NETWORK, replace(config, patience=0), held_out=held_out
    )
    assert judge(whole, held_out) > 1.1 * figures['best_loss']
    # The best weights are those that a run has at that step.
    weights = []

    def stop(step, loss):
        if step == figures['best_step']:
            raise RuntimeError('enough')

    def keep(checkpoint):
        with pytest.raises(RuntimeError, match='enough'):
            train_landmark_network(
                spoiled_samples(), NETWORK, config, checkpoint=checkpoint, on_step=stop
            )
        weights.append(read_checkpoint(checkpoint)['network'])

    with tempfile.TemporaryDirectory() as folder:
        keep(Path(folder) / 'training.pt')
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[0][name])


def test_training_that_improves_is_not_stopped():
    held_out = make_samples(3, seed=4)
    config = replace(TRAINING, steps=60, evaluate_every=6, patience=3, learning_rate=3e-3)
    network, figures = train_landmark_network(
        make_samples(40, seed=2), NETWORK, config, held_out=held_out
    )
    assert figures['steps'] == 60
    assert figures['best_step'] > 30
    assert judge(network, held_out) == pytest.approx(figures['best_loss'], rel=0.03, abs=1e-3)


@pytest.mark.parametrize('stop', [12, 47])
def test_an_early_stop_survives_an_interruption(tmp_path, stop):
    held_out = make_samples(3, seed=4)
    config = replace(TRAINING, steps=300, evaluate_every=5, patience=4)
    whole, figures = train_landmark_network(spoiled_samples(), NETWORK, config, held_out=held_out)
    stop = min(stop, figures['steps'] - 1)

    def stop_at(step, loss):
        if step == stop:
            raise KeyboardInterrupt

    checkpoint = tmp_path / 'training.pt'
    for on_step in (stop_at, None):
        arguments = {'checkpoint': checkpoint, 'held_out': held_out, 'on_step': on_step}
        if on_step is None:
            resumed, again = train_landmark_network(spoiled_samples(), NETWORK, config, **arguments)
            break
        with pytest.raises(KeyboardInterrupt):
            train_landmark_network(spoiled_samples(), NETWORK, config, **arguments)
    assert same(whole, resumed)
    assert {**again, 'seconds': 0} == {**figures, 'seconds': 0}


def test_half_a_step_is_not_saved(tmp_path):
    """An interruption inside a step leaves the last whole one; the result is the same."""
    samples = make_samples()
    config = replace(TRAINING, checkpoint_seconds=0.0)
    whole, _ = train_landmark_network(samples, NETWORK, config)

    class Interrupting(list):
        seen = 0

        def __getitem__(self, index):
            Interrupting.seen += 1
            if Interrupting.seen == 21:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    checkpoint = tmp_path / 'training.pt'
    with pytest.raises(KeyboardInterrupt):
        # Two images a step: the first image of the eleventh step, after its random numbers.
        train_landmark_network(Interrupting(samples), NETWORK, config, checkpoint=checkpoint)
    assert read_checkpoint(checkpoint)['step'] == 10
    resumed, _ = train_landmark_network(samples, NETWORK, config, checkpoint=checkpoint)
    assert same(whole, resumed)
