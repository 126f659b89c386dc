"""A map of pictures alone: how many left-out pictures it localizes, and how well it finds the lens.

    python benchmarks/own_room.py [DATA] [--work DIR] [--scene walk_loop]

Every fifth picture of a walk is left out. A map is built of the others without poses and without
calibration, as `d2s build-map FOLDER` does, and asked about those left out; and another map of the
same pictures as a video, of which the build takes frames by itself. Their focal lengths are
compared with what a reconstruction of all pictures finds. What is in the folder is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from records import ROOT, write_record

from d2s_ros.data.frames import FrameSource
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


def write_video(path: Path, folder: Path, names: list[str]) -> None:
    """Write pictures as a video, ten a second; H.264, nearly without loss."""
    import av

    images = [np.asarray(cv2.imread(str(folder / name)), np.uint8) for name in names]
    # H.264 halves colours: its pictures have even sides.
    height, width = (side // 2 * 2 for side in images[0].shape[:2])
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.options = {'crf': '12', 'preset': 'ultrafast'}
        stream.thread_count = 1
        for image in images:
            frame = av.VideoFrame.from_ndarray(image[:height, :width], format='bgr24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def figures_of(place: Path, source: FrameSource, folder: Path, to_ask: Path) -> dict[str, Any]:
    """Build a map unless it is there, and return what became of the pictures left out."""
    taken = time.time()
    if not place.exists():
        build_map(source, place, budget('standard'), device='cpu', progress=False)
    scene_map = SceneMap.open(place)
    camera = scene_map.manifest.cameras[0]
    localizer = Localizer.from_map(scene_map, device='cpu')
    asked = list(open_source(folder, image_list=to_ask, want_poses=False, fallback=camera))
    results = [localizer.localize(frame.image, frame.camera) for frame in asked]
    found = {
        'images': scene_map.manifest.metrics['num_images'],
        'asked': len(asked),
        'localized': sum(result.localized for result in results),
        'focal_px': round(camera.fx, 2),
    }
    print(place, found, f'{time.time() - taken:.0f} s', flush=True)
    return found


def focal_of_all(folder: Path, cache: Path) -> dict[str, Any]:
    """Return the focal length that all pictures together find."""
    if not cache.exists():
        config = budget('standard')
        extractor = create_extractor(config.features, device='cpu')
        images, _ = collect_images(open_source(folder, for_mapping=True), extractor, config)
        of_all = reconstruct(images, config.reconstruction, calibrated=False).images
        focal = round(of_all[0].camera.fx, 2)
        cache.write_text(json.dumps({'focal_of_all_px': focal, 'images_of_all': len(of_all)}))
    return dict(json.loads(cache.read_text()))


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
    video = args.work / 'room.mp4'
    if not video.exists():
        write_video(video, folder, to_map.read_text().split())
    of_video = open_source(video, for_mapping=True)
    of_folder = open_source(folder, image_list=to_map, for_mapping=True)
    ways = {
        'a video': figures_of(args.work / 'map_of_video', of_video, folder, to_ask),
        'a folder': figures_of(args.work / 'map', of_folder, folder, to_ask),
    }
    of_all = focal_of_all(folder, args.work / 'of_all.json')
    focal = of_all['focal_of_all_px']
    table = [
        '| pictures as | mapped | left out | localized | focal length found | of all pictures '
        '| apart |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, found in ways.items():
        found['focal_difference'] = round(abs(found['focal_px'] / focal - 1), 5)
        table.append(
            f'| {name} | {found["images"]} | {found["asked"]} | '
            f'{found["localized"]} ({found["localized"] / found["asked"]:.0%}) | '
            f'{found["focal_px"]:.1f} px | {focal:.1f} px | {found["focal_difference"]:.1%} |'
        )
    path = write_record('own_room', {**ways, **of_all}, started, tables={'walk': table})
    print('\n'.join(table))
    print(path)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
