"""SuperPoint extraction, checked against NumPy and against known geometry."""

import hashlib
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from d2s_ros.device import has_fast_int8
from d2s_ros.errors import DeviceError, UnsupportedImageError, UsageError, WeightsError
from d2s_ros.features.network_images import resize_to_fit
from d2s_ros.features.superpoint.dense_maps import read_descriptors
from d2s_ros.features.superpoint.extractor import SuperPoint
from d2s_ros.features.superpoint.files import default_weights_path
from d2s_ros.features.superpoint.int8 import calibration_image
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.superpoint.weights import load_network
from d2s_ros.features.types import FeatureConfig
from d2s_ros.kernels.tensors import refine_keypoints, score_map, suppress_non_maxima
from tools.superpoint_training.losses import sample_descriptors

needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason='needs a CPU with VNNI instructions')


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    result: Any = SuperPointNet()
    with torch.no_grad():
        # Untrained logits are nearly constant: spread them so that there are clear maxima.
        result.convPb.weight.mul_(40.0)
        result.convPb.bias.zero_()
    return result.eval()


@pytest.fixture(scope='module')
def texture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (120, 168), dtype=np.uint8)


def make(network, **options):
    count = options.pop('max_keypoints', 2048)
    config = FeatureConfig(name='superpoint', max_keypoints=count, min_size=0)
    return SuperPoint(network, config, weights_hash='test', **options)


def numpy_descriptors(raw, keypoints):
    """An independent reading of the convention: explicit bilinear weights, constant beyond."""
    channels, height, width = raw.shape
    unit = raw / np.linalg.norm(raw, axis=0)
    result = np.zeros((len(keypoints), channels))
    for row, (x, y) in enumerate(keypoints):
        u = min(max((x - 3.5) / 8, 0), width - 1)
        v = min(max((y - 3.5) / 8, 0), height - 1)
        left, top = int(np.floor(u)), int(np.floor(v))
        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
        a, b = u - left, v - top
        result[row] = (
            (1 - a) * (1 - b) * unit[:, top, left]
            + a * (1 - b) * unit[:, top, right]
            + (1 - a) * b * unit[:, bottom, left]
            + a * b * unit[:, bottom, right]
        )
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def test_descriptors_match_an_independent_implementation():
    rng = np.random.default_rng(1)
    raw = rng.normal(size=(16, 9, 13)).astype(np.float32)
    keypoints = rng.uniform([0, 0], [103, 71], (200, 2)).astype(np.float32)
    keypoints[:4] = np.array([[0, 0], [103, 71], [3.5, 3.5], [11.5, 3.5]])
    found = sample_descriptors(torch.from_numpy(raw)[None], torch.from_numpy(keypoints)[None])[0]
    expected = numpy_descriptors(raw.astype(np.float64), keypoints)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    single = read_descriptors(torch.from_numpy(raw), torch.from_numpy(keypoints))
    np.testing.assert_allclose(single.numpy(), expected, atol=2e-5)
    for narrow in (raw[:, :1], raw[:, :, :1]):
        few = keypoints[:20]
        single = read_descriptors(torch.from_numpy(narrow.copy()), torch.from_numpy(few))
        expected = numpy_descriptors(narrow.astype(np.float64), few)
        np.testing.assert_allclose(single.numpy(), expected, atol=2e-5)


def test_strips_of_the_first_stage_change_nothing(network, monkeypatch):
    image = torch.rand(1, 1, 168, 72)
    with torch.no_grad():
        strips = network(image)
        monkeypatch.setattr('d2s_ros.features.superpoint.network.STRIP_ROWS', 1000)
        whole = network(image)
    for found, expected in zip(strips, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_score_map_puts_channels_where_the_pixels_are():
    logits = torch.full((1, 65, 2, 3), -20.0)
    logits[0, 64] = 0.0
    # Channel 8 * y + x of cell (row 1, column 2), with y = 5 and x = 3.
    logits[0, 8 * 5 + 3, 1, 2] = 20.0
    scores = score_map(logits)[0]
    assert scores.shape == (16, 24)
    row, column = divmod(int(scores.argmax()), 24)
    assert (row, column) == (8 + 5, 16 + 3)
    assert float(scores[row, column]) == pytest.approx(1.0, abs=1e-6)


def test_suppression_against_brute_force():
    rng = np.random.default_rng(2)
    scores = rng.random((40, 50)).astype(np.float32)
    kept = suppress_non_maxima(torch.from_numpy(scores)[None], 3)[0].numpy()
    rows, columns = np.nonzero(kept)
    gaps = np.maximum(np.abs(rows[:, None] - rows[None]), np.abs(columns[:, None] - columns[None]))
    np.fill_diagonal(gaps, 99)
    assert gaps.min() > 3
    for row in range(40):
        for column in range(50):
            window = scores[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4]
            if scores[row, column] == window.max():
                assert kept[row, column] == scores[row, column]


@needs_int8
@pytest.mark.parametrize('size', [(8, 8), (8, 120), (64, 8), (120, 168)])
def test_describing_some_cells_is_describing_all(network, size):
    integers = make(network, precision='int8')._integer_network
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 1, *size), np.uint8))
    with torch.inference_mode():
        shared, logits = integers.detect(image)
        every_logit, every_descriptor = integers(image)
        rows = every_descriptor[0].permute(1, 2, 0).reshape(-1, 256)
        for share in (1.0, 0.3, 0.0):
            chosen = torch.from_numpy(np.random.default_rng(4).random(len(rows)) < share)
            cells = chosen.nonzero()[:, 0]
            assert torch.equal(integers.describe(shared, cells), rows[cells])
    assert torch.equal(logits, every_logit)


@pytest.mark.parametrize('keypoints', [70, 5000])
def test_devices_choose_keypoints_as_the_cpu_does(network, texture, keypoints):
    """The way without round trips to the device, run on the CPU."""
    extractor = make(network, max_keypoints=keypoints)
    mask = np.full(texture.shape, 255, np.uint8)
    mask[30:50, 60:90] = 0
    expected = extractor.extract(texture, mask)
    table = extractor.on_device(torch.from_numpy(texture), texture.shape, mask).numpy()
    table = table[table[:, 2] > extractor.threshold]
    pixel = np.rint(table[:, :2]).astype(int)
    table = table[mask[pixel[:, 1], pixel[:, 0]] > 0]
    assert len(table) > 40
    np.testing.assert_allclose(table[:, :2], expected.keypoints, atol=1e-4)
    np.testing.assert_allclose(table[:, 2], expected.keypoint_scores, atol=1e-6)
    np.testing.assert_allclose(table[:, 3:], expected.descriptors, atol=1e-4)


def same_features(found, expected):
    """Return the share of keypoints found again within 1.5 px and their median cosine."""
    gaps = np.linalg.norm(found.keypoints[:, None] - expected.keypoints[None], axis=2)
    nearest = gaps.argmin(axis=1)
    close = gaps[np.arange(len(nearest)), nearest] < 1.5
    cosines = (found.descriptors[close] * expected.descriptors[nearest[close]]).sum(axis=1)
    return float(close.mean()), float(np.median(cosines))


@needs_int8
def test_low_precision_finds_the_same_features():
    """The made-up picture is not one of those that the integer network is calibrated on."""
    image = calibration_image(7, 320, 240)
    config = FeatureConfig(name='superpoint', max_keypoints=300, min_size=0)
    expected = SuperPoint.from_pretrained(config=config).extract(image)
    extractor = SuperPoint.from_pretrained(config=config, precision='int8')
    found = extractor.extract(image)
    share, cosine = same_features(found, expected)
    assert share > 0.9
    assert cosine > 0.995
    np.testing.assert_array_equal(extractor.extract(image).descriptors, found.descriptors)


@needs_int8
def test_auto_is_integer_where_the_processor_has_it(network, monkeypatch):
    assert make(network, precision='auto').precision == 'int8'
    monkeypatch.setattr('d2s_ros.features.superpoint.extractor.has_fast_int8', lambda: False)
    assert make(network, precision='auto').precision == 'fp32'


def test_precisions_that_cannot_be_had_are_errors(network, monkeypatch):
    with pytest.raises(UsageError, match='fp64'):
        make(network, precision='fp64')
    with pytest.raises(UsageError, match='bf16 is no longer offered'):
        make(network, precision='bf16')
    monkeypatch.setattr('d2s_ros.features.superpoint.extractor.has_fast_int8', lambda: False)
    with pytest.raises(DeviceError, match='int8'):
        make(network, precision='int8')


@pytest.mark.parametrize(('dx', 'dy'), [(0.0, 0.0), (0.3, -0.2), (-0.45, 0.1), (0.49, 0.49)])
def test_refinement_finds_the_top_of_a_tilted_bump(dx, dy):
    x, y = 4 + dx, 4 + dy
    rows, columns = np.mgrid[0:9, 0:9]
    u, v = columns - x, rows - y
    scores = np.exp(-(0.6 * u * u + 0.4 * u * v + 0.5 * v * v)).astype(np.float32)
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    found = refine_keypoints(torch.from_numpy(scores), torch.tensor([[column, row]]))
    np.testing.assert_allclose(found.numpy(), [[x, y]], atol=0.01)


def test_refinement_leaves_plateaus_and_ridges_where_they_are():
    plateau = torch.full((9, 9), 0.3)
    ridge = plateau.clone()
    ridge[4] = 0.5
    for scores in (plateau, ridge):
        found = refine_keypoints(scores, torch.tensor([[4, 4]]))
        np.testing.assert_allclose(found.numpy(), [[4, 4]], atol=1e-6)


def test_projection_beside_the_weights_shortens_descriptors(tmp_path, network, texture):
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / 'a.safetensors')
    plain = SuperPoint.from_pretrained(tmp_path / 'a.safetensors')
    matrix = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    save_file({'projection': matrix}, tmp_path / 'a.projection.safetensors')
    short = SuperPoint.from_pretrained(tmp_path / 'a.safetensors')
    assert (plain.dim, short.dim) == (256, 32)
    # A map made with one does not open with the other.
    assert plain.weights_hash != short.weights_hash
    long, found = plain.extract(texture), short.extract(texture)
    np.testing.assert_array_equal(long.keypoints, found.keypoints)
    expected = long.descriptors @ matrix.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.descriptors, expected, atol=1e-5)


def test_smoothing_beside_the_weights_is_applied(tmp_path, network, texture):
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / 'a.safetensors')
    tensors = {'projection': torch.eye(256), 'smoothing': torch.tensor([1.5])}
    save_file(tensors, tmp_path / 'a.projection.safetensors')
    config = FeatureConfig(name='superpoint', min_size=0)
    smoothed = SuperPoint.from_pretrained(tmp_path / 'a.safetensors', config=config)
    found = smoothed.extract(texture)
    expected = make(network).extract(cv2.GaussianBlur(texture, (0, 0), 1.5))
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    save_file({**tensors, 'smoothing': torch.tensor([-1.0])}, tmp_path / 'a.projection.safetensors')
    with pytest.raises(WeightsError, match='smoothing'):
        SuperPoint.from_pretrained(tmp_path / 'a.safetensors')


@pytest.mark.parametrize('matrix', [torch.zeros(255, 8), torch.full((256, 8), float('nan'))])
def test_unusable_projection_is_an_error(tmp_path, network, matrix):
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / 'a.safetensors')
    save_file({'projection': matrix}, tmp_path / 'a.projection.safetensors')
    with pytest.raises(WeightsError, match=r'a\.projection'):
        SuperPoint.from_pretrained(tmp_path / 'a.safetensors')


def test_features_are_sorted_unit_inside_and_repeatable(network, texture):
    extractor = make(network, max_keypoints=64)
    first, second = extractor.extract(texture), extractor.extract(texture)
    assert len(first) == 64
    assert first.image_size == (168, 120)
    assert (np.diff(first.keypoint_scores) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(first.descriptors, axis=1), 1, atol=1e-5)
    assert (first.keypoints >= 3.5).all()
    assert (first.keypoints <= np.array([168, 120]) - 4.5).all()
    assert (first.scales == 1).all()
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    np.testing.assert_array_equal(first.descriptors, second.descriptors)


def test_size_that_is_no_multiple_of_eight_keeps_coordinates(network, texture):
    """Padding is on the right and below: far from it everything stays as it is."""
    extractor = make(network)
    whole = extractor.extract(texture)
    cut = extractor.extract(texture[:115, :163])
    far = (whole.keypoints < 60).all(axis=1)
    assert far.sum() > 10
    for point, descriptor in zip(whole.keypoints[far], whole.descriptors[far], strict=True):
        gaps = np.abs(cut.keypoints - point).max(axis=1)
        assert gaps.min() < 1e-3
        assert float(cut.descriptors[gaps.argmin()] @ descriptor) > 0.9999


def test_tiny_images_give_few_or_no_features(network):
    assert len(make(network).extract(np.full((5, 7), 90, np.uint8))) == 0
    assert len(make(network).extract(np.zeros((1, 1), np.uint8))) == 0


def test_mask_is_respected_at_full_resolution(network):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (300, 400), dtype=np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    mask[40:200, 100:333] = 255
    config = FeatureConfig(name='superpoint', max_size=256)
    found = SuperPoint(network, config, weights_hash='test').extract(image, mask)
    assert len(found) > 20
    pixels = np.rint(found.keypoints).astype(int)
    assert (mask[pixels[:, 1], pixels[:, 0]] > 0).all()
    with pytest.raises(UnsupportedImageError, match='mask'):
        make(network).extract(image, mask[:10])


def test_resized_images_give_coordinates_of_the_original(network):
    """Doubling every pixel and computing at half size is the original image."""
    rng = np.random.default_rng(4)
    small = rng.integers(0, 256, (96, 128), dtype=np.uint8)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(resize_to_fit(large, 128), small)
    plain = make(network).extract(small)
    config = FeatureConfig(name='superpoint', max_size=128)
    scaled = SuperPoint(network, config, weights_hash='test').extract(large)
    # The centre of pixel i becomes the middle of pixels 2i and 2i + 1.
    np.testing.assert_allclose(scaled.keypoints, plain.keypoints * 2 + 0.5, atol=1e-3)
    assert scaled.image_size == (256, 192)


def test_small_images_are_enlarged(network):
    """What is found at twice the size lies where it was in the small image."""
    rng = np.random.default_rng(6)
    noise = rng.integers(0, 256, (96, 128), dtype=np.uint8)
    small = np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.uint8)
    enlarged = resize_to_fit(small, 1024, 640)
    assert enlarged.shape == (192, 256)
    assert resize_to_fit(small, 1024, 160).shape == (120, 160)
    assert resize_to_fit(small, 150, 640).shape == (112, 150)
    assert resize_to_fit(small, 1024, 0) is small
    config = FeatureConfig(name='superpoint', max_keypoints=2048)
    found = SuperPoint(network, config, weights_hash='test').extract(small)
    expected = make(network).extract(enlarged)
    assert found.image_size == (128, 96)
    np.testing.assert_allclose(found.keypoints, (expected.keypoints + 0.5) / 2 - 0.5, atol=1e-4)
    np.testing.assert_array_equal(found.descriptors, expected.descriptors)


def test_colour_is_read_as_grey(network, texture):
    grey = make(network).extract(texture)
    colour = make(network).extract(np.repeat(texture[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(grey.keypoints, colour.keypoints)


def test_bad_images_are_refused(network):
    with pytest.raises(UnsupportedImageError):
        make(network).extract(np.zeros((10, 10), np.float32))


def test_unknown_device_is_an_error(network):
    with pytest.raises(DeviceError):
        make(network, device='toaster')
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match='cuda'):
            make(network, device='cuda')


def test_files_of_both_published_layouts_load(tmp_path, network, texture):
    expected = make(network).extract(texture)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(state, tmp_path / 'a.pth')
    config = FeatureConfig(name='superpoint', min_size=0)
    for name in ('a.safetensors', 'a.pth'):
        loaded = SuperPoint.from_pretrained(tmp_path / name, config=config)
        np.testing.assert_array_equal(loaded.extract(texture).keypoints, expected.keypoints)
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert loaded.weights_hash == digest


def test_layout_with_norms_after_activation(tmp_path):
    """The layout of superpoint_v6_from_tf.pth, against a network built of torch's own layers."""
    torch.manual_seed(1)
    norms = torch.nn.BatchNorm2d

    def block(inputs, outputs, kernel, relu=True):
        conv = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        norm = norms(outputs, eps=1e-3).eval()
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        return torch.nn.ModuleDict({'conv': conv, 'bn': norm}), relu

    def run(layer, x):
        modules, relu = layer
        x = modules['conv'](x)
        return modules['bn'](torch.relu(x) if relu else x)

    sizes = [(1, 64), (64, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    backbone = [block(*size, 3) for size in sizes]
    detector = [block(128, 256, 3), block(256, 65, 1, relu=False)]
    descriptor = [block(128, 256, 3), block(256, 256, 1, relu=False)]
    state = {}
    for index, (modules, _) in enumerate(backbone):
        for name, value in modules.state_dict().items():
            state[f'backbone.{index // 2}.{index % 2}.{name}'] = value
    for head, layers in (('detector', detector), ('descriptor', descriptor)):
        for index, (modules, _) in enumerate(layers):
            for name, value in modules.state_dict().items():
                state[f'{head}.{index}.{name}'] = value
    torch.save(state, tmp_path / 'v6.pth')
    network, _ = load_network(tmp_path / 'v6.pth')
    image = torch.rand(1, 1, 48, 64)
    x = image
    for index, layer in enumerate(backbone):
        x = run(layer, x)
        if index in (1, 3, 5):
            x = torch.nn.functional.max_pool2d(x, 2)
    with torch.no_grad():
        logits, descriptors = network.eval()(image)
        torch.testing.assert_close(logits, run(detector[1], run(detector[0], x)))
        torch.testing.assert_close(descriptors, run(descriptor[1], run(descriptor[0], x)))


def test_wrong_files_are_refused(tmp_path, network):
    with pytest.raises(WeightsError, match='cannot read'):
        SuperPoint.from_pretrained(tmp_path / 'missing.pth')
    (tmp_path / 'junk.pth').write_bytes(b'not a weight file')
    (tmp_path / 'junk.safetensors').write_bytes(b'not a weight file')
    for name in ('junk.pth', 'junk.safetensors'):
        with pytest.raises(WeightsError, match='readable'):
            SuperPoint.from_pretrained(tmp_path / name)
    state = network.state_dict()
    cases = {
        'lacks conv2b.bias': {k: v for k, v in state.items() if k != 'conv2b.bias'},
        'unknown extra': {**state, 'extra': torch.zeros(1)},
        'convDb.bias is': {**state, 'convDb.bias': torch.zeros(128)},
        'not finite': {**state, 'conv1a.bias': torch.full((64,), float('nan'))},
    }
    for message, wrong in cases.items():
        torch.save(wrong, tmp_path / 'wrong.pth')
        with pytest.raises(WeightsError, match=message):
            SuperPoint.from_pretrained(tmp_path / 'wrong.pth')


def test_pickled_code_is_not_run(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / 'sprung'), 'w'))

    (tmp_path / 'trap.pth').write_bytes(pickle.dumps({'conv1a.weight': Trap()}))
    with pytest.raises(WeightsError):
        SuperPoint.from_pretrained(tmp_path / 'trap.pth')
    assert not (tmp_path / 'sprung').exists()


def test_packaged_weights_are_the_default_and_match_in_the_dark():
    """The right matches between a photograph and its warp at night are known, and most must be."""
    data = pytest.importorskip('skimage.data')
    from d2s_ros.features.evaluation import measure_warped_pair
    from d2s_ros.features.extractor import create_extractor
    from d2s_ros.features.warped_pairs import CONDITIONS, make_warped_pair

    assert default_weights_path() is not None
    extractor = create_extractor(
        FeatureConfig(name='superpoint', max_keypoints=400, max_size=0, min_size=0)
    )
    photograph = np.ascontiguousarray(data.camera()[::2, ::2])
    assert extractor.dim == 128
    plain = extractor.extract(photograph)
    assert len(plain) > 200
    for condition in CONDITIONS:
        if condition.name in ('exposure', 'night'):
            pair = make_warped_pair(photograph, condition, 1)
            found = extractor.extract(pair.second)
            figures = measure_warped_pair(plain, found, pair.second_from_first)
            assert figures['mma'] > 0.6
            assert figures['homography_5'] == 1.0
