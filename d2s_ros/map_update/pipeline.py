"""From unlabelled logs to a new version of a map, or to the reasons why not.

The only step that changes the map is the last one, and it is atomic. Everything before works in a
folder of the run, from which an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from d2s_ros.config import from_dict, to_dict
from d2s_ros.data.sources import open_source
from d2s_ros.device import resolve_device
from d2s_ros.errors import ConfigError, D2SError, InputError, MapFormatError
from d2s_ros.features.extractor import FeatureExtractor, create_extractor
from d2s_ros.features.types import LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_building.config import BuildConfig
from d2s_ros.map_building.pipeline import collect_update_data
from d2s_ros.map_update.candidate import Candidate, train_as_published, train_candidate
from d2s_ros.map_update.config import UpdateConfig
from d2s_ros.map_update.gate import MapUnderTest, PromotionDecision, judge
from d2s_ros.map_update.growth import GrownMap, as_mapping_data, grow, in_old_points
from d2s_ros.map_update.keyframes import FrameRecord, Keyframe, count_reasons, select_keyframes
from d2s_ros.map_update.ledger import UpdateLedger, identity
from d2s_ros.map_update.pseudo_labels import LabelledFrame, label_frames
from d2s_ros.maps.scene_map import UPDATES_FOLDER, MapStore, SceneMap
from d2s_ros.maps.update_data import MappingData
from d2s_ros.reconstruction.points import make_reconstruction
from d2s_ros.reconstruction.reconstruction import Reconstruction

_logger = logging.getLogger(__name__)

#: Called with a JSON-typed status: state, step, percent, counts, figures, verdict, reasons.
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """What an update did.

    Attributes:
        verdict: 'promoted', 'refused' (the candidate is kept aside), 'nothing_usable' (there is no
            candidate) or 'dry_run' (nothing was written).
        reasons: Why, one line each.
        version: The live version afterwards.
        candidate_version: The version written; empty without.
        decision: Of the gate; None without a candidate.
        records: What became of each frame of the logs.
        figures: Counts and seconds.
        frames: Labelled keyframes, for reports.
        old_poses: (I, 7) TUM poses of the old mapping images, for reports.
    """

    verdict: str
    reasons: tuple[str, ...]
    version: str
    candidate_version: str
    decision: PromotionDecision | None
    records: list[FrameRecord]
    figures: dict[str, Any]
    frames: list[LabelledFrame] = field(default_factory=list)
    old_poses: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 7)))


class _Status:
    """Keeps the status of a run and tells it on."""

    def __init__(self, tell: Progress | None) -> None:
        self._tell = tell
        self.values: dict[str, Any] = {
            'state': 'running',
            'step': '',
            'percent': 0.0,
            'counts': {},
            'figures': {},
            'verdict': '',
            'reasons': [],
        }
        self.seconds: dict[str, float] = {}
        self._clock = time.monotonic()

    def step(self, name: str, percent: float, **counts: Any) -> None:
        now = time.monotonic()
        last = self.values['step']
        if last and last != name:
            self.seconds[last] = round(self.seconds.get(last, 0.0) + now - self._clock, 2)
            self._clock = now
        elif not last:
            self._clock = now
        self.values.update(step=name, percent=round(percent, 1))
        self.values['counts'] = {**self.values['counts'], **counts}
        self.tell()

    def tell(self, **values: Any) -> None:
        self.values.update(values)
        if self._tell is not None:
            self._tell(dict(self.values))


def update_map(
    map_path: str | os.PathLike[str],
    logs: Sequence[str | os.PathLike[str]],
    config: UpdateConfig | None = None,
    *,
    dry_run: bool = False,
    work_dir: str | os.PathLike[str] | None = None,
    device: str = 'auto',
    weights: str | None = None,
    progress: Progress | None = None,
    show_progress: bool = False,
) -> UpdateResult:
    """Update a map from unlabelled logs.

    Poses in the logs are never used. A run that was interrupted goes on when it is started again
    with the same map version, logs and options.

    Args:
        map_path: Map folder with update data.
        logs: rosbag2 logs (cut off or being written is fine) or image folders with a calibration.
        config: Options.
        dry_run: Do everything but write to the map.
        work_dir: Folder for what a resumed run needs; in the map's folder if None.
        device: 'auto', 'cpu' or 'cuda'.
        weights: Weight file of network features.
        progress: Called with the status as it changes.
        show_progress: Progress bars.

    Raises:
        InputError: no log can be read, the disk is too full, or the map's head is regression.
        UpdateRunningError: another update of this map is at work.
        MapFormatError: the map is missing, damaged or has no update data.
    """
    config = config or UpdateConfig()
    root = Path(map_path)
    status = _Status(progress)
    store = MapStore(root)
    if store.current() is None:
        raise MapFormatError(
            f'there is no map at {root}; build one with: d2s build-map INPUT --map'
        )
    if not logs:
        raise InputError('no log was given; there is nothing to update from')
    free = shutil.disk_usage(root).free / 1e6
    if free < config.min_free_megabytes:
        raise InputError(
            f'{free:.0f} MB are free on the disk of {root}, {config.min_free_megabytes} MB needed; '
            'delete old files first'
        )
    ledger = UpdateLedger(root)
    with ledger.locked():
        try:
            paths = [Path(log) for log in logs]
            run = _Run(store, paths, config, work_dir, status, device, weights, show_progress)
            result = run.execute(dry_run)
            if not dry_run:
                ledger.record(run.used_logs, result.verdict, result.candidate_version)
                store.prune(config.keep_versions, config.keep_megabytes * 1_000_000)
            run.clean_up()
        except D2SError as error:
            status.tell(state='failed', verdict='failed', reasons=[str(error)])
            raise
        except KeyboardInterrupt:
            status.tell(state='cancelled', verdict='cancelled', reasons=['cancelled'])
            raise
    status.tell(
        state='done',
        step='done',
        percent=100.0,
        verdict=result.verdict,
        reasons=list(result.reasons),
        figures=result.decision.metrics if result.decision else {},
    )
    return result


class _Run:
    """One update with its folder."""

    def __init__(
        self,
        store: MapStore,
        logs: list[Path],
        config: UpdateConfig,
        work_dir: str | os.PathLike[str] | None,
        status: _Status,
        device: str,
        weights: str | None,
        show_progress: bool,
    ) -> None:
        self.store, self.logs, self.config, self.status = store, logs, config, status
        self.show_progress = show_progress
        self.device = resolve_device(device)
        incumbent = SceneMap.open(store.root)
        self.data = MappingData.from_map(incumbent)
        self.old = self.data.reconstruction()
        self.incumbent = replace(incumbent, model=incumbent.model.with_mapping(self.old))
        self.extractor: FeatureExtractor = create_extractor(
            self.incumbent.manifest.features, device=self.device, weights=weights
        )
        # Taken before anything is read: what a log grows by meanwhile is new to the next update.
        self.identities = [identity(log) for log in logs]
        signature = {
            'version': self.incumbent.manifest.version,
            'created': self.incumbent.manifest.created,
            'logs': self.identities,
            'config': to_dict(config),
        }
        digest = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()[:16]
        parent = Path(work_dir) if work_dir else store.root / UPDATES_FOLDER / 'work'
        self.folder = parent / f'run-{digest}'
        if self.folder.exists():
            _logger.info('going on with an interrupted update')
        self.folder.mkdir(parents=True, exist_ok=True)
        self.used_logs: list[dict[str, Any]] = []

    def clean_up(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.name == 'work' and self.folder.parent.is_dir():
            # Runs on versions that are no longer live can never be resumed.
            for other in self.folder.parent.glob('run-*'):
                shutil.rmtree(other, ignore_errors=True)

    def execute(self, dry_run: bool) -> UpdateResult:
        keyframes, records = self._read()
        held_out = _held_out(keyframes, self.config.holdout_every)
        self.status.step('labels', 30, keyframes=len(keyframes))
        localizer = Localizer(self.incumbent, self.extractor, device=self.device)
        known = [localizer.localize_features(k.features, k.camera) for k in keyframes]
        frames, grown = self._label(keyframes, held_out, known)
        records += [_record(frame) for frame in frames]
        used = [frame for frame in frames if frame.usable and not frame.held_out]
        judges = [frame for frame in frames if frame.held_out and frame.map_from_camera is not None]
        counts = {
            'frames': len(records),
            'used': len(used),
            'held_out': len(judges),
            'dropped': sum(record.outcome == 'dropped' for record in records),
        }
        self.status.step('growth', 65, **counts)
        figures: dict[str, Any] = {**counts, 'dropped_reasons': count_reasons(records)}
        if not used:
            reasons = [f'{n} x {text}' for text, n in figures['dropped_reasons'].items()]
            return self._result(
                'nothing_usable',
                ('no frame of the logs could be used: ' + '; '.join(reasons[:4]),),
                None,
                '',
                records,
                figures,
                frames,
            )
        # The gate need not ask the incumbent again.
        results = {
            (keyframe.log, keyframe.name): result
            for keyframe, result in zip(keyframes, known, strict=True)
        }
        decision, candidate, update_data = self._candidate(grown, used, judges, results, figures)
        figures['seconds'] = dict(self.status.seconds)
        manifest = replace(
            candidate.manifest,
            metrics={
                **self.incumbent.manifest.metrics,
                **candidate.manifest.metrics,
                'update': {
                    'logs': [Path(log['path']).name for log in self.used_logs],
                    'recipe': self.config.recipe,
                    'promoted': decision.promote,
                    'reasons': list(decision.reasons),
                    'gate': decision.metrics,
                    **figures,
                },
            },
        )
        self.status.step('writing', 95)
        figures['seconds'] = dict(self.status.seconds)
        if dry_run:
            verdict = 'would be promoted' if decision.promote else 'would be refused'
            return self._result(
                'dry_run', (verdict, *decision.reasons), decision, '', records, figures, frames
            )
        if self.store.current() != self.incumbent.manifest.version:
            decision = replace(
                decision,
                promote=False,
                reasons=(
                    f'version {self.store.current()} was made live while the update ran; '
                    'update again',
                    *decision.reasons,
                ),
            )
        written = self.store.write(
            replace(candidate, manifest=manifest), update_data, promote=decision.promote
        )
        return self._result(
            'promoted' if decision.promote else 'refused',
            decision.reasons,
            decision,
            written.manifest.version,
            records,
            figures,
            frames,
        )

    def _read(self) -> tuple[list[Keyframe], list[FrameRecord]]:
        keyframes: list[Keyframe] = []
        records: list[FrameRecord] = []
        problems = []
        for position, log in enumerate(self.logs):
            self.status.step('frames', 30 * position / len(self.logs), logs=len(self.logs))
            try:
                found, dropped = self._read_log(position, log)
            except D2SError as error:
                problems.append(f'{log}: {error}')
                _logger.warning('%s is not used: %s', log, error)
                records.append(FrameRecord(_log_name(log), '', 0, 'dropped', str(error)))
                continue
            self.used_logs.append(self.identities[position])
            keyframes += found
            records += dropped
        if not self.used_logs:
            raise InputError('no log can be read: ' + '; '.join(problems))
        return keyframes, records

    def _read_log(self, position: int, log: Path) -> tuple[list[Keyframe], list[FrameRecord]]:
        cache = self.folder / f'log-{position:03d}.safetensors'
        name = _log_name(log)
        if cache.exists():
            try:
                return _load_keyframes(cache)
            except (SafetensorError, KeyError, ValueError):
                _logger.info('%s is damaged and made again', cache)
        source = open_source(log, partial=True)
        found, dropped = select_keyframes(
            source, name, self.extractor, self.config.keyframes, progress=self.show_progress
        )
        _save_keyframes(cache, found, dropped)
        return found, dropped

    def _label(
        self, keyframes: list[Keyframe], held_out: list[bool], known: list[LocalizationResult]
    ) -> tuple[list[LabelledFrame], GrownMap | None]:
        """Label the frames and let the map grow; what it learned may label more of them."""

        def verified(
            data: MappingData, before: list[LabelledFrame] | None = None
        ) -> list[LabelledFrame]:
            return label_frames(
                keyframes,
                held_out,
                data,
                'verified',
                self.config.labels,
                incumbent=known,
                calibration=self.incumbent.manifest.calibration,
                before=before,
                progress=self.show_progress,
            )

        frames = verified(self.data)
        if self.config.recipe == 'paper':
            published = label_frames(keyframes, held_out, self.data, 'paper', self.config.labels)
            # Frames that judge need a reference pose whatever the recipe is.
            return [
                judge_frame if judge_frame.held_out else frame
                for judge_frame, frame in zip(frames, published, strict=True)
            ], None
        grown: GrownMap | None = None
        matches: dict[tuple[str, str], NDArray[np.int64]] = {}
        for current in range(self.config.growth.rounds):
            if not any(frame.usable and not frame.held_out for frame in frames):
                break
            self.status.step('growth', 45 + 20 * current / self.config.growth.rounds)
            grown = grow(
                self.data,
                frames,
                self.config.growth,
                self._build_config().reconstruction,
                known_matches=matches,
                progress=self.show_progress,
            )
            if current + 1 == self.config.growth.rounds or all(frame.usable for frame in frames):
                break
            more = verified(as_mapping_data(self.data, grown), frames)
            same = all(a.usable == b.usable for a, b in zip(frames, more, strict=True))
            frames = in_old_points(more, self.data, grown)
            if same:
                break
        return frames, grown

    def _candidate(
        self,
        grown: GrownMap | None,
        used: list[LabelledFrame],
        judges: list[LabelledFrame],
        results: dict[tuple[str, str], LocalizationResult],
        figures: dict[str, Any],
    ) -> tuple[PromotionDecision, SceneMap, dict[str, NDArray[Any]]]:
        incumbent = MapUnderTest(self.incumbent, self.extractor, self.old.images, results)
        if self.config.recipe == 'paper':
            self.status.step('training', 70)
            scene_map = train_as_published(
                self.incumbent,
                used,
                self.data.points_in_map,
                self.config,
                device=self.device,
                checkpoint=self._checkpoint,
                progress=self.show_progress,
            )
            tested = MapUnderTest(scene_map, self.extractor, self.old.images)
            self.status.step('gate', 88)
            decision = judge(incumbent, tested, self.data.logs, judges, self.config.gate)
            return decision, scene_map, self.incumbent.load_update_data()
        assert grown is not None
        figures.update(grown.figures)
        self.status.step('training', 70, **grown.figures)
        candidate = self._grown_candidate(grown, None)
        self.status.step('gate', 88)
        decision = self._judge(incumbent, candidate, judges)
        if not decision.promote and decision.lost_frames:
            # What only adds may lose nothing.
            self.status.step('second candidate', 91)
            second = self._grown_candidate(grown, self.incumbent.model.used_points)
            second_decision = self._judge(incumbent, second, judges)
            first_reasons, reasons = decision.reasons, second_decision.reasons
            if second_decision.promote:
                why = f'it only adds; with training: {"; ".join(first_reasons)}'
                candidate, decision = second, replace(second_decision, reasons=(*reasons, why))
            else:
                why = f'what only adds was refused too: {"; ".join(reasons)}'
                decision = replace(decision, reasons=(*first_reasons, why))
        scene_map = replace(
            candidate.scene_map,
            manifest=replace(
                candidate.scene_map.manifest,
                metrics={
                    **candidate.figures,
                    'num_images': len(grown.reconstruction.images),
                    'num_points': len(grown.reconstruction.points_in_map),
                },
            ),
        )
        limited, logs = _limit_images(grown, self.config.max_update_images)
        return decision, scene_map, collect_update_data(limited, self._build_config(), logs)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / 'training.pt'

    def _grown_candidate(self, grown: GrownMap, keep: NDArray[np.int64] | None) -> Candidate:
        """Make a candidate of the grown map; with `keep` one that only adds."""

        def on_step(step: int, loss: float) -> None:
            if keep is None and step % 25 == 0:
                share = min(1.0, step / max(1, self.config.steps))
                self.status.step('training', 70 + 18 * share, training_step=step)

        return train_candidate(
            self.incumbent,
            grown,
            self.extractor,
            self.config,
            device=self.device,
            checkpoint=self._checkpoint if keep is None else None,
            keep=keep,
            progress=self.show_progress,
            on_step=on_step,
        )

    def _judge(
        self, incumbent: MapUnderTest, candidate: Candidate, judges: list[LabelledFrame]
    ) -> PromotionDecision:
        tested = MapUnderTest(
            candidate.scene_map,
            self.extractor,
            candidate.grown.reconstruction.images,
        )
        return judge(incumbent, tested, self.data.logs, judges, self.config.gate)

    def _build_config(self) -> BuildConfig:
        try:
            return from_dict(BuildConfig, self.incumbent.manifest.build)
        except ConfigError:
            return BuildConfig(features=self.incumbent.manifest.features)

    def _result(
        self,
        verdict: str,
        reasons: tuple[str, ...],
        decision: PromotionDecision | None,
        written: str,
        records: list[FrameRecord],
        figures: dict[str, Any],
        frames: list[LabelledFrame],
    ) -> UpdateResult:
        return UpdateResult(
            verdict,
            reasons,
            self.store.current() or '',
            written,
            decision,
            records,
            figures,
            frames,
            np.array([image.map_from_camera.to_tum() for image in self.data.images]),
        )


def _held_out(keyframes: list[Keyframe], every: int) -> list[bool]:
    """Choose every n-th keyframe of each log, from the middle of the stride."""
    seen: Counter[str] = Counter()
    result = []
    for keyframe in keyframes:
        result.append(seen[keyframe.log] % every == every // 2)
        seen[keyframe.log] += 1
    return result


def _record(frame: LabelledFrame) -> FrameRecord:
    outcome = 'dropped' if not frame.usable else 'held_out' if frame.held_out else 'used'
    keyframe = frame.keyframe
    return FrameRecord(
        keyframe.log,
        keyframe.name,
        keyframe.stamp_ns,
        outcome,
        frame.reason,
        frame.num_labels,
        frame.num_inliers,
    )


def _limit_images(grown: GrownMap, count: int) -> tuple[Reconstruction, list[str]]:
    """Thin the images and their logs evenly, so that later updates stay affordable."""
    reconstruction = grown.reconstruction
    total = len(reconstruction.images)
    if total <= count:
        return reconstruction, grown.logs
    keep = np.unique(np.linspace(0, total - 1, count).round().astype(int))
    thinned = make_reconstruction(
        [reconstruction.images[i] for i in keep],
        reconstruction.points_in_map,
        reconstruction.metric,
    )
    return thinned, [grown.logs[i] for i in keep]


def _log_name(log: Path) -> str:
    return log.resolve().name


def _save_keyframes(path: Path, keyframes: list[Keyframe], records: list[FrameRecord]) -> None:
    tensors: dict[str, NDArray[Any]] = {}
    described = []
    for index, keyframe in enumerate(keyframes):
        features = keyframe.features
        for part in ('keypoints', 'keypoint_scores', 'descriptors', 'scales'):
            tensors[f'{index}.{part}'] = np.ascontiguousarray(getattr(features, part))
        described.append(
            {
                'log': keyframe.log,
                'name': keyframe.name,
                'stamp_ns': keyframe.stamp_ns,
                'camera': keyframe.camera.to_dict(),
            }
        )
    text = json.dumps({'keyframes': described, 'records': [r.to_dict() for r in records]})
    tensors['document'] = np.frombuffer(text.encode(), np.uint8)
    temporary = path.with_suffix('.tmp')
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _load_keyframes(path: Path) -> tuple[list[Keyframe], list[FrameRecord]]:
    tensors = load_file(path)
    document = json.loads(bytes(tensors['document']))
    keyframes = []
    for index, item in enumerate(document['keyframes']):
        camera = Camera.from_dict(item['camera'])
        features = LocalFeatures(
            tensors[f'{index}.keypoints'],
            tensors[f'{index}.keypoint_scores'],
            tensors[f'{index}.descriptors'],
            (camera.width, camera.height),
            tensors[f'{index}.scales'],
        )
        keyframes.append(Keyframe(item['log'], item['name'], item['stamp_ns'], camera, features))
    return keyframes, [FrameRecord(**record) for record in document['records']]
