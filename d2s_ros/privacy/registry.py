"""Which kinds of content a map has: one line for each scene model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from d2s_ros.errors import UsageError
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.privacy.contents import (
    Content,
    DepthOnly,
    LandmarkKeys,
    RawDescriptors,
    UpdateData,
)
from d2s_ros.privacy.label_contents import LEVERS, DenseFeatures, LabelReader, Labels
from d2s_ros.scene_models.labels.model import LabelModel
from d2s_ros.scene_models.landmark.model import LandmarkModel

#: Word on the command line to what it stands for.
_KINDS = {
    'depth': 'points without attributes, the floor',
    'keys': 'keys of landmarks',
    'labels': 'labels of all levels',
    'finest': 'labels of the finest level alone, as SegLoc is attacked',
    'coarse': 'labels of all levels but the finest',
    'few': 'labels of all levels, merged to 16 each',
    'sparse': 'labels of one point in eight',
    'update': 'update data',
    'raw': 'descriptors of the photographs themselves, the ceiling of keys',
    'dense': 'dense features of the photographs themselves, the ceiling of labels',
}


def kinds() -> dict[str, str]:
    """Return the words for kinds of content, and what they stand for."""
    return dict(_KINDS)


def _of_landmarks(
    scene_map: SceneMap, update: UpdateData | None, device: str
) -> dict[str, Callable[[], Content]]:
    model = scene_map.model
    assert isinstance(model, LandmarkModel)
    table = model.table
    found: dict[str, Callable[[], Content]] = {
        'depth': DepthOnly,
        'keys': lambda: LandmarkKeys(table),
    }
    if update is not None:
        found['update'] = lambda: update
    found['raw'] = lambda: RawDescriptors(table.keys.shape[1])
    return found


def _of_labels(
    scene_map: SceneMap, update: UpdateData | None, device: str
) -> dict[str, Callable[[], Content]]:
    model = scene_map.model
    assert isinstance(model, LabelModel)
    reader = LabelReader(model, device)
    found: dict[str, Callable[[], Content]] = {
        'depth': DepthOnly,
        **{word: partial(Labels, reader, lever) for word, lever in LEVERS.items()},
    }
    if update is not None:
        found['update'] = lambda: update
    found['dense'] = lambda: DenseFeatures(reader)
    return found


#: By the name of the scene model.
_CONTENTS: dict[
    str, Callable[[SceneMap, UpdateData | None, str], dict[str, Callable[[], Content]]]
] = {'landmark': _of_landmarks, 'labels': _of_labels}


def contents_of(
    scene_map: SceneMap, update: UpdateData | None, wanted: Sequence[str], device: str
) -> list[Content]:
    """Return the kinds of content of a map.

    Args:
        scene_map: The map.
        update: Its update data, if it has any.
        wanted: Kinds; all if empty.
        device: 'cpu' or 'cuda'.

    Raises:
        UsageError: a map without points, which nothing can be projected of.
    """
    head = scene_map.manifest.head
    if head not in _CONTENTS:
        raise UsageError(
            f'maps with the {head} head hold a network and no points; the attack needs points: '
            f'heads with points are {", ".join(_CONTENTS)}'
        )
    found = _CONTENTS[head](scene_map, update, device)
    return [make() for kind, make in found.items() if not wanted or kind in wanted]
