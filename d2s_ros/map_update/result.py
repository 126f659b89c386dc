"""What an update did, for callers, reports and the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.map_update.keyframes import FrameRecord
from d2s_ros.map_update.label_database import LabelledFrame
from d2s_ros.map_update.place_changes import PlaceChanges
from d2s_ros.map_update.promotion import PromotionDecision


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """What an update did.

    Attributes:
        verdict: 'promoted', 'suggested' (good enough, waiting to be promoted by hand), 'refused'
            (kept aside), 'nothing_usable' (no candidate) or 'dry_run' (nothing was written).
        reasons: Why, one line each.
        version: The live version afterwards.
        candidate_version: The version written; empty without.
        decision: On promotion; None without a candidate.
        records: What became of each frame of the logs.
        figures: Counts and seconds.
        frames: Labelled keyframes, for reports.
        old_poses: (I, 7) TUM poses of the old mapping images, for reports.
        changes: What changed in the place; None where nothing was learned of it.
        picture: File of the picture of it; None where none was written.
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
    changes: PlaceChanges | None = None
    picture: Path | None = None
