"""Logs that cannot be read: left out, remembered as bad, and no trouble to the others."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3

import pytest
from data import bag_writing as bags

from d2s_ros.cli.main import main
from d2s_ros.data.sources import LogOptions
from d2s_ros.errors import InputError
from d2s_ros.map_update.config import KeyframeConfig, UpdateConfig
from d2s_ros.map_update.ledger import UNREADABLE, UpdateLedger
from d2s_ros.map_update.log_folder import find_logs
from d2s_ros.map_update.pipeline import update_map

CONFIG = UpdateConfig(keyframes=KeyframeConfig(min_keypoints=100), min_free_megabytes=1)


@pytest.fixture
def bad_logs(tmp_path):
    """A FIFO, random bytes, a database whose times are texts, and a log that is gone."""
    os.mkfifo(tmp_path / 'fifo.mcap')
    (tmp_path / 'noise.mcap').write_bytes(os.urandom(1000))
    texts = bags.write_bag(tmp_path / 'texts', bags.camera_log(3))
    with sqlite3.connect(bags.storage_file(texts)) as connection:
        connection.execute("UPDATE messages SET timestamp = 'abc'")
    return [tmp_path / 'fifo.mcap', tmp_path / 'noise.mcap', texts, tmp_path / 'gone.mcap']


def test_bad_logs_are_left_out_and_remembered(logs, map_path, bad_logs):
    result = update_map(map_path, [*bad_logs, logs / 'other'], CONFIG, device='cpu')
    assert result.verdict == 'nothing_usable'
    reasons = {record.log: record.reason for record in result.records if not record.name}
    assert set(reasons) == {'fifo.mcap', 'noise.mcap', 'texts', 'gone.mcap'}
    assert all(reasons.values())
    ledger = UpdateLedger(map_path)
    verdicts = {os.path.basename(entry['path']): entry['verdict'] for entry in ledger.entries()}
    assert verdicts == {
        'fifo.mcap': UNREADABLE,
        'noise.mcap': UNREADABLE,
        'texts': UNREADABLE,
        'other': 'nothing_usable',
    }
    # What is gone may come back; with another topic a log may be readable.
    assert ledger.unused([*bad_logs, logs / 'other']) == [bad_logs[3]]
    assert ledger.unused(bad_logs, LogOptions(image_topic='/left')) == bad_logs


def test_bad_logs_alone_end_the_update_but_not_the_next(map_path, bad_logs):
    with pytest.raises(InputError, match='no log can be read') as error:
        update_map(map_path, bad_logs[:2], CONFIG, device='cpu')
    assert 'noise.mcap' in str(error.value)
    assert UpdateLedger(map_path).unused(bad_logs[:2]) == []
    assert [entry['verdict'] for entry in UpdateLedger(map_path).entries()] == [UNREADABLE] * 2


def test_a_dry_run_remembers_nothing(map_path, bad_logs):
    with pytest.raises(InputError):
        update_map(map_path, bad_logs[:2], CONFIG, dry_run=True, device='cpu')
    assert UpdateLedger(map_path).entries() == []


@pytest.mark.parametrize(
    'entry',
    ['[1, "x", null]', '{}', 'x', '[{"path": ["/"], "bytes": {}}]', '\ud800', '[' * 100_000],
)
def test_a_ledger_with_odd_contents_counts_as_empty(tmp_path, entry):
    ledger = UpdateLedger(tmp_path)
    ledger.folder.mkdir()
    (ledger.folder / 'ledger.json').write_bytes(entry.encode('utf-8', 'surrogatepass'))
    log = tmp_path / 'a.mcap'
    log.write_bytes(b'x')
    assert ledger.unused([log]) == [log]


def test_options_of_the_camera_hold_for_all_logs(logs, map_path, tmp_path, capsys):
    """Two cameras in the log, and no camera_info: as localize, the update must be told."""
    log = bags.write_bag(
        tmp_path / 'log',
        [
            (topic, 'image', stamp, bags.image_message(stamp, bags.picture(index)))
            for index, stamp in enumerate(range(bags.START_NS, bags.START_NS + 3 * 10**8, 10**8))
            for topic in ('/left', '/right')
        ],
    )
    calibration = tmp_path / 'calibration.json'
    calibration.write_text(json.dumps(bags.CAMERA.to_dict()))
    command = ['update-map', str(map_path), str(log), '--quiet', '--dry-run', '--device', 'cpu']
    assert main(command) == 3
    assert '--image-topic' in capsys.readouterr().err
    told = [*command, '--image-topic', '/left', '--calibration', str(calibration)]
    # Such small pictures have too few keypoints, but they were read.
    assert main(told) == 4
    output = capsys.readouterr().out
    assert 'keypoints' in output
    assert 'no_calibration' not in output
    assert main([*command, '--image-topic', '/left', '--camera-info-topic', '/none']) == 3


def test_what_lies_in_a_folder_of_logs(tmp_path, caplog):
    good = bags.write_bag(tmp_path / 'good', bags.camera_log(2))
    packed = bags.write_bag(tmp_path / 'packed', bags.camera_log(2), compression='file')
    (packed / 'metadata.yaml').unlink()
    shutil.copy(bags.storage_file(packed), tmp_path / 'single.db3.zstd')
    (tmp_path / 'nowhere.mcap').symlink_to('/nowhere')
    (tmp_path / 'loop.mcap').symlink_to(tmp_path / 'loop.mcap')
    (tmp_path / 'up').symlink_to(tmp_path)
    os.mkfifo(tmp_path / 'fifo.mcap')
    (tmp_path / 'device.mcap').symlink_to('/dev/zero')
    (tmp_path / 'notes.txt').write_text('text')
    (tmp_path / 'a folder').mkdir()
    (tmp_path / '.hidden').mkdir()
    shutil.copy(bags.storage_file(good), tmp_path / '.hidden' / 'a.db3')
    found = {path.name for path in find_logs(tmp_path)}
    assert (
        {'good', 'packed', 'single.db3.zstd'}
        <= found
        <= {'good', 'packed', 'single.db3.zstd', 'up'}
    )
    for name in ('nowhere.mcap', 'loop.mcap', 'fifo.mcap', 'device.mcap'):
        assert name in caplog.text
    assert find_logs(tmp_path / 'nothing') == []
    UpdateLedger(tmp_path / 'map').unused(find_logs(tmp_path))
