"""A map of pictures alone: how many left-out pictures it localizes, and how well it finds the lens.

    python benchmarks/own_room.py [DATA] [--work DIR] [--scene walk_loop]

Every fifth picture of a walk is left out. The map is built of the others without poses and without
calibration, as `d2s build-map FOLDER` does, and asked about those left out. Its focal length is
compared with what a reconstruction of all pictures finds. What is in the folder is used again.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from records import ROOT, write_record

from d2s_ros.data.sources import open_source
from d2s_ros.features.extractor import create_extractor
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_building.config import budget
from d2s_ros.map_building.images import collect_images
from d2s_ros.map_building.pipeline import build_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.threads import set_passive_omp_wait

#: Of so many pictures one is left out: the third.
EVERY, LEFT_OUT = 5, 2


def split(folder: Path, work: Path) -> tuple[Path, Path]:
    """Write the lists of pictures to map and to ask about."""
    names = sorted(file.name for file in folder.iterdir())
    parts = {
        'map.txt': [name for i, name in enumerate(names) if i % EVERY != LEFT_OUT],
        'asked.txt': names[LEFT_OUT::EVERY],
    }
    for name, part in parts.items():
        (work / name).write_text('\n'.join(part) + '\n')
    return work / 'map.txt', work / 'asked.txt'


def main() -> int:
    """Measure and write the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get('D2S_SHARED_DATA', ROOT.parent / 'shared' / 'data')
    parser.add_argument('data', nargs='?', type=Path, default=Path(default))
    parser.add_argument('--work', type=Path, default=Path('own_room'))
    parser.add_argument('--scene', default='walk_loop')
    args = parser.parse_args()
    started = time.time()
    set_passive_omp_wait()
    folder = args.data / args.scene / 'images'
    args.work.mkdir(parents=True, exist_ok=True)
    to_map, to_ask = split(folder, args.work)
    config = budget('standard')
    place = args.work / 'map'
    if not place.exists():
        source = open_source(folder, image_list=to_map, for_mapping=True)
        build_map(source, place, config, device='cpu', progress=False)
    scene_map = SceneMap.open(place)
    camera = scene_map.manifest.cameras[0]
    localizer = Localizer.from_map(scene_map, device='cpu')
    asked = list(open_source(folder, image_list=to_ask, want_poses=False, fallback=camera))
    results = [localizer.localize(frame.image, frame.camera) for frame in asked]
    localized = sum(result.localized for result in results)
    everything = open_source(folder, for_mapping=True)
    images, _ = collect_images(everything, create_extractor(config.features, device='cpu'), config)
    of_all = reconstruct(images, config.reconstruction, calibrated=False).images
    focal, focal_of_all = camera.fx, of_all[0].camera.fx
    figures = {
        'images': scene_map.manifest.metrics['num_images'],
        'asked': len(asked),
        'localized': localized,
        'focal_px': round(focal, 2),
        'focal_of_all_px': round(focal_of_all, 2),
        'images_of_all': len(of_all),
        'focal_difference': round(abs(focal / focal_of_all - 1), 5),
    }
    table = [
        '| pictures mapped | left out | localized | focal length found | of all pictures | apart |',
        '|---|---|---|---|---|---|',
        f'| {figures["images"]} | {len(asked)} | {localized} ({localized / len(asked):.0%}) | '
        f'{focal:.1f} px | {focal_of_all:.1f} px | {figures["focal_difference"]:.1%} |',
    ]
    path = write_record('own_room', figures, started, tables={'walk': table})
    print('\n'.join(table))
    print(path)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
