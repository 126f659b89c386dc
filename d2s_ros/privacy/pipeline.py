"""From maps and photographs to what the maps give away: the attack on each kind of content."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from d2s_ros.config import to_dict
from d2s_ros.data.frames import Frame, FrameSource
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.maps.files import UPDATE_FILE
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import MappingData
from d2s_ros.privacy import report
from d2s_ros.privacy.config import AttackConfig
from d2s_ros.privacy.contents import Content, UpdateData
from d2s_ros.privacy.metrics import FeatureDistance, Likeness, Picture, likeness
from d2s_ros.privacy.registry import contents_of, kinds
from d2s_ros.privacy.shots import OwnScene, Shot, own_scene, read_photographs, shots_of_map
from d2s_ros.privacy.sparse import SparseView, central_window, picture_size
from d2s_ros.privacy.training import Example, Training, steps_within

_logger = logging.getLogger(__name__)

#: Plan of an attack among its results.
_PLAN = 'plan'


class _AttackStages(BuildStages):
    """The stages of an attack, kept beside its report."""

    noun = 'attack'
    doing = 'at the attack of'


@dataclass(frozen=True, eq=False)
class _Target:
    """One kind of content of one map, with the photographs that it is measured on."""

    content: Content
    name: str
    shots: list[Shot]
    scenes: list[OwnScene]

    def views(self) -> dict[str, SparseView]:
        """Return what the map shows of each photograph, without those it keeps nothing of."""
        views = {shot.name: self.content.of_map(shot) for shot in self.shots}
        return {name: view for name, view in views.items() if view is not None}


def attack(
    maps: Sequence[Path],
    photographs: FrameSource,
    own: Sequence[FrameSource],
    output: Path,
    config: AttackConfig,
    *,
    inputs: Sequence[str] = (),
    wanted: Sequence[str] = (),
    device: str = 'cpu',
    weights: str | None = None,
    fresh: bool = False,
    progress: bool = False,
    on_step: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Attack each kind of content of some maps of one place, and write what comes out.

    Same network, photographs, windows and steps for each kind. An interrupted attack goes on when
    it is called again with the same arguments.

    Args:
        maps: Maps of one place, in one frame.
        photographs: Of that place with poses in the frame of the maps, which pictures are compared
            with; the attacker never sees them.
        own: The attacker's photographs of other places, a source for each.
        output: Folder of report.json, table.md, pictures.png and report.html.
        config: Options.
        inputs: What names the photographs, for the resumption: paths.
        wanted: Kinds of content; all that the maps have if empty.
        device: 'cpu' or 'cuda'.
        weights: Weight file of network features.
        fresh: Forget what an interrupted attack has left.
        progress: Show progress bars.
        on_step: Called with the name of the content and the steps done; an exception ends the
            attack, which can be gone on with.

    Returns:
        The report, JSON types.

    Raises:
        UsageError: no map, no photographs of the attacker's, or an unknown kind.
        InputError: photographs or poses that cannot be used.
        MapFormatError: a map that cannot be read, or that was made with other weights.
    """
    if not maps or not own:
        raise UsageError("the attack needs a map and photographs of the attacker's")
    unknown = sorted(set(wanted) - set(kinds()))
    if unknown:
        raise UsageError(f'unknown kind {unknown[0]!r}; kinds are {", ".join(kinds())}')
    opened = [SceneMap.open(path) for path in maps]
    description = {
        'maps': [scene_map.manifest.files for scene_map in opened],
        'inputs': list(inputs),
        'kinds': list(wanted),
        'options': to_dict(config),
    }
    with _AttackStages(output, description, fresh=fresh) as stages:
        running = _Attack(opened, maps, config, stages, device, weights, progress, on_step)
        return running.run(photographs, own, output, wanted)


class _Attack:
    """One attack while it runs."""

    def __init__(
        self,
        maps: Sequence[SceneMap],
        paths: Sequence[Path],
        config: AttackConfig,
        stages: BuildStages,
        device: str,
        weights: str | None,
        progress: bool,
        on_step: Callable[[str, int], None] | None,
    ) -> None:
        self.on_step, self.weights = on_step, weights
        self.maps, self.config, self.stages = maps, config, stages
        self.names = [path.name for path in paths]
        self.device, self.progress = device, progress
        self._extractors: dict[str, FeatureExtractor] = {}
        self._scenes: dict[str, list[OwnScene]] = {}

    def run(
        self,
        photographs: FrameSource,
        own: Sequence[FrameSource],
        output: Path,
        wanted: Sequence[str],
    ) -> dict[str, Any]:
        """Attack everything and write the report."""
        updates = [_update_data(scene_map) for scene_map in self.maps]
        mapped = [set(data.names) for data in updates if data is not None]
        frames = read_photographs(
            photographs,
            self.config.photographs,
            names=set.intersection(*mapped) if mapped else None,
        )
        first = frames[0].image
        assert first is not None
        size = picture_size(first.shape[1], first.shape[0], self.config.size)
        targets = self._targets(frames, own, updates, wanted)
        for target in targets:
            if not target.views():
                raise InputError(
                    f'{target.name}: nothing is kept of any of the photographs; give those that '
                    'the map was made from, by the same names, or leave this kind out by --kinds'
                )
        truths = _truths([shot for target in targets for shot in target.shots], size)
        examples = [self._examples(target) for target in targets]
        steps = self._steps(examples, size)
        distance = FeatureDistance()
        results = [
            self._attack_on(target, own_examples, size, steps, truths, distance)
            for target, own_examples in zip(targets, examples, strict=True)
        ]
        grey = float(np.mean([np.mean(example.grey) / 255.0 for example in examples[0]]))
        blank = {
            name: likeness(np.full_like(truth, grey), truth, distance)
            for name, truth in truths.items()
        }
        options = {**to_dict(self.config), 'steps': steps, 'size': list(size)}
        document = report.document(
            results, blank, maps=self.names, options=options, own_photographs=len(examples[0])
        )
        report.write(output, document, results, truths)
        return document

    def _targets(
        self,
        frames: list[Frame],
        own: Sequence[FrameSource],
        updates: Sequence[UpdateData | None],
        wanted: Sequence[str],
    ) -> list[_Target]:
        """Return what is attacked."""
        found: list[_Target] = []
        many = len(self.maps) > 1
        for scene_map, name, update in zip(self.maps, self.names, updates, strict=True):
            contents = contents_of(scene_map, update, wanted, self.device)
            if not contents:
                continue
            extractor = self._extractor(scene_map)
            shots = shots_of_map(
                frames,
                scene_map.model.points_in_map.astype(np.float64) + scene_map.origin,
                extractor,
                self.stages.log('features'),
                progress=self.progress,
            )
            scenes = self._own_scenes(scene_map, extractor, own)
            for content in contents:
                title = f'{name}: {content.name}' if many else content.name
                found.append(_Target(content, title, shots, scenes))
        if not found:
            asked = ', '.join(wanted) or 'known'
            raise UsageError(f'{", ".join(self.names)}: no content of the kinds that are {asked}')
        return found

    def _extractor(self, scene_map: SceneMap) -> FeatureExtractor:
        features = scene_map.manifest.features
        key = f'{features}'
        if key not in self._extractors:
            self._extractors[key] = create_extractor(
                features, device=self.device, weights=self.weights
            )
        scene_map.manifest.check_features(self._extractors[key].weights_hash)
        return self._extractors[key]

    def _own_scenes(
        self, scene_map: SceneMap, extractor: FeatureExtractor, own: Sequence[FrameSource]
    ) -> list[OwnScene]:
        """Return the attacker's places, with the features of a map."""
        key = f'{scene_map.manifest.features}'
        if key not in self._scenes:
            self._scenes[key] = [
                own_scene(
                    source,
                    extractor,
                    self.config.own_photographs,
                    self.stages.log('features'),
                    self.stages.log(f'matches_{len(self._scenes)}_{number}'),
                    progress=self.progress,
                )
                for number, source in enumerate(own)
            ]
        return self._scenes[key]

    def _examples(self, target: _Target) -> list[Example]:
        return [
            Example(shot.grey, target.content.of_own(scene, index))
            for scene in target.scenes
            for index, shot in enumerate(scene.shots)
        ]

    def _steps(self, examples: list[list[Example]], size: tuple[int, int]) -> int:
        """Return the steps of each training: as an interrupted attack had, or as time allows."""
        log = self.stages.log('results')
        kept = log.get(_PLAN)
        if kept is not None:
            return int(kept['steps'][0])
        steps = self.config.steps
        if self.config.minutes:
            seconds = [
                Training(items, size, self.config, self.device).seconds_per_step()
                for items in examples
            ]
            steps = steps_within(self.config.minutes, steps, seconds)
            if steps < self.config.steps:
                _logger.warning(
                    'in %g minutes each kind of content gets %d steps instead of %d',
                    self.config.minutes,
                    steps,
                    self.config.steps,
                )
        log.keep(_PLAN, {'steps': np.array([steps])})
        return steps

    def _attack_on(
        self,
        target: _Target,
        examples: list[Example],
        size: tuple[int, int],
        steps: int,
        truths: dict[str, Picture],
        distance: FeatureDistance,
    ) -> report.Found:
        """Train on one kind of content and make pictures of it, or take those that are kept."""
        log = self.stages.log('results')
        known = target.views()
        kept = log.get(target.name)
        if kept is None:
            if self.progress:
                tqdm.write(f'{target.name}: {target.content.meaning}', file=sys.stderr)
            training = Training(examples, size, self.config, self.device)
            checkpoint = self._checkpoint(target.name)
            on_step = self.on_step
            figures = training.run(
                steps,
                checkpoint=checkpoint,
                progress=self.progress,
                on_step=on_step and (lambda step, _loss: on_step(target.name, step)),
            )
            kept = {
                'loss': np.array([figures['loss']]),
                **{
                    f'picture {shot.name}': training.picture(
                        known[shot.name],
                        central_window(shot.camera.width, shot.camera.height, size),
                    )
                    for shot in target.shots
                    if shot.name in known
                },
            }
            log.keep(target.name, kept)
        pictures = {name: np.asarray(kept[f'picture {name}'], np.float32) for name in known}
        alike: dict[str, Likeness] = {
            name: likeness(picture, truths[name], distance) for name, picture in pictures.items()
        }
        return report.Found(
            target.name,
            target.content.meaning,
            target.content.dim,
            float(np.median([len(view) for view in known.values()])),
            pictures,
            alike,
            steps,
            float(kept['loss'][0]),
        )

    def _checkpoint(self, name: str) -> Path | None:
        if self.stages.folder is None:
            return None
        safe = ''.join(letter if letter.isalnum() else '_' for letter in name)
        return self.stages.folder / f'training_{safe}.pt'


def _truths(shots: Sequence[Shot], size: tuple[int, int]) -> dict[str, Picture]:
    """Return the pictures of photographs, as the attack would have to make them."""
    return {
        shot.name: central_window(shot.camera.width, shot.camera.height, size).cut(shot.grey, size)
        for shot in shots
    }


def _update_data(scene_map: SceneMap) -> UpdateData | None:
    """Return the update data of a map, None if it has none."""
    if scene_map.path is None or UPDATE_FILE not in scene_map.manifest.files:
        return None
    if not (scene_map.path / UPDATE_FILE).exists():
        return None
    return UpdateData(MappingData.from_map(scene_map))
