"""An area of two simulated buildings: images name their place, and neighbours share a frame."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from d2s_ros.cli.main import main
from d2s_ros.data.sources import open_source
from d2s_ros.geometry.transforms import RigidTransform, pose_error, rotation_from_vector
from d2s_ros.localization.area_localizer import AreaLocalizer
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.opening import open_localizer
from d2s_ros.localization.pose_prior import PosePrior
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.maps.area import Place, locked, read_area, verify_area, write_area
from d2s_ros.maps.files import PLACES_FOLDER

#: Where the annex stands in the frame of the area, in tests that know it.
AREA_FROM_ANNEX = RigidTransform(rotation_from_vector([0.0, 0.0, 1.2]), np.array([30.0, -4.0, 3.5]))


@pytest.fixture(scope='module')
def hall(building_logs):
    return list(open_source(building_logs / 'map'))[:6]


@pytest.fixture(scope='module')
def localizer(small_area):
    return open_localizer(small_area, device='cpu')


@pytest.fixture(scope='module')
def one_frame(small_area, tmp_path_factory):
    """The area with a known transform of each place."""
    root = tmp_path_factory.mktemp('areas') / 'one_frame'
    shutil.copytree(small_area, root)
    known = {'hall': RigidTransform.identity(), 'annex': AREA_FROM_ANNEX}
    with locked(root):
        area = read_area(root)
        places = [replace(area.places[name], area_from_place=known[name]) for name in area.places]
        write_area(root, frame='site', places=places, index=area.read_index())
    return root


def test_images_are_localized_in_their_place_as_by_its_own_map(localizer, small_area, hall):
    single = Localizer.from_map(small_area / PLACES_FOLDER / 'hall', device='cpu')
    localized = 0
    for frame in hall:
        alone = single.localize(frame.image, frame.camera)
        result = localizer.localize(frame.image, frame.camera)
        assert result.localized == alone.localized
        assert result.details is None
        if not alone.localized:
            assert result.place == ''
            continue
        localized += 1
        assert (result.place, result.frame) == ('hall', 'map_hall')
        assert (result.map_from_camera.matrix == alone.map_from_camera.matrix).all()
        assert result.checks[:-1] == alone.checks
        assert result.checks[-1].name == 'rival place'
        assert set(result.latency_ms) == {'features', 'network', 'pose', 'total'}
    assert localized >= 4


def test_the_index_names_the_place_first(localizer, hall):
    from d2s_ros.scene_models.base import View

    first = []
    for frame in hall:
        view = View(localizer.extractor.extract(frame.image), frame.camera)
        first.append(localizer.candidates([view])[0])
        assert set(localizer.candidates([view], 'annex')) == {'hall', 'annex'}
        assert localizer.candidates([view], 'annex')[0] == 'annex'
    assert first.count('hall') >= 5


def test_images_of_a_place_that_the_area_lacks_are_refused(small_area, hall, tmp_path):
    root = tmp_path / 'annex_only'
    shutil.copytree(small_area / PLACES_FOLDER / 'annex', root / PLACES_FOLDER / 'annex')
    from d2s_ros.maps.area_index import AreaIndex

    descriptors = [np.eye(128, dtype=np.float32)[:40]]
    with locked(root):
        write_area(root, frame='map', places=[Place('annex')], index=AreaIndex.fit([descriptors]))
    localizer = AreaLocalizer.from_area(root, device='cpu')
    assert not any(localizer.localize(f.image, f.camera).localized for f in hall)


def test_maps_are_dropped_and_opened_again(small_area, localizer, hall):
    tight = AreaLocalizer.from_area(
        small_area, device='cpu', config=LocalizerConfig(max_open_places=1)
    )
    assert len(tight.places) == 1
    opened = tight.places.opened
    for frame in hall[:2]:
        again = tight.localize(frame.image, frame.camera)
        before = localizer.localize(frame.image, frame.camera)
        assert again.status is before.status
        assert again.num_inliers == before.num_inliers
        assert len(tight.places) == 1
    assert tight.places.opened > opened
    assert localizer.places.opened == 2


def test_poses_of_places_with_a_transform_are_in_the_frame_of_the_area(
    one_frame, small_area, localizer, hall
):
    frame = hall[0]
    moved = AreaLocalizer.from_area(one_frame, device='cpu')
    assert moved.area.frames() == ['site']
    # The annex itself, seen by its own images: any image of it will do.
    from d2s_ros.simulation.config import SimulationConfig
    from d2s_ros.simulation.simulate import frames

    config = SimulationConfig(
        seed=4, width=320, height=240, frames=12, rate_hz=1.0, other_place=True
    )
    annex = next(iter(frames(config)))
    for one, place, transform in (
        (frame, 'hall', RigidTransform.identity()),
        (annex, 'annex', AREA_FROM_ANNEX),
    ):
        own = localizer.localize(one.image, one.camera)
        result = moved.localize(one.image, one.camera, details=True)
        assert (own.place, own.frame) == (place, f'map_{place}')
        assert (result.place, result.frame) == (place, 'site')
        expected = transform @ own.map_from_camera
        assert pose_error(result.map_from_camera, expected)[0] < 1e-9
        turn = np.kron(np.eye(2), transform.rotation)
        np.testing.assert_allclose(result.covariance, turn @ own.covariance @ turn.T, atol=1e-12)
        seen = result.details.points_in_map[result.details.inlier]
        pixels = one.camera.project(result.map_from_camera.inverse().apply(seen))
        errors = np.linalg.norm(pixels - result.details.keypoints[result.details.inlier], axis=1)
        assert np.median(errors) == pytest.approx(result.reprojection_error_px, abs=0.05)


def test_a_prior_reaches_the_map_in_its_own_frame(one_frame):
    moved = AreaLocalizer.from_area(one_frame, device='cpu')
    truth = RigidTransform(rotation_from_vector([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]))
    known = PosePrior(AREA_FROM_ANNEX @ truth, 0.1, 1.0, 'annex')
    source = moved._prior_in('annex', known)
    assert pose_error(source().map_from_camera, truth)[0] < 1e-9
    # In one frame, what is known in one place is known in the others.
    assert moved._prior_in('hall', known)().map_from_camera is not None
    assert moved._prior_in('hall', PosePrior(truth, 0.1, 1.0, 'gone')) is None


def test_what_is_known_in_one_frame_says_nothing_of_another(localizer):
    known = PosePrior(RigidTransform.identity(), 0.1, 1.0, 'annex')
    assert localizer._prior_in('hall', known) is None
    assert localizer._prior_in('annex', known)() is known


def test_a_rig_is_localized_in_its_place(localizer, hall):
    frame = hall[0]
    shots = [RigShot('front', frame.image, frame.camera, RigidTransform.identity())]
    result = localizer.localize_rig(shots)
    alone = localizer.localize(frame.image, frame.camera)
    assert result.place == alone.place == 'hall'
    assert pose_error(result.map_from_camera, alone.map_from_camera)[0] < 0.01
    assert [share.name for share in result.cameras] == ['front']


def test_commands_know_areas(small_area, building_logs, tmp_path, capsys):
    report, out = tmp_path / 'report.json', tmp_path / 'out.txt'
    code = main(
        ['localize', str(small_area), str(building_logs / 'map'), '--quiet', '--device', 'cpu',
         '--report', str(report), '--trajectory', str(out)]
    )  # fmt: skip
    assert code == 0
    assert 'in hall: ' in capsys.readouterr().out
    document = json.loads(report.read_text())
    for frame in document['frames']:
        localized = frame['status'] == 'localized'
        assert frame['place'] == ('hall' if localized else None)
        assert frame['frame'] == ('map_hall' if localized else None)
    count = document['summary']['localized']
    assert document['summary']['places'] == {'hall': count}
    lines = (tmp_path / 'out.map_hall.txt').read_text().splitlines()
    assert len([line for line in lines if not line.startswith('#')]) == count
    assert not out.exists()

    assert main(['map', 'info', str(small_area), '--json']) == 0
    described = json.loads(capsys.readouterr().out)
    assert [entry['place'] for entry in described['places']] == ['hall', 'annex']
    assert main(['map', 'info', str(small_area)]) == 0
    assert 'annex' in capsys.readouterr().out
    assert main(['map', 'info', str(small_area), '--place', 'annex']) == 0
    assert 'landmarks' in capsys.readouterr().out
    assert main(['map', 'list', str(small_area)]) == 0
    assert capsys.readouterr().out.count('* 0001') == 2
    assert main(['map', 'verify', str(small_area)]) == 0
    assert '2 places' in capsys.readouterr().out
    assert main(['map', 'rollback', str(small_area)]) == 2
    assert 'hall, annex' in capsys.readouterr().err
    log, output = str(building_logs / 'map'), str(tmp_path / 'evaluation')
    assert main(['evaluate', str(small_area), log, '--output', output]) == 3
    assert 'is an area' in capsys.readouterr().err


def test_a_damaged_place_is_found_when_the_area_is_opened(small_area, tmp_path, capsys):
    root = tmp_path / 'area'
    shutil.copytree(small_area, root)
    file = next((root / PLACES_FOLDER / 'annex' / 'versions' / '0001').glob('local*'))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert any('damaged' in problem for problem in verify_area(root))
    assert main(['localize', str(root), str(root), '--quiet']) == 3
    assert 'damaged' in capsys.readouterr().err
    # The maps of an area are stripped together, and it stays an area.
    shutil.rmtree(root)
    shutil.copytree(small_area, root)
    assert main(['map', 'strip', str(root)]) == 0
    assert 'global descriptor' in capsys.readouterr().out
    assert verify_area(root) == []
    assert not list(root.rglob('update.safetensors'))
