"""Poses of the camera in a log: of a topic, or of the transforms from the map to the camera."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.bag_messages import (
    ODOMETRY,
    POSE,
    POSE_WITH_COVARIANCE,
    TF,
    clean_frame,
    deserialize,
    rigid,
    stamp_ns,
)
from d2s_ros.data.bag_storage import Log, Topic
from d2s_ros.data.bag_topics import listing
from d2s_ros.data.tum import MAX_POSE_DISTANCE_NS, Trajectory, format_stamp
from d2s_ros.errors import BagError
from d2s_ros.geometry.transforms import RigidTransform, pose_error

_logger = logging.getLogger(__name__)

#: The frame whose poses a map is built from.
MAP_FRAME = 'map'
#: Transforms are interpolated over gaps of this length, the cache of a tf2 buffer.
_TF_CACHE_NS = 10 * 10**9
#: A chain of transforms longer than this has a loop.
_MAX_CHAIN = 100
#: A source of poses that covers this share of the images is taken before a better one after it.
_ENOUGH = 0.5
#: Metres and degrees within which a transform does not move.
_SAME = 1e-4
#: Images at which two sources of poses are compared.
_MAX_COMPARED = 100
_POSE_KINDS = (POSE, POSE_WITH_COVARIANCE, TF, ODOMETRY)

PoseLookup = Callable[[int], RigidTransform | None]


@dataclass(frozen=True, eq=False)
class PoseSource:
    """Where poses of a log come from.

    Attributes:
        name: Topic, or '/tf' for transforms.
        at: map_from_camera at a time in ns; None where it is not known.
        span: First and last time in ns that it covers; None if it is fixed.
    """

    name: str
    at: PoseLookup
    span: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class FoundPoses:
    """The source of poses that was chosen, or why none is used."""

    source: PoseSource | None
    problem: str = ''


def find_poses(
    path: Path,
    log: Log,
    camera_frame: str,
    pose_topic: str | None,
    image_stamps: Callable[[], NDArray[np.int64]],
) -> FoundPoses:
    """Choose the poses of a log.

    Without `pose_topic`, the first kind counts that covers half of the images: PoseStamped,
    PoseWithCovarianceStamped, TF below `map`, Odometry; else the source that covers most. Where
    the transforms show that a topic gives poses of another body on the robot, they are used.

    Args:
        path: The log, for messages.
        log: The log.
        camera_frame: frame_id of the images.
        pose_topic: Topic to use, or None to choose.
        image_stamps: Gives the times of the images in ns, (N,).

    Raises:
        BagError: `pose_topic` does not exist, or gives no poses of the camera.
    """
    topics = {topic.name: topic for topic in log.topics if topic.count}
    transforms = TransformTree(log, [name for name, topic in topics.items() if topic.type == TF])
    if pose_topic is not None:
        if pose_topic not in topics:
            known = listing(list(topics.values()), 'topics')
            raise BagError(f'{path} has no messages on {pose_topic}; {known}')
        if topics[pose_topic].type not in _POSE_KINDS:
            raise BagError(f'{pose_topic} is a {topics[pose_topic].type}, which gives no poses')
        found = _source(log, topics[pose_topic], transforms, camera_frame)
        if isinstance(found, str):
            raise BagError(f'{path}: {found}')
        return FoundPoses(found, _why_uncovered([found], image_stamps()))
    candidates: list[PoseSource] = []
    problems: list[str] = []
    kinds: list[str] = []
    for kind in _POSE_KINDS:
        of_kind = [topic for topic in topics.values() if topic.type == kind]
        if kind == TF and of_kind:
            # All topics of transforms make one tree.
            of_kind = of_kind[:1] if transforms.reaches(MAP_FRAME, camera_frame) else []
        for topic in of_kind:
            found = _source(log, topic, transforms, camera_frame)
            if isinstance(found, str):
                problems.append(found)
            else:
                candidates.append(found)
                kinds.append(kind)
    if not candidates:
        return FoundPoses(None, '; '.join(problems[:3]))
    stamps = image_stamps()
    shares = [coverage(source, stamps) for source in candidates]
    enough = min(_ENOUGH, max(shares))
    first = next(index for index, share in enumerate(shares) if share >= enough)
    rivals = [
        source.name
        for source, share, kind in zip(candidates, shares, kinds, strict=True)
        if share >= enough and kind == kinds[first]
    ]
    if not shares[first]:
        return FoundPoses(None, _why_uncovered(candidates, stamps))
    if len(rivals) > 1:
        return FoundPoses(
            None,
            f'several pose topics ({", ".join(sorted(rivals))}); choose one with --pose-topic',
        )
    if kinds[first] in (POSE, POSE_WITH_COVARIANCE) and TF in kinds[first:]:
        transforms_at = kinds.index(TF)
        offset = _fixed_offset(candidates[first], candidates[transforms_at], stamps)
        if offset:
            # Such messages do not say whose poses they are; transforms do.
            _logger.warning(
                '%s: %s gives poses of another body than the camera (%s from it, by the '
                'transforms); those of %s are used; choose with --pose-topic',
                path,
                candidates[first].name,
                offset,
                candidates[transforms_at].name,
            )
            return FoundPoses(candidates[transforms_at])
    for source, share in zip(candidates[:first], shares[:first], strict=True):
        _logger.warning(
            '%s: poses of %s cover %d of %d images; those of %s are used',
            path,
            source.name,
            round(share * len(stamps)),
            len(stamps),
            candidates[first].name,
        )
    return FoundPoses(candidates[first])


def coverage(source: PoseSource, stamps: NDArray[np.int64]) -> float:
    """Return the share of images that a source gives a pose for."""
    if not len(stamps):
        return 0.0
    return sum(source.at(int(stamp)) is not None for stamp in stamps) / len(stamps)


def _fixed_offset(source: PoseSource, transforms: PoseSource, stamps: NDArray[np.int64]) -> str:
    """Return how far apart two bodies are that move together; empty if they are one, or do not."""
    pairs = [
        (source.at(int(stamp)), transforms.at(int(stamp)))
        for stamp in stamps[:: max(1, len(stamps) // _MAX_COMPARED)]
    ]
    offsets = [a.inverse() @ b for a, b in pairs if a is not None and b is not None]
    if len(offsets) < 3:
        return ''
    middle = offsets[len(offsets) // 2]
    spread = np.array([pose_error(offset, middle) for offset in offsets])
    metres, degrees = pose_error(middle, RigidTransform.identity())
    fixed = bool((np.percentile(spread, 80, axis=0) < (0.05, 2.0)).all())
    if not fixed or (metres < 0.02 and degrees < 2.0):
        return ''
    return f'{metres:.2f} m and {degrees:.0f} deg'


def _why_uncovered(sources: Sequence[PoseSource], stamps: NDArray[np.int64]) -> str:
    """Return why sources give no pose for any image; empty if one does."""
    if not len(stamps) or any(coverage(source, stamps) for source in sources):
        return ''
    first, last = int(stamps.min()), int(stamps.max())
    parts = []
    for source in sources[:3]:
        if source.span is None:
            parts.append(f'{source.name} has no poses')
            continue
        begin, end = source.span
        apart = max(begin - last, first - end, 0)
        text = f'those of {source.name} from {format_stamp(begin)} to {format_stamp(end)}'
        if apart > MAX_POSE_DISTANCE_NS:
            text += f', {apart / 1e9:.1f} s apart (do the clocks agree?)'
        parts.append(text)
    return (
        f'no image has a pose: images are from {format_stamp(first)} to {format_stamp(last)}, '
        f'{"; ".join(parts)}; poses of a topic count between two that are less than '
        f'{MAX_POSE_DISTANCE_NS / 1e9:g} s from the image, transforms over gaps of '
        f'{_TF_CACHE_NS / 1e9:g} s; choose others with --pose-topic or --poses'
    )


def _source(
    log: Log, topic: Topic, transforms: TransformTree, camera_frame: str
) -> PoseSource | str:
    """Return the poses of a topic, or why it gives none."""
    if topic.type == TF:
        if not transforms.reaches(MAP_FRAME, camera_frame):
            return (
                f'no chain of transforms from {MAP_FRAME} to the frame of the images '
                f'({camera_frame!r})'
            )
        lookup = functools.partial(transforms.lookup, MAP_FRAME, camera_frame)
        name = topic.name.replace('tf_static', 'tf')
        return PoseSource(name, lookup, transforms.span(MAP_FRAME, camera_frame))
    samples: dict[int, RigidTransform] = {}
    children: set[str] = set()
    for _name, received_ns, data in log.messages([topic.name]):
        message = deserialize(data, topic.type)
        if message is None:
            continue
        pose = message.pose if topic.type == POSE else message.pose.pose
        transform = rigid(pose.position, pose.orientation)
        if transform is None:
            continue
        if topic.type == ODOMETRY:
            children.add(clean_frame(message.child_frame_id))
        samples[stamp_ns(message.header) or received_ns] = transform
    if not samples:
        return f'{topic.name} holds no valid poses'
    if len(children) > 1:
        return f'{topic.name} mixes poses of the frames {", ".join(sorted(map(repr, children)))}'
    trajectory = _trajectory(samples)
    child = children.pop() if children else None
    camera = clean_frame(camera_frame)
    if child == '':
        return (
            f'{topic.name} does not say whose poses it gives: its child_frame_id is empty; record '
            'it with child_frame_id, use transforms (--pose-topic /tf), or give poses of the '
            'camera with --poses'
        )
    if child is not None and child != camera:
        carried = {}
        fixed = transforms.fixed(child, camera)
        for stamp, pose in zip(trajectory.stamps_ns.tolist(), trajectory.poses, strict=True):
            # A camera on a mast that turns is where it was at that time.
            child_from_camera = fixed or transforms.lookup(child, camera, stamp)
            if child_from_camera is not None:
                carried[stamp] = pose @ child_from_camera
        if not carried:
            return (
                f'{topic.name} gives poses of {child!r}, but the transform from there '
                f'to the camera ({camera!r}) is not in the log; record /tf_static'
            )
        trajectory = _trajectory(carried)
    span = (int(trajectory.stamps_ns[0]), int(trajectory.stamps_ns[-1]))
    return PoseSource(topic.name, trajectory.at, span)


@dataclass
class _Edge:
    """The transforms of one child frame to its parent: fixed, or sampled over time."""

    parent: str
    fixed: RigidTransform | None
    trajectory: Trajectory | None

    def constant(self) -> RigidTransform | None:
        """Return the transform if it is the same in the whole log.

        Some drivers send what is fixed on /tf, again and again.
        """
        if self.fixed is not None or self.trajectory is None:
            return self.fixed
        first, *others = self.trajectory.poses
        same = all(max(pose_error(first, other)) < _SAME for other in others)
        return first if same and others else None


class TransformTree:
    """What /tf and /tf_static say; parent_from_child per child frame."""

    def __init__(self, log: Log, topics: Sequence[str]) -> None:
        """Read the transforms of some topics."""
        self._edges: dict[str, _Edge] = {}
        samples: dict[str, tuple[str, dict[int, RigidTransform]]] = {}
        ignored: set[str] = set()
        for topic, received_ns, data in log.messages(topics) if topics else ():
            message = deserialize(data, TF)
            for item in message.transforms if message is not None else ():
                parent, child = clean_frame(item.header.frame_id), clean_frame(item.child_frame_id)
                transform = rigid(item.transform.translation, item.transform.rotation)
                if transform is None or not parent or not child:
                    continue
                if topic.endswith('tf_static'):
                    self._edges[child] = _Edge(parent, transform, None)
                    continue
                known = samples.setdefault(child, (parent, {}))
                if known[0] == parent:
                    known[1][stamp_ns(item.header) or received_ns] = transform
                else:
                    ignored.add(f'{parent} to {child}')
        for child, (parent, found) in samples.items():
            if child not in self._edges:
                self._edges[child] = _Edge(parent, None, _trajectory(found))
        if ignored:
            _logger.warning('frames with several parents; ignored: %s', ', '.join(sorted(ignored)))

    def reaches(self, target: str, source: str) -> bool:
        """Whether `target` is an ancestor of `source`."""
        return self._chain(clean_frame(target), clean_frame(source)) is not None

    def lookup(self, target: str, source: str, time_ns: int) -> RigidTransform | None:
        """Return target_from_source at a time, None if a part of the chain does not cover it.

        Between samples each transform is interpolated as tf2 does, however rarely it is sent.
        """
        chain = self._chain(clean_frame(target), clean_frame(source))
        if chain is None:
            return None
        result = RigidTransform.identity()
        for edge in chain:
            part = edge.fixed
            if part is None and edge.trajectory is not None:
                part = edge.trajectory.at(time_ns, max_gap_ns=_TF_CACHE_NS)
            if part is None:
                return None
            result = part @ result
        return result

    def fixed(self, target: str, source: str) -> RigidTransform | None:
        """Return target_from_source if the chain between them does not move in the log."""
        chain = self._chain(clean_frame(target), clean_frame(source))
        result = RigidTransform.identity()
        for edge in chain or ():
            part = edge.constant()
            if part is None:
                return None
            result = part @ result
        return result if chain else None

    def span(self, target: str, source: str) -> tuple[int, int] | None:
        """Return the time in ns that all transforms of a chain cover; None if all are fixed."""
        moving = [
            edge.trajectory.stamps_ns
            for edge in self._chain(clean_frame(target), clean_frame(source)) or ()
            if edge.trajectory is not None
        ]
        if not moving:
            return None
        return max(int(stamps[0]) for stamps in moving), min(int(stamps[-1]) for stamps in moving)

    def _chain(self, target: str, source: str) -> list[_Edge] | None:
        chain: list[_Edge] = []
        frame = source
        while frame != target:
            edge = self._edges.get(frame)
            if edge is None or len(chain) > _MAX_CHAIN:
                return None
            chain.append(edge)
            frame = edge.parent
        return chain


def _trajectory(samples: dict[int, RigidTransform]) -> Trajectory:
    stamps = sorted(samples)
    return Trajectory(np.array(stamps, dtype=np.int64), tuple(samples[stamp] for stamp in stamps))
