"""Gathers what the parts of the localizer node know, for diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from d2s_ros.ros.diagnostics import NodeFacts
from d2s_ros.ros.frame_worker import FrameWorker
from d2s_ros.ros.image_inputs import ImageInputs
from d2s_ros.ros.localizer_config import LocalizerNodeConfig
from d2s_ros.ros.map_keeper import MapKeeper
from d2s_ros.ros.outputs import Outputs
from d2s_ros.ros.pose_follower import PoseFollower
from d2s_ros.ros.transform_sender import TransformSender


def _joined(names: Iterable[str]) -> str:
    """Return names for people, those that are the same once."""
    return ', '.join(dict.fromkeys(names))


def gather(
    config: LocalizerNodeConfig,
    *,
    keeper: MapKeeper | None,
    inputs: Sequence[ImageInputs],
    work: FrameWorker | None,
    follower: PoseFollower | None,
    outputs: Outputs | None,
    sender: TransformSender | None,
) -> NodeFacts:
    """Return the facts that the parts know; those that are missing leave the defaults."""
    facts = NodeFacts(
        image_topic=_joined(names.base_image_topic for names in config.cameras),
        info_topic=_joined(names.info_topic for names in config.cameras),
        map_path=config.map,
        tf_mode=config.tf_mode,
    )
    if inputs:
        facts.image_topic = _joined(one.topic for one in inputs)
        facts.transport = _joined(one.transport for one in inputs)
        facts.info_topic = _joined(one.info_topic for one in inputs)
        facts.lost = sum(one.lost for one in inputs)
        facts.publishers = sum(one.publishers() for one in inputs)
    if work is not None:
        facts.received, facts.dropped = work.counts
        facts.input_problem = work.info_problem
        facts.calibration_problem = work.calibration_problem
        if work.rate is not None:
            facts.budget = '' if work.rate.budget.is_full else str(work.rate.budget)
            facts.rate_missed = work.rate.exhausted
    if keeper is not None:
        facts.map_problem, facts.reloading = keeper.problem, keeper.reloading
        facts.reloads = keeper.reloads
        if keeper.loaded is not None:
            facts.map_version = keeper.loaded.version
            facts.map_frame = keeper.loaded.map_frame
            facts.device = keeper.loaded.device
            facts.metric = keeper.loaded.metric
    if follower is not None and follower.resolved is not None:
        resolved = follower.resolved
        facts.pose_frame, facts.tf_mode = resolved.body, resolved.tf_mode
        facts.transform_problem = resolved.problem
    if outputs is not None:
        facts.subscribers = outputs.subscribers()
    if sender is not None:
        facts.transforms_sent, facts.transforms_missed = sender.sent, sender.missed
        facts.transforms_resent = sender.resent
        facts.transform_end, facts.conflict = sender.ended, sender.conflict
    return facts
