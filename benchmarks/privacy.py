"""What maps give away: the inversion attack of `d2s privacy` on places, and its record.

    python benchmarks/privacy.py --work WORK --data SCENES --places fox b11
    python benchmarks/privacy.py --table        prints the table of docs/research/privacy.md

SCENES has folders of photographs with known poses; the attacker's are those of OWN. Of each place
there is a map of each of HEADS; logs of simulated buildings and maps are made in WORK if they are
not there. `--picture FILE` keeps the pictures of simulated buildings: real photographs, and what is
made of them, are not for keeping. Run again after an interruption: what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from places import Places, is_building
from records import RESULTS, read_record, write_record

from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import FrameSource
from d2s_ros.data.sources import open_source
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.privacy.config import AttackConfig
from d2s_ros.privacy.pipeline import attack
from d2s_ros.simulation.config import SimulationConfig
from d2s_ros.simulation.simulate import simulate_log

#: Scenes that the attacker has photographed.
OWN = ('castle-P30', 'fountain-P11', 'lund_door', 'redkitchen')
#: Kinds of maps.
HEADS = ('landmark', 'labels')
#: Kinds of content that are attacked.
KINDS = {'landmark': ('depth', 'keys', 'update', 'raw'), 'labels': ('depth', 'labels', 'dense')}
#: Small enough for a busy core: a network of 0.24 M numbers, half a minute for a kind of content.
CONFIG = AttackConfig(size=128, width=16, steps=150, photographs=6, own_photographs=12)
BUILDING = SimulationConfig(frames=40, trajectory='lawnmower', width=480, height=360)


def photographs(places: Places, place: str) -> FrameSource:
    """Return the images that the maps of a place are made from."""
    if not is_building(place):
        assert places.data is not None
        names = json.loads((places.data / place / 'split.json').read_text())['map']
        return ColmapSource(places.data / place, names)
    folder = places.logs / place / 'privacy'
    if not (folder / 'groundtruth_tum.txt').exists():
        simulate_log(replace(BUILDING, seed=int(place[1:])), folder, progress=True)
    return open_source(folder)


def attack_place(places: Places, place: str, head: str, config: AttackConfig) -> Path:
    """Attack the map of a place, made if it is not there; return the folder of the report."""
    output = places.work / 'privacy' / f'{place}_{head}'
    if (output / 'report.json').exists():
        return output
    source = photographs(places, place)
    path = places.work / 'maps' / f'{place}_{head}'
    if not (path / 'current').exists():
        build_map(source, path, budget('standard', head=head), progress=True)
    assert places.data is not None
    own = [open_source(places.data / name) for name in OWN if name != place]
    attack(
        [path],
        source,
        own,
        output,
        config,
        inputs=[place, *OWN],
        wanted=KINDS[head],
        progress=True,
    )
    return output


def table(figures: dict[str, Any]) -> list[str]:
    """Return the lines of a table of all places."""
    lines = [
        '| place | content | PSNR [dB] | over depth alone | SSIM | MAE | feature distance '
        '| gradient correlation |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for place, heads in figures.items():
        for head, report in heads.items():
            floor = report['kinds']['depth']['psnr_db']
            rows = {'nothing (even grey)': report['blank'], **report['kinds']}
            for name, row in rows.items():
                lines.append(
                    f'| {place}, {head} | {name} | {row["psnr_db"]:.2f} '
                    f'| {row["psnr_db"] - floor:+.2f} | {row["ssim"]:.3f} | {row["mae"]:.3f} '
                    f'| {row["feature_distance"]:.3f} | {row["gradient_correlation"]:.2f} |'
                )
    return lines


def main() -> None:
    """Attack the places and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work', type=Path, required=True, help='maps, logs and reports')
    parser.add_argument('--data', type=Path, required=True, help='scenes of photographs')
    parser.add_argument('--places', nargs='+', default=['fox', 'b11'])
    parser.add_argument('--heads', nargs='+', default=list(HEADS))
    parser.add_argument('--picture', type=Path, help='folder for pictures of simulated buildings')
    arguments = parser.parse_args()
    started = time.time()
    places = Places(arguments.work, None, arguments.data)
    # A call adds to what others have measured.
    record = RESULTS / 'privacy.json'
    figures: dict[str, Any] = read_record(record)['figures'] if record.exists() else {}
    for place in arguments.places:
        figures.setdefault(place, {})
        for head in arguments.heads:
            output = attack_place(places, place, head, CONFIG)
            report = json.loads((output / 'report.json').read_text())
            report.pop('photographs')
            figures[place][head] = report
            print(place, head, (output / 'table.md').read_text(), sep='\n', flush=True)
            if arguments.picture and is_building(place):
                picture = arguments.picture / f'privacy_{head}.png'
                picture.write_bytes((output / 'pictures.png').read_bytes())
    write_record(
        'privacy',
        figures,
        started,
        tables={'places': table(figures)},
        measures=('d2s_ros/privacy', 'd2s_ros/scene_models'),
    )


if __name__ == '__main__':
    main()
