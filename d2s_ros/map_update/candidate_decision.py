"""The candidate that an update proposes, and the decision on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_update.candidate import Candidate, train_as_published, train_candidate
from d2s_ros.map_update.context import UpdateContext
from d2s_ros.map_update.growth import GrownMap
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.map_update.promotion import MapUnderTest, PromotionDecision, decide_promotion
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.update_data import collect_update_data
from d2s_ros.reconstruction.reconstruction import Reconstruction, make_reconstruction


def propose_candidate(
    context: UpdateContext,
    grown: GrownMap | None,
    used: list[LabelledFrame],
    held_out_frames: list[LabelledFrame],
    results: dict[tuple[str, str], LocalizationResult],
    figures: dict[str, Any],
) -> tuple[PromotionDecision, SceneMap, dict[str, NDArray[Any]]]:
    """Train a candidate, and a second one that only adds if the first loses frames.

    Args:
        context: The update.
        grown: Old and new images; None with the recipe 'paper'.
        used: Frames that teach the candidate.
        held_out_frames: Frames held out of it.
        results: What the incumbent says of frames, by log and name.
        figures: Counts, extended by those of growing.

    Returns:
        The decision, the candidate (not written yet) and its update data.
    """
    config, data = context.config, context.data
    incumbent = MapUnderTest(context.incumbent, context.extractor, data.images, results)
    if config.recipe == 'paper':
        context.status.step('training', 70)
        scene_map = train_as_published(
            context.incumbent,
            used,
            data.points_in_map,
            config,
            device=context.device,
            checkpoint=context.checkpoint,
            progress=context.show_progress,
        )
        tested = MapUnderTest(scene_map, context.extractor, data.images)
        context.status.step('gate', 88)
        decision = decide_promotion(incumbent, tested, data.logs, held_out_frames, config.gate)
        return decision, scene_map, context.incumbent.load_update_data()
    assert grown is not None
    figures.update(grown.figures)
    context.status.step('training', 70, **grown.figures)
    candidate = _train(context, grown, None)
    context.status.step('gate', 88)
    decision = _decide(context, incumbent, candidate, held_out_frames)
    if not decision.promote and decision.lost_frames:
        # What only adds may lose nothing.
        context.status.step('second candidate', 91)
        second = _train(context, grown, context.incumbent.model.used_points)
        second_decision = _decide(context, incumbent, second, held_out_frames)
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
    limited, logs = _limit_images(grown, config.max_update_images)
    build = context.build_config
    update_data = collect_update_data(
        limited,
        max_keypoints=build.update_keypoints,
        max_megabytes=build.max_update_mb,
        logs=logs,
        colours=context.data.colours_of(limited.points_in_map),
    )
    return decision, scene_map, update_data


def _train(context: UpdateContext, grown: GrownMap, keep: NDArray[np.int64] | None) -> Candidate:
    """Make a candidate of the grown map; with `keep` one that only adds."""

    def on_step(step: int, loss: float) -> None:
        if keep is None and step % 25 == 0:
            share = min(1.0, step / max(1, context.config.steps))
            context.status.step('training', 70 + 18 * share, training_step=step)

    return train_candidate(
        context.incumbent,
        grown,
        context.extractor,
        context.config,
        device=context.device,
        checkpoint=context.checkpoint if keep is None else None,
        keep=keep,
        progress=context.show_progress,
        on_step=on_step,
    )


def _decide(
    context: UpdateContext,
    incumbent: MapUnderTest,
    candidate: Candidate,
    held_out_frames: list[LabelledFrame],
) -> PromotionDecision:
    tested = MapUnderTest(
        candidate.scene_map,
        context.extractor,
        candidate.grown.reconstruction.images,
    )
    return decide_promotion(
        incumbent, tested, context.data.logs, held_out_frames, context.config.gate
    )


def _limit_images(grown: GrownMap, count: int) -> tuple[Reconstruction, list[str]]:
    """Subsample the images and their logs evenly, so that later updates stay affordable."""
    reconstruction = grown.reconstruction
    total = len(reconstruction.images)
    if total <= count:
        return reconstruction, grown.logs
    keep = np.unique(np.linspace(0, total - 1, count).round().astype(int))
    subsampled = make_reconstruction(
        [reconstruction.images[i] for i in keep],
        reconstruction.points_in_map,
        reconstruction.metric,
    )
    return subsampled, [grown.logs[i] for i in keep]
