"""What is left of labels for privacy: pictures that the attack makes, poses that maps still find.

    python benchmarks/label_levers.py --work WORK --data SCENES [--place fox]

WORK and SCENES are those of benchmarks/privacy.py, which must have attacked the place before: what
is pulled nothing of is taken from its record. Each lever is pulled on the map as it is: heads are
not trained again. Queries are those of the place's split.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# First: it decides how threads wait, before any is started.
from accuracy import Scene, finite, photographed_scenes
from places import Places
from privacy import CONFIG, OWN, photographs
from records import RESULTS, read_record, write_record
from torch import Tensor

from d2s_ros.data.sources import open_source
from d2s_ros.features.dense import FeaturePyramid, create_dense
from d2s_ros.features.extractor import create_extractor
from d2s_ros.geometry.transforms import pose_error
from d2s_ros.localization.localizer import Localizer
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.privacy.label_contents import LEVERS, Lever
from d2s_ros.privacy.pipeline import attack
from d2s_ros.scene_models.labels.model import LabelModel
from d2s_ros.scene_models.labels.network import LabelNetwork
from d2s_ros.scene_models.labels.table import POOLED_LEVELS


class MergedNetwork(LabelNetwork):
    """Heads whose labels are merged, as `Lever.count` merges them: k with k + count."""

    def __init__(self, network: LabelNetwork, count: int, channels: dict[int, int]) -> None:
        super().__init__(network.config, channels)
        self.load_state_dict(network.state_dict())
        self.config = replace(network.config, num_labels=count)

    def dense(self, pyramid: FeaturePyramid) -> list[Tensor]:
        """Return the sums of the probabilities (h, w, count) of labels that are merged."""
        return [
            value.unflatten(-1, (-1, self.config.num_labels)).sum(dim=-2)
            for value in super().dense(pyramid)
        ]


def pulled(model: LabelModel, lever: Lever) -> LabelModel:
    """Return the model with what a lever leaves."""
    table, network = model.table, model.network
    channels = create_dense(network.config.backbone).channels
    count = network.config.num_labels
    vectors = table.image_vectors.reshape(len(table.image_vectors), POOLED_LEVELS, count)
    if lever.every > 1:
        table = table.unseen(np.arange(len(table)) % lever.every != 0)
    if lever.first is not None or lever.last is not None:
        kept = range(len(network.levels))[lever.first : lever.last]
        levels = tuple(network.config.levels[number] for number in kept)
        fewer = LabelNetwork(replace(network.config, levels=levels), channels)
        for head, number in zip(fewer.heads, kept, strict=True):
            head.load_state_dict(network.heads[number].state_dict())
        # Pooled labels are of the two coarsest levels: a finest one alone has none of its own.
        pooled = [number for number in kept if number < POOLED_LEVELS]
        if not pooled:
            raise ValueError('images cannot be retrieved without a coarse level')
        vectors = vectors[:, pooled]
        network = fewer
        table = replace(table, labels=table.labels[:, kept.start : kept.stop])
    if lever.count is not None and lever.count < count:
        network = MergedNetwork(network, lever.count, channels)
        table = replace(table, labels=table.labels % lever.count)
        # The root of a sum of squares, nearly what pooling the merged labels gives.
        grouped = vectors.astype(np.float32).reshape(*vectors.shape[:2], -1, lever.count)
        vectors = np.sqrt(np.square(grouped).sum(axis=2))
        vectors *= 127 / np.maximum(vectors.max(axis=(1, 2), keepdims=True), 1e-9)
    flat = vectors.reshape(len(vectors), -1).round().astype(np.int8)
    return replace(model, table=replace(table, image_vectors=flat), network=network.eval())


def localized(scene_map: SceneMap, lever: Lever, scene: Scene) -> dict[str, Any]:
    """Return how many queries are localized with what a lever leaves, and how exactly."""
    model = scene_map.model
    assert isinstance(model, LabelModel)
    try:
        changed = replace(scene_map, model=pulled(model, lever))
    except ValueError as error:
        return {'localized': None, 'reason': str(error)}
    localizer = Localizer(changed, create_extractor(scene_map.manifest.features, device='cpu'))
    errors, count = [], 0
    for frame in scene.queries:
        count += 1
        assert frame.image is not None
        assert frame.camera is not None
        result = localizer.localize(frame.image, frame.camera)
        if result.map_from_camera is not None:
            assert frame.map_from_camera is not None
            errors.append(pose_error(result.map_from_camera, frame.map_from_camera))
    medians = np.median(np.array(errors).reshape(-1, 2), axis=0) if errors else [None, None]
    return {
        'localized': len(errors),
        'queries': count,
        'median': medians[0],
        'median_deg': medians[1],
    }


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of a table of levers."""
    lines = [
        '| what is left | PSNR [dB] | gradient correlation | feature distance | localized | '
        'median | median [deg] |',
        '|---' * 7 + '|',
    ]
    for name, row in rows.items():
        seen = 'not measured'
        errors = ['', '']
        if row.get('localized') is not None:
            seen = f'{row["localized"]}/{row["queries"]}'
            if row['localized']:
                errors = [f'{row["median"]:.5f}', f'{row["median_deg"]:.4f}']
        elif 'reason' in row:
            seen = 'none: no coarse level to retrieve by'
        lines.append(
            f'| {name} | {row["psnr_db"]:.2f} | {row["gradient_correlation"]:.2f} | '
            f'{row["feature_distance"]:.3f} | {seen} | {errors[0]} | {errors[1]} |'
        )
    return lines


def main() -> None:
    """Attack what each lever leaves, localize with it, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--place', default='fox')
    parser.add_argument('--levers', nargs='+', default=list(LEVERS), choices=list(LEVERS))
    parser.add_argument('--record', default='label_levers', metavar='NAME')
    args = parser.parse_args()
    started = time.time()
    places = Places(args.work, None, args.data)
    path = args.work / 'maps' / f'{args.place}_labels'
    source = photographs(places, args.place)
    scene_map = SceneMap.open(path)
    scene = next(iter(photographed_scenes(args.data, [args.place])))
    output = args.work / 'privacy' / f'{args.place}_levers'
    if not (output / 'report.json').exists():
        attack(
            [path],
            source,
            [open_source(args.data / name) for name in OWN if name != args.place],
            output,
            CONFIG,
            inputs=[args.place, *OWN],
            wanted=[word for word in args.levers if word != 'labels'],
            progress=True,
        )
    known = read_record(RESULTS / 'privacy.json')['figures'][args.place]
    pulled_kinds = json.loads((output / 'report.json').read_text())['kinds']
    rows: dict[str, dict[str, Any]] = {
        name: dict(row)
        for kinds in (known['labels']['kinds'], pulled_kinds, known['landmark']['kinds'])
        for name, row in kinds.items()
    }
    for word in args.levers:
        lever = LEVERS[word]
        rows[lever.name] |= localized(scene_map, lever, scene)
        print(word, rows[lever.name], flush=True)
    write_record(
        args.record,
        finite(rows),
        started,
        tables={'levers': table(rows)},
        measures=('d2s_ros/privacy', 'd2s_ros/scene_models'),
    )


if __name__ == '__main__':
    main()
