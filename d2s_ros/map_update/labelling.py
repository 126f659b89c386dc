"""Labels and growth in turns: what the map has learned labels frames that it could not before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2s_ros.localization.result import LocalizationResult
from d2s_ros.map_update.context import UpdateContext
from d2s_ros.map_update.growth import (
    GrownMap,
    as_mapping_data,
    grow,
    in_old_points,
    with_adjusted_poses,
)
from d2s_ros.map_update.keyframes import Keyframe
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.map_update.pseudo_labels import label_frames
from d2s_ros.maps.update_data import MappingData


def label_and_grow(
    context: UpdateContext,
    keyframes: list[Keyframe],
    held_out: list[bool],
    known: list[LocalizationResult],
) -> tuple[list[LabelledFrame], GrownMap | None]:
    """Label the frames and let the map grow, in rounds.

    Args:
        context: Of the update.
        keyframes: Frames; nothing is known of their poses.
        held_out: Frames that are verified, but teach nothing.
        known: What the live map says of each.

    Returns:
        The frames with the poses that the growth found, and the grown map; None where no frame
        can be used, or the recipe does not let the map grow.
    """

    def verified(
        data: MappingData, before: list[LabelledFrame] | None = None
    ) -> list[LabelledFrame]:
        return label_frames(
            keyframes,
            held_out,
            data,
            'verified',
            context.config.labels,
            incumbent=known,
            calibration=context.incumbent.manifest.calibration,
            before=before,
            progress=context.show_progress,
        )

    frames = verified(context.data)
    if context.config.recipe == 'paper':
        published = label_frames(keyframes, held_out, context.data, 'paper', context.config.labels)
        # Held-out frames need a reference pose whatever the recipe is.
        return [
            referenced if referenced.held_out else frame
            for referenced, frame in zip(frames, published, strict=True)
        ], None
    grown: GrownMap | None = None
    matches: dict[tuple[str, str], NDArray[np.int64]] = {}
    for current in range(context.config.growth.rounds):
        if not any(frame.usable and not frame.held_out for frame in frames):
            break
        context.status.step('growth', 45 + 20 * current / context.config.growth.rounds)
        grown = grow(
            context.data,
            frames,
            context.config.growth,
            context.build_config.reconstruction,
            known_matches=matches,
            progress=context.show_progress,
        )
        frames = with_adjusted_poses(frames, grown)
        if current + 1 == context.config.growth.rounds or all(frame.usable for frame in frames):
            break
        more = verified(as_mapping_data(context.data, grown), frames)
        same = all(a.usable == b.usable for a, b in zip(frames, more, strict=True))
        frames = in_old_points(more, context.data, grown)
        if same:
            break
    return frames, grown
