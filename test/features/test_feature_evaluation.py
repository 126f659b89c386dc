"""The measures that features are compared by, on features whose quality is known."""

import argparse
import json

import cv2
import numpy as np
import pytest

from d2s_ros.cli import features as command
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features import evaluation, posed_pairs, warped_pairs
from d2s_ros.features.evaluation_report import draw_matches, markdown
from d2s_ros.features.rootsift import RootSift
from d2s_ros.features.types import FeatureConfig, FeatureExtractor, LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, rotation_from_vector


def features(points, descriptors, size=(200, 150)):
    n = len(points)
    return LocalFeatures(
        np.asarray(points, np.float32),
        np.linspace(1, 0.1, n).astype(np.float32),
        np.asarray(descriptors, np.float32),
        size,
        np.ones(n, np.float32),
    )


def textured(rng, height=150, width=200):
    coarse = rng.integers(0, 256, (height // 5, width // 5), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def perfect(rng):
    homography = warped_pairs.sample_homography(rng, 200, 150, 0.4)
    points = rng.uniform([0, 0], [199, 149], (60, 2))
    others = warped_pairs.warp_points(homography, points)
    inside = ((others >= 0) & (others <= [199, 149])).all(axis=1)
    descriptors = np.eye(60)[inside]
    return points[inside], others[inside], descriptors, homography


def test_perfect_features_measure_perfect(perfect):
    points, others, descriptors, homography = perfect
    figures = evaluation.measure_warped_pair(
        features(points, descriptors), features(others, descriptors), homography
    )
    assert figures['repeatability'] == 1.0
    assert figures['localization_error'] < 1e-3
    assert figures['mma'] == 1.0
    assert figures['matching_score'] == 1.0
    assert figures['matches'] == len(points)
    assert figures['homography_1'] == 1.0


def test_each_flaw_shows_in_its_figure(perfect):
    points, others, descriptors, homography = perfect
    first = features(points, descriptors)
    # Half of the descriptors belong to the neighbour's keypoint: half of the matches are wrong.
    half = len(points) // 2 // 2 * 2
    swapped = descriptors.copy()
    swapped[:half] = swapped[:half].reshape(-1, 2, 60)[:, ::-1].reshape(half, 60)
    figures = evaluation.measure_warped_pair(first, features(others, swapped), homography)
    gaps = np.linalg.norm(others[:half:2] - others[1:half:2], axis=1)
    wrong = 2 * int((gaps > 3).sum())
    assert figures['mma'] == pytest.approx(1 - wrong / len(points))
    assert figures['repeatability'] == 1.0
    # Off by two pixels: found, but not exactly.
    moved = features(np.clip(np.add(others, (2, 0)), 0, [199, 149]), descriptors)
    figures = evaluation.measure_warped_pair(first, moved, homography)
    assert 1.0 < figures['localization_error'] < 2.1
    assert figures['mma'] > 0.95
    # The homography follows the shift: wrong by two pixels at the corners.
    assert figures['homography_1'] == 0.0
    assert figures['homography_3'] == 1.0


def test_no_features_measure_zero():
    empty = features(np.zeros((0, 2)), np.zeros((0, 8)))
    figures = evaluation.measure_warped_pair(empty, empty, np.eye(3))
    assert figures['mma'] == figures['repeatability'] == figures['homography_5'] == 0.0
    assert np.isnan(figures['localization_error'])


def test_points_behind_the_camera_are_nowhere():
    homography = np.array([[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]])
    mapped = warped_pairs.warp_points(homography, np.array([[50.0, 0.0], [150.0, 0.0]]))
    np.testing.assert_allclose(mapped[0], [100, 0])
    assert np.isnan(mapped[1]).all()


def test_warped_pairs_are_seeded_and_follow_their_homography(rng):
    photograph = np.asarray(cv2.GaussianBlur(textured(rng), (0, 0), 2), np.uint8)
    condition = warped_pairs.CONDITIONS[0]
    pair = warped_pairs.make_warped_pair(photograph, condition, 5)
    again = warped_pairs.make_warped_pair(photograph, condition, 5)
    np.testing.assert_array_equal(pair.second, again.second)
    points = rng.uniform([20, 20], [180, 130], (200, 2))
    mapped = warped_pairs.warp_points(pair.second_from_first, points)
    inside = ((mapped >= 2) & (mapped <= [197, 147])).all(axis=1)

    def read(image, at):
        grid = at[:, None].astype(np.float32)
        return cv2.remap(image, grid, None, cv2.INTER_LINEAR)[:, 0].astype(float)

    difference = read(photograph, points[inside]) - read(pair.second, mapped[inside])
    assert np.abs(difference).mean() < 3


def test_night_is_dark_and_exposure_is_not_one():
    rng = np.random.default_rng(0)
    image = np.full((50, 50), 150, np.uint8)
    assert all(warped_pairs.darken(image, rng).mean() < 45 for _ in range(10))
    assert all(abs(warped_pairs.adjust_exposure(image, rng).mean() - 150) > 60 for _ in range(10))
    noise = warped_pairs.add_noise(image, rng).astype(float)
    assert 9 < noise.std() < 26


def test_every_method_gets_the_same_number_of_keypoints(rng):
    photograph = textured(rng)
    extractors: dict[str, FeatureExtractor] = {
        'rootsift': RootSift(FeatureConfig()),
        'orb': evaluation.Orb(FeatureConfig()),
    }
    result = evaluation.evaluate_warps(
        [photograph], extractors, keypoints=100, conditions=warped_pairs.CONDITIONS[:2]
    )
    assert set(result) == {'rootsift', 'orb'}
    assert set(result['orb']) == {'viewpoint', 'blur'}
    assert result['rootsift']['viewpoint']['matches'] <= 100
    assert result['rootsift']['viewpoint']['mma'] > 0.5
    table = markdown({'warps': result})
    assert '| viewpoint | rootsift |' in table
    assert len({line.count('|') for line in table.splitlines() if line.startswith('|')}) == 1


def test_orb_ranks_as_hamming_distance_does(rng):
    found = evaluation.Orb(FeatureConfig(max_keypoints=100)).extract(textured(rng))
    assert len(found) > 20
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    bits = found.descriptors > 0
    hamming = (bits[:1] != bits[1:]).sum(axis=1)
    np.testing.assert_allclose(found.descriptors[:1] @ found.descriptors[1:].T,
                               1 - hamming[None] / 128, atol=1e-5)  # fmt: skip
    assert len(evaluation.Orb(FeatureConfig()).extract(np.zeros((64, 64), np.uint8))) == 0


def posed(name, rotation_vector, translation, image):
    camera = Camera('pinhole', 200, 150, 180.0, 180.0, 99.5, 74.5)
    pose = RigidTransform(
        rotation_from_vector(np.array(rotation_vector)), np.array(translation, float)
    )
    return posed_pairs.PosedImage(name, image, pose, camera)


def test_epipolar_distance_is_the_distance_in_pixels(rng):
    blank = np.zeros((150, 200), np.uint8)
    first = posed('a', [0.0, 0, 0], [0, 0, 0], blank)
    second = posed('b', [0, 0.1, 0.02], [-1.0, 0.1, 0.2], blank)
    points = rng.uniform([-1, -1, 4], [1, 1, 8], (50, 3))
    pixels = [
        image.camera.project(image.camera_from_world.apply(points)) for image in (first, second)
    ]
    exact = posed_pairs.epipolar_distances(first, second, *pixels)
    assert exact.max() < 1e-9
    # Camera b is beside camera a: its epipolar lines are nearly level, five pixels down is off.
    off = posed_pairs.epipolar_distances(first, second, pixels[0], pixels[1] + [0, 5])
    assert (off > 3).all()
    assert (off < 5.1).all()


def test_pairs_look_the_same_way():
    blank = np.zeros((150, 200), np.uint8)
    images = [posed(str(i), [0, 0.3 * i, 0], [0, 0, 0], blank) for i in range(8)]
    pairs = posed_pairs.choose_pairs(images, count=100, max_angle=40)
    assert set(pairs) == {(i, j) for i in range(8) for j in range(i + 1, min(8, i + 3))}
    assert len(posed_pairs.choose_pairs(images, count=4)) == 4


def write_posed(folder, rng):
    (folder / 'images').mkdir(parents=True)
    cv2.imwrite(str(folder / 'images' / 'a.png'), textured(rng))
    cv2.imwrite(str(folder / 'images' / 'b.png'), textured(rng))
    (folder / 'cameras.txt').write_text('# cameras\n1 PINHOLE 200 150 180 180 100 75\n')
    (folder / 'images.txt').write_text(
        '# images\n2 1 0 0 0 -1 0 0 1 b.png\n\n1 1 0 0 0 0 0 0 1 a.png\n\n'
    )


def test_posed_images_are_read(tmp_path, rng):
    write_posed(tmp_path / 'set', rng)
    images = posed_pairs.load_posed_images(tmp_path / 'set')
    assert [image.name for image in images] == ['a.png', 'b.png']
    np.testing.assert_allclose(images[1].camera_from_world.translation, [-1, 0, 0])
    assert images[0].camera.cx == 99.5
    with pytest.raises(InputError, match='COLMAP'):
        posed_pairs.load_posed_images(tmp_path)
    (tmp_path / 'set' / 'images' / 'b.png').unlink()
    with pytest.raises(InputError, match=r'b\.png'):
        posed_pairs.load_posed_images(tmp_path / 'set')


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(['evaluate', *map(str, arguments)])


def test_command_writes_table_and_picture(tmp_path, rng, capsys):
    pytest.importorskip('skimage')
    photographs = tmp_path / 'photographs'
    photographs.mkdir()
    held_out = [f'p{i}.png' for i in range(60) if warped_pairs.is_held_out(f'p{i}.png')][:1]
    for name in [*held_out, 'p0.png']:
        cv2.imwrite(str(photographs / name), textured(rng))
    write_posed(tmp_path / 'set', rng)
    out = tmp_path / 'out'
    args = parse('--photographs', photographs, '--posed', tmp_path / 'set', '--out', out,
                 '--keypoints', 64, '--limit', 1, '--pairs', 1, '--device', 'cpu')  # fmt: skip
    assert command.run(args) == 0
    document = json.loads((out / 'features.json').read_text())
    assert document['settings']['photographs'] == 1
    assert document['results']['warps']['RootSIFT']['night']['repeatability'] > 0
    assert 'verified' in document['results']['set']['ORB']['as taken']
    assert (out / 'features.md').read_text().strip() in capsys.readouterr().out
    picture = cv2.imread(str(out / 'features_matches.png'))
    assert picture.shape[0] > 400


def test_command_needs_something_to_do(tmp_path):
    with pytest.raises(UsageError, match='nothing'):
        command.run(parse())
    with pytest.raises(InputError, match='no held-out'):
        command.run(parse('--photographs', tmp_path, '--device', 'cpu'))


def test_picture_has_a_row_per_pair_and_a_column_per_method(rng):
    methods = {'a': RootSift(FeatureConfig()), 'b': RootSift(FeatureConfig())}
    picture = draw_matches([textured(rng), textured(rng)], methods, width=100)
    assert picture.shape == (150, 400, 3)
