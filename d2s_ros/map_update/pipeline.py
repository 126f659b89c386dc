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
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.config import to_dict
from d2s_ros.data.sources import LogOptions
from d2s_ros.device import resolve_device
from d2s_ros.errors import D2SError, InputError, MapFormatError
from d2s_ros.features.extractor import create_mapping_extractor
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.localization.localizer import Localizer
from d2s_ros.map_update.candidate_decision import propose_candidate
from d2s_ros.map_update.config import UpdateConfig
from d2s_ros.map_update.context import Progress, UpdateContext, UpdateStatus
from d2s_ros.map_update.growth import GrownMap
from d2s_ros.map_update.keyframes import FrameRecord, count_reasons
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.map_update.labelling import label_and_grow
from d2s_ros.map_update.ledger import UNREADABLE, UpdateLedger, identity
from d2s_ros.map_update.log_reading import choose_held_out, read_logs
from d2s_ros.map_update.place_changes import PlaceChanges
from d2s_ros.map_update.promotion import PromotionDecision
from d2s_ros.map_update.result import UpdateResult
from d2s_ros.map_update.view_growth import label_by_views, mapping_data, propose_from_views
from d2s_ros.maps.files import CHANGES_FILE, UPDATES_FOLDER
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore

_logger = logging.getLogger(__name__)


def update_map(
    map_path: str | os.PathLike[str],
    logs: Sequence[str | os.PathLike[str]],
    config: UpdateConfig | None = None,
    *,
    log_options: LogOptions | None = None,
    dry_run: bool = False,
    suggest: bool = False,
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
        map_path: Map folder; of landmarks, with update data.
        logs: rosbag2 logs (cut off or being written is fine) or image folders with a calibration.
        config: Options.
        log_options: Topics and calibration of all logs.
        dry_run: Do everything but write to the map.
        suggest: Write the candidate, but leave it to somebody to make it live.
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
    log_options = log_options or LogOptions()
    root = Path(map_path).expanduser()
    status = UpdateStatus(progress)
    store = MapStore(root)
    if store.current() is None:
        raise MapFormatError(
            f'there is no map at {root}; build one with: d2s build-map INPUT --map {root}'
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
            paths = [Path(log).expanduser() for log in logs]
            run = _Run(
                store, paths, config, log_options, work_dir, status, device, weights, show_progress
            )
            try:
                result = run.execute(dry_run, suggest)
            finally:
                if run.bad_logs and not dry_run:
                    ledger.record(run.bad_logs, UNREADABLE, '', log_options)
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
        log_options: LogOptions,
        work_dir: str | os.PathLike[str] | None,
        status: UpdateStatus,
        device: str,
        weights: str | None,
        show_progress: bool,
    ) -> None:
        self.store, self.logs = store, logs
        device = resolve_device(device)
        incumbent = SceneMap.open(store.root)
        self.origin = incumbent.manifest.origin
        # Everything is computed relative to the origin; results leave with it.
        incumbent = incumbent.in_local_frame()
        data = mapping_data(incumbent)
        model = incumbent.model.with_mapping(data.reconstruction())
        incumbent = replace(incumbent, model=model)
        extractor: FeatureExtractor = create_mapping_extractor(
            incumbent.manifest.features, device=device, weights=weights
        )
        # Taken before anything is read: what a log grows by meanwhile is new to the next update.
        self.identities = [identity(log) for log in logs]
        signature = {
            'version': incumbent.manifest.version,
            'created': incumbent.manifest.created,
            'logs': self.identities,
            'config': to_dict(config),
            'log_options': asdict(log_options),
        }
        digest = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()[:16]
        parent = Path(work_dir).expanduser() if work_dir else store.root / UPDATES_FOLDER / 'work'
        folder = parent / f'run-{digest}'
        if folder.exists():
            _logger.info('going on with an interrupted update')
        folder.mkdir(parents=True, exist_ok=True)
        self.context = UpdateContext(
            incumbent,
            data,
            extractor,
            config,
            log_options,
            device,
            folder,
            status,
            show_progress,
        )
        self.changes: PlaceChanges | None = None
        self.picture: Path | None = None
        self.used_logs: list[dict[str, Any]] = []
        self.bad_logs: list[dict[str, Any]] = []

    def clean_up(self) -> None:
        folder = self.context.folder
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.name == 'work' and folder.parent.is_dir():
            # Runs on versions that are no longer live can never be resumed.
            for other in folder.parent.glob('run-*'):
                shutil.rmtree(other, ignore_errors=True)

    def execute(self, dry_run: bool, suggest: bool) -> UpdateResult:
        context = self.context
        incumbent, status = context.incumbent, context.status
        read = read_logs(context, self.logs)
        self.used_logs = [self.identities[position] for position in read.used]
        self.bad_logs = [self.identities[position] for position in read.bad]
        if not read.used:
            raise InputError('no log can be read: ' + '; '.join(read.problems))
        keyframes, records = read.keyframes, read.records
        held_out = choose_held_out(keyframes, context.config.holdout_every)
        status.step('labels', 30, keyframes=len(keyframes))
        grown: GrownMap | None = None
        if context.by_views:
            frames, known = label_by_views(context, keyframes, held_out)
        else:
            localizer = Localizer(incumbent, context.extractor, device=context.device)
            known = [localizer.localize_view(keyframe.view) for keyframe in keyframes]
            frames, grown = label_and_grow(context, keyframes, held_out, known)
        records += [_record(frame) for frame in frames]
        used = [frame for frame in frames if frame.usable and not frame.held_out]
        compared = [f for f in frames if f.held_out and f.map_from_camera is not None]
        counts = {
            'frames': len(records),
            'used': len(used),
            'held_out': len(compared),
            'dropped': sum(record.outcome == 'dropped' for record in records),
        }
        status.step('growth', 65, **counts)
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
        if context.by_views:
            decision, candidate = propose_from_views(context, used, compared, results, figures)
            update_data = None
        else:
            decision, candidate, update_data = propose_candidate(
                context, grown, used, compared, results, figures
            )
        if grown is not None:
            self.changes = grown.changes.moved(self.origin)
            figures['changes'] = self.changes.to_report()
        figures['seconds'] = dict(status.seconds)
        manifest = replace(
            candidate.manifest,
            origin=self.origin,
            metrics={
                **incumbent.manifest.metrics,
                **candidate.manifest.metrics,
                'update': {
                    'logs': [Path(log['path']).name for log in self.used_logs],
                    'recipe': context.config.recipe,
                    'promoted': decision.promote,
                    'suggested': decision.promote and suggest,
                    'reasons': list(decision.reasons),
                    'gate': decision.metrics,
                    **figures,
                },
            },
        )
        status.step('writing', 95)
        figures['seconds'] = dict(status.seconds)
        if dry_run:
            verdict = 'would be promoted' if decision.promote else 'would be refused'
            return self._result(
                'dry_run', (verdict, *decision.reasons), decision, '', records, figures, frames
            )
        if self.store.current() != incumbent.manifest.version:
            decision = replace(
                decision,
                promote=False,
                reasons=(
                    f'version {self.store.current()} was made live while the update ran; '
                    'update again',
                    *decision.reasons,
                ),
            )
        live = decision.promote and not suggest
        written = self.store.write(replace(candidate, manifest=manifest), update_data, promote=live)
        if self.changes is not None and written.path is not None:
            self.picture = written.path / CHANGES_FILE
            self.picture.write_bytes(self.changes.picture())
        verdict = 'promoted' if live else 'suggested' if decision.promote else 'refused'
        return self._result(
            verdict,
            decision.reasons,
            decision,
            written.manifest.version,
            records,
            figures,
            frames,
        )

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
        poses = np.array([image.map_from_camera.to_tum() for image in self.context.data.images])
        if any(self.origin):
            poses[:, :3] += self.origin
            frames = [
                frame
                if frame.map_from_camera is None
                else replace(frame, map_from_camera=frame.map_from_camera.moved(self.origin))
                for frame in frames
            ]
        return UpdateResult(
            verdict,
            reasons,
            self.store.current() or '',
            written,
            decision,
            records,
            figures,
            frames,
            poses,
            self.changes,
            self.picture,
        )


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
