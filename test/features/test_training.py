"""Training of SuperPoint weights: samples, losses, optimiser, checkpoints, the whole command."""

import json
import os
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from d2s_ros.errors import InputError
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.warped_pairs import is_held_out
from d2s_ros.kernels.interface import REFINEMENT_FLOOR
from d2s_ros.kernels.tensors import refine_keypoints, score_map
from tools.superpoint_training import finishing, losses
from tools.superpoint_training.__main__ import main
from tools.superpoint_training.labels import HomographicAdaptation, cache_labels, read_labels
from tools.superpoint_training.network import TrainableSuperPoint, save_weights
from tools.superpoint_training.optimizer import Muon
from tools.superpoint_training.pairs import (
    Augmentation,
    Labels,
    degrade,
    make_pair,
    splat,
)
from tools.superpoint_training.projection import fit_projection
from tools.superpoint_training.synthetic import _SHAPES, draw_shapes
from tools.superpoint_training.trainer import (
    Budget,
    SyntheticPairs,
    Trainer,
    TrainingConfig,
    collate,
    decay_factor,
)


def textured(rng, height=120, width=160):
    coarse = rng.integers(0, 256, (height // 4, width // 4), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photographs(tmp_path, rng):
    folder = tmp_path / 'photographs'
    folder.mkdir()
    for index in range(6):
        cv2.imwrite(str(folder / f'p{index}.png'), textured(rng))
    return folder


def test_batch_norm_folds_exactly():
    torch.manual_seed(0)
    model = TrainableSuperPoint()
    for _ in range(3):
        model(torch.rand(4, 1, 64, 64))
    for name, module in model.named_modules():
        if name.startswith('norm'):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    model.eval()
    plain = SuperPointNet().eval()
    plain.load_state_dict(model.folded_state_dict())
    image = torch.rand(2, 1, 48, 72)
    with torch.no_grad():
        for found, expected in zip(plain(image), model(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_saved_weights_load_as_features(tmp_path, rng):
    torch.manual_seed(0)
    model = TrainableSuperPoint()
    model(torch.rand(4, 1, 64, 64))
    save_weights(model.eval(), tmp_path / 'w.safetensors', {'steps': '1'})
    assert (tmp_path / 'w.safetensors').stat().st_size < 2_700_000
    extractor = SuperPoint.from_pretrained(tmp_path / 'w.safetensors')
    assert extractor.extract(textured(rng)).descriptors.shape[1] == 256


def test_frozen_stage_does_not_move():
    torch.manual_seed(0)
    model: Any = TrainableSuperPoint()
    model.train()
    model(torch.rand(2, 1, 64, 64))
    model.freeze_first_stage()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, _ = model.train()(torch.rand(2, 1, 64, 64))
    logits.square().mean().backward()
    assert model.conv1b.weight.grad is None
    assert model.conv2a.weight.grad is not None
    for name in ('norm1a.running_mean', 'norm1b.running_var'):
        torch.testing.assert_close(model.state_dict()[name], before[name], rtol=0, atol=0)
    assert not torch.equal(model.state_dict()['norm2a.running_mean'], before['norm2a.running_mean'])


def test_finished_weights_are_taken_over_exactly():
    torch.manual_seed(0)
    plain = SuperPointNet().eval()
    model = TrainableSuperPoint()
    model.start_from(plain.state_dict())
    image = torch.rand(2, 1, 48, 72)
    with torch.no_grad():
        for found, expected in zip(model.train()(image), plain(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for name, value in model.folded_state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6)


def blobs(points, side=48):
    """Logits whose scores have a peak at each of (K, 2) points."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 2, indexing='xy'), dim=-1)
    gaps = (grid[None] - points[:, None, None]).square().sum(-1)
    logits = torch.logsumexp(6.0 - 0.5 * gaps, dim=0)
    cells = torch.nn.functional.pixel_unshuffle(logits[None, None], 8)
    return torch.cat([cells, torch.zeros_like(cells[:, :1])], dim=1)


def test_positions_are_compared_as_the_product_reads_them():
    points = torch.tensor([[12.3, 14.8], [30.1, 20.4], [19.7, 33.2]])
    logits = blobs(points)
    scores = score_map(logits)
    peaks, _ = losses.strongest_peaks(scores, 3)
    found = losses.refined_peaks((scores + REFINEMENT_FLOOR).log(), peaks)[0]
    torch.testing.assert_close(found, refine_keypoints(scores[0], peaks[0]), rtol=0, atol=1e-4)
    same = torch.cat([logits, logits])
    motion = torch.eye(3)[None]
    near, _, _ = losses.position_losses(same, motion)
    moved = torch.eye(3)[None].clone()
    moved[0, 0, 2] = 0.5
    far, _, median = losses.position_losses(same, moved)
    assert float(near) == pytest.approx(0.1, abs=1e-4)
    assert float(median) == pytest.approx(0.51, abs=0.02)
    # And following the gradient brings the two views together.
    both = same.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([both], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        loss, _, _ = losses.position_losses(both, moved)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * float(far)


def test_ranking_raises_what_the_other_view_confirms():
    first = blobs(torch.tensor([[12.0, 12.0], [28.0, 20.0]]))
    second = blobs(torch.tensor([[12.0, 12.0], [28.0, 36.0]]))
    logits = torch.cat([first, second]).requires_grad_(True)
    _, ranking, _ = losses.position_losses(logits, torch.eye(3)[None])
    ranking.backward()
    slope = torch.nn.functional.pixel_shuffle(logits.grad[:, :64], 8)[0, 0]
    assert float(slope[12, 12]) < 0 < float(slope[20, 28])


@pytest.mark.parametrize('layers', ['detector', 'all'])
def test_last_layers_on_stored_maps_are_the_network(layers):
    torch.manual_seed(0)
    network = SuperPointNet().eval()
    images = torch.rand(2, 1, 64, 80)
    head = finishing.Head(network, layers)
    with torch.no_grad():
        entering = head.entering(finishing.pooled_maps(network, images))
        for found, expected in zip(head(entering, describe=True), network(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_finishing_moves_the_detector_alone_and_resumes(tmp_path, photographs):
    torch.set_num_threads(1)
    out = tmp_path / 'out'
    # Names that are held out: what is measured is never trained on.
    held = next(f'x{i}.png' for i in range(99) if is_held_out(f'x{i}'))
    (photographs / held).write_bytes((photographs / 'p0.png').read_bytes())
    arguments = ['--images', str(photographs), '--out', str(out), '--size', '64', '--batch', '2']
    assert finishing.main([*arguments, '--pairs', '40', '--steps', '3']) == 0
    old = SuperPoint.from_pretrained().network.state_dict()
    extractor = SuperPoint.from_pretrained(out / 'superpoint.safetensors')
    assert (extractor.dim, extractor.smoothing) == (128, pytest.approx(0.7))
    new = extractor.network.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {'convPa.weight', 'convPa.bias', 'convPb.weight', 'convPb.bias'}
    rows = [json.loads(line) for line in (out / 'curve.jsonl').read_text().splitlines()]
    assert rows[0]['step'] == 0
    assert rows[-1]['step'] == 3
    assert finishing.main([*arguments, '--pairs', '40', '--steps', '4', '--resume']) == 0
    assert json.loads((out / 'curve.jsonl').read_text().splitlines()[-1])['step'] == 4
    assert finishing.main(['--out', str(tmp_path / 'none'), '--minutes', '1']) != 0


def test_splat_keeps_the_centroid_and_the_weight():
    heat = splat(16, np.array([[5.25, 7.75]], np.float32), np.array([0.8], np.float32))
    assert heat.sum() == pytest.approx(0.8, abs=1e-6)
    rows, columns = np.mgrid[:16, :16]
    assert (heat * columns).sum() / heat.sum() == pytest.approx(5.25, abs=1e-5)
    assert (heat * rows).sum() / heat.sum() == pytest.approx(7.75, abs=1e-5)


def test_views_show_keypoints_where_they_say(rng):
    """Bright dots must be found, in both views, where the pair says the keypoints are."""
    photograph: Any = np.zeros((240, 320), np.uint8)
    points = np.array([[x, y] for x in range(20, 310, 30) for y in range(20, 230, 30)], np.float32)
    for x, y in points.astype(int):
        photograph[y, x] = 255
    photograph = np.asarray(cv2.GaussianBlur(photograph, (0, 0), 1.5)) * np.uint8(10)
    labels = Labels(
        points, np.ones(len(points), np.float32), np.zeros((len(points), 4), np.float16)
    )
    pair = make_pair(
        rng, photograph, labels, size=128, keypoints=64, config=Augmentation(photometric=0.0)
    )
    seen = 0
    for view in pair.views:
        for x, y in view.keypoints[view.visible]:
            column, row = round(float(x)), round(float(y))
            patch = view.image[row - 4 : row + 5, column - 4 : column + 5]
            if patch.shape != (9, 9):
                continue
            weights = patch / patch.sum()
            centre = [
                (weights * np.arange(-4, 5)).sum() + column,
                (weights * np.arange(-4, 5)[:, None]).sum() + row,
            ]
            assert np.linalg.norm(np.subtract(centre, (x, y))) < 0.6
            assert view.heatmap[row, column] > 0.2
            seen += 1
    assert seen > 6


def test_degrading_is_seeded_and_stays_in_range(rng):
    image = (textured(rng, 64, 64) / 255).astype(np.float32)
    for seed in range(60):
        first = degrade(np.random.default_rng(seed), image)
        second = degrade(np.random.default_rng(seed), image)
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32
        assert first.min() >= 0
        assert first.max() <= 1


def test_cell_targets_are_distributions_in_score_map_order(rng):
    heat = np.zeros((1, 16, 24), np.float32)
    heat[0, 8 + 5, 16 + 3] = 0.7
    heat[0, 0, 0:8] = 0.5
    targets = losses.cell_targets(torch.from_numpy(heat))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(1, 2, 3))
    assert float(targets[0, 8 * 5 + 3, 1, 2]) == pytest.approx(0.7)
    assert float(targets[0, 64, 1, 2]) == pytest.approx(0.3)
    assert float(targets[0, 64, 0, 0]) == 0.0


def test_detector_loss_is_least_at_the_target():
    torch.manual_seed(0)
    heat = torch.rand(1, 16, 16) * 0.02
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    best = losses.cell_targets(heat).log()
    least = losses.detector_loss(best, heat, valid)
    for _ in range(5):
        other = losses.detector_loss(best + 0.3 * torch.randn_like(best), heat, valid)
        assert other > least
    ignored = losses.detector_loss(torch.randn_like(best), heat, torch.zeros_like(valid))
    assert float(ignored) == 0.0


def test_pair_loss_prefers_the_right_partner():
    torch.manual_seed(0)
    right = torch.nn.functional.normalize(torch.randn(1, 20, 32), dim=-1)
    visible = torch.ones(2, 20, dtype=torch.bool)
    places = torch.rand(1, 20, 2) * 1000
    good, accuracy = losses.pair_loss(torch.cat([right, right]), visible, places, 0.05)
    assert float(accuracy) == 1.0
    shuffled = torch.cat([right, right.roll(1, dims=1)])
    bad, accuracy = losses.pair_loss(shuffled, visible, places, 0.05)
    assert float(accuracy) == 0.0
    assert bad > good + 5
    # What lies at the same place is no negative.
    same = torch.zeros_like(places)
    free, _ = losses.pair_loss(shuffled, visible, same, 0.05)
    assert float(free) == pytest.approx(0.0, abs=1e-5)
    # Invisible keypoints do not count.
    none, _ = losses.pair_loss(shuffled, ~visible, places, 0.05)
    assert float(none) == 0.0


def test_teacher_losses_vanish_for_the_teacher_itself():
    torch.manual_seed(0)
    target = torch.nn.functional.normalize(torch.randn(2, 30, 128), dim=-1)
    visible = torch.ones(2, 30, dtype=torch.bool)
    places = torch.rand(2, 30, 2) * 1000
    cosine, contrast = losses.teacher_losses(target, target, visible, places, 0.05)
    assert float(cosine) == pytest.approx(0.0, abs=1e-5)
    assert float(contrast) < 0.01
    cosine, contrast = losses.teacher_losses(-target, target, visible, places, 0.05)
    assert float(cosine) == pytest.approx(2.0, abs=1e-5)
    assert float(contrast) > 10


def test_muon_turns_weights_by_its_rate_and_keeps_their_norm():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(32, 64, 3, 3))
    optimizer = Muon([weight], lr=0.02)
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        before *= 32**0.5 / before.norm()
        update = (weight.detach() - before).reshape(32, -1) / 0.02
        singular = torch.linalg.svdvals(update)
        assert float(singular.min()) > 0.5
        assert float(singular.max()) < 1.5


def test_every_shape_draws_corners_inside(rng):
    for draw in _SHAPES:
        image = np.full((960, 1280), 128, np.uint8)
        points = draw(rng, image)
        assert points.ndim == 2
        assert points.shape[1] == 2
    total = 0
    for _ in range(40):
        image, corners = draw_shapes(rng)
        assert image.shape == (240, 320)
        assert (corners >= 0).all()
        assert (corners <= [319, 239]).all()
        total += len(corners)
    assert total > 100


def test_checkerboard_corners_are_saddles(rng):
    """OpenCV's corner refinement must stay where the label says."""
    from tools.superpoint_training.synthetic import _checkerboard, _draw

    image, corners = _draw(rng, _checkerboard, 320, 240)
    corners = corners[((corners > 12) & (corners < [307, 227])).all(axis=1)]
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 40, 1e-3)
    refined = cv2.cornerSubPix(image, corners[:, None].copy(), (4, 4), (-1, -1), criteria)[:, 0]
    assert np.median(np.linalg.norm(refined - corners, axis=1)) < 0.35


def test_homographic_adaptation_averages_and_agrees_with_itself(rng):
    torch.manual_seed(0)
    network: Any = SuperPointNet()
    with torch.no_grad():
        network.convPb.weight.mul_(60.0)
        network.convPb.bias.zero_()
    labeller = HomographicAdaptation(network, warps=3, threshold=0.02)
    photograph = textured(rng)
    first, second = labeller(photograph), labeller(photograph)
    assert 0 < len(first.keypoints) <= 1024
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    assert first.descriptors.shape == (len(first.keypoints), 0)
    assert (first.keypoints <= [159, 119]).all()


def test_labels_are_cached_and_belong_to_one_teacher(tmp_path, photographs):
    calls = []

    def labeller(photograph):
        calls.append(photograph.shape)
        return Labels(
            np.array([[1.5, 2.5]], np.float32),
            np.ones(1, np.float32),
            np.ones((1, 8), np.float16),
        )

    folder = tmp_path / 'labels'
    names = cache_labels(photographs, folder, labeller, 'one')
    assert names == [f'p{i}.png' for i in range(6)]
    cache_labels(photographs, folder, labeller, 'one')
    assert len(calls) == 6
    np.testing.assert_array_equal(read_labels(folder / 'p3.npz').keypoints, [[1.5, 2.5]])
    with pytest.raises(InputError, match='remove it'):
        cache_labels(photographs, folder, labeller, 'two')
    (folder / 'p3.npz').write_bytes(b'damaged')
    with pytest.raises(InputError, match=r'p3\.npz'):
        read_labels(folder / 'p3.npz')
    with pytest.raises(InputError, match='no photographs'):
        cache_labels(folder, folder, labeller, 'one')


def test_schedule():
    assert Budget(steps=100).progress(25, 1e9) == 0.25
    assert Budget(minutes=2).progress(10**9, 30) == 0.25
    assert decay_factor(0.0, 0.3) == 1.0
    assert decay_factor(0.69, 0.3) == 1.0
    assert decay_factor(0.85, 0.3) == pytest.approx(0.5)
    assert decay_factor(1.0, 0.3) == 0.0
    assert decay_factor(1.2, 0.3) == 0.0


def test_training_learns_and_resumes_exactly(tmp_path):
    torch.set_num_threads(1)
    config = TrainingConfig(
        batch=2,
        size=64,
        warmup=5,
        checkpoint_every=1000,
        freeze_share=0.5,
        weights=losses.LossWeights(detector=1.0, pair_contrast=0.0),
    )
    batches = []
    stream = SyntheticPairs(config, 0).draw(np.random.default_rng(0))
    for _ in range(3):
        batches.append(collate([next(stream) for _ in range(config.batch)]))
    first = Trainer(config, teacher_dim=0, out=tmp_path / 'a')
    history = [float(first.update(batches[i % 3], 1.0)['detector']) for i in range(12)]
    assert np.mean(history[-3:]) < 0.7 * np.mean(history[:3])
    first.save()
    second = Trainer(config, teacher_dim=0, out=tmp_path / 'a')
    second.load()
    assert second.step == 12
    one, two = (float(t.update(batches[0], 1.0)['detector']) for t in (first, second))
    assert one == pytest.approx(two, rel=1e-4)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'checkpoint.pt').write_bytes(b'damaged')
    with pytest.raises(InputError, match='cannot resume'):
        Trainer(config, teacher_dim=0, out=tmp_path / 'b').load()


def test_seed_fixes_the_samples():
    config = TrainingConfig(batch=1, size=64)
    one, two, other = (next(iter(SyntheticPairs(config, seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.views[0].image, two.views[0].image)
    assert not np.array_equal(one.views[0].image, other.views[0].image)


def test_command_from_scratch_ends_with_weights(tmp_path, photographs):
    out = tmp_path / 'out'
    arguments = ['--images', str(photographs), '--out', str(out), '--batch', '1', '--size', '64']
    arguments += ['--warps', '1', '--threads', '1']
    assert main([*arguments, '--steps', '6']) == 0
    extractor = SuperPoint.from_pretrained(out / 'superpoint.safetensors')
    assert extractor.dim == 128
    state = torch.load(out / 'checkpoint.pt', weights_only=True)
    assert state['step'] == 4
    assert json.loads(state['config'])['batch'] == 1
    # With more steps it goes on from there.
    assert main([*arguments, '--steps', '6', '--resume']) == 0
    assert torch.load(out / 'checkpoint.pt', weights_only=True)['step'] == 4


def test_command_goes_on_from_finished_weights(tmp_path, photographs):
    out = tmp_path / 'out'
    arguments = ['--images', str(photographs), '--out', str(out), '--start', 'packaged']
    arguments += ['--batch', '2', '--size', '64', '--threads', '1', '--steps', '2']
    assert main(arguments) == 0
    labels = read_labels(out / 'labels' / 'p1.npz')
    assert labels.descriptors.shape == (len(labels.keypoints), 256)
    old = SuperPoint.from_pretrained().network.state_dict()
    new = SuperPoint.from_pretrained(out / 'superpoint.safetensors').network.state_dict()
    for name in ('conv1a.weight', 'conv1b.bias'):
        torch.testing.assert_close(new[name], old[name], rtol=1e-2, atol=1e-4)
    # Two careful steps: others have moved, but not far.
    change = (new['convPa.weight'] - old['convPa.weight']).norm() / old['convPa.weight'].norm()
    assert 1e-5 < float(change) < 0.05


def test_projection_keeps_distances_between_descriptors_of_few_directions(rng):
    """What varies in 20 directions is as far apart in 20 numbers as in 256, up to the whitening."""
    torch.manual_seed(0)
    network: Any = SuperPointNet()
    with torch.no_grad():
        network.convPb.weight.mul_(40.0)
        network.convPb.bias.zero_()
        basis = torch.linalg.qr(torch.randn(256, 20)).Q
        network.convDb.weight.copy_((basis @ torch.randn(20, 256))[:, :, None, None])
        network.convDb.bias.zero_()
    photographs = [textured(rng) for _ in range(4)]
    projection = fit_projection(network, photographs, dim=20)
    assert projection.shape == (256, 20)
    # All of the directions are kept, and nothing else.
    share = torch.linalg.norm(basis.T @ projection) / torch.linalg.norm(projection)
    assert float(share) > 0.999


def test_projection_needs_keypoints(rng):
    with pytest.raises(InputError, match='too few'):
        fit_projection(SuperPointNet(), [textured(rng)[:16, :16]])


def test_command_refuses_bad_input(tmp_path, photographs, caplog):
    base = ['--images', str(photographs), '--out', str(tmp_path / 'o'), '--steps', '1']
    assert main([*base, '--size', '100']) == 2
    assert main([*base, '--teacher', str(tmp_path / 'none.pth')]) == 3
    if not torch.cuda.is_available():
        assert main([*base, '--device', 'cuda']) == 3
    assert main(['--images', str(tmp_path / 'no'), '--out', str(tmp_path / 'o2'), '--steps', '1',
                 '--batch', '1', '--size', '64', '--threads', '1']) == 3  # fmt: skip
    assert 'cannot list the photographs' in caplog.text


@pytest.mark.slow
def test_teacher_and_two_processes(tmp_path, photographs, shared_data, repo_root):
    """torchrun on two processes over gloo, supervised by the teacher."""
    pytest.importorskip('kornia')
    teacher = shared_data / 'teacher' / 'aliked-n16.pth'
    if not teacher.is_file():
        pytest.skip(f'no teacher at {teacher}')
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    command += ['--master_port', '0', '--rdzv_backend', 'c10d', '--rdzv_endpoint', 'localhost:0']
    command += ['-m', 'tools.superpoint_training', '--images', str(photographs)]
    command += ['--out', str(out), '--teacher', str(teacher), '--steps', '4', '--batch', '1']
    command += ['--size', '64', '--threads', '1']
    environment = {**os.environ, 'PYTHONPATH': str(repo_root), 'OMP_NUM_THREADS': '1'}
    subprocess.run(command, check=True, env=environment, timeout=300, cwd=tmp_path)
    assert torch.load(out / 'checkpoint.pt', weights_only=True)['step'] == 4
    assert SuperPoint.from_pretrained(out / 'superpoint.safetensors').dim == 128


def test_held_out_photographs_are_a_tenth_and_fixed():
    names = [f'image{i:04d}.jpg' for i in range(2000)]
    share = np.mean([is_held_out(name) for name in names])
    assert 0.08 < share < 0.12
    assert [is_held_out(name) for name in names[:40]] == [
        is_held_out(name.replace('.jpg', '.png')) for name in names[:40]
    ]
