"""The functions of the public Python API; `import d2s_ros` offers them lazily.

They take paths where the functions that they call take opened inputs, and add nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2s_ros.map_building.pipeline import BuildResult
    from d2s_ros.map_update.pipeline import UpdateResult
    from d2s_ros.maps.scene_map import SceneMap

Path = str | os.PathLike[str]


def load_map(map_path: Path) -> SceneMap:
    """Open the live version of a map folder, or the folder of one version.

    Args:
        map_path: Folder that `build_map` or `d2s build-map` wrote.

    Returns:
        The map: manifest and scene model. `Localizer.from_map` takes it or its path.

    Raises:
        MapFormatError: the map is missing, damaged or of an unknown format.

    Examples:
        >>> from d2s_ros import load_map
        >>> load_map('missing')
        Traceback (most recent call last):
        ...
        d2s_ros.errors.MapFormatError: there is no map at missing; ...
    """
    from d2s_ros.maps.scene_map import SceneMap

    return SceneMap.open(map_path)


def build_map(
    source: Path,
    map_path: Path,
    *,
    budget: str = 'standard',
    features: str | None = None,
    poses: Path | None = None,
    calibration: Path | None = None,
    image_list: Path | None = None,
    device: str = 'auto',
    progress: bool = False,
) -> BuildResult:
    """Build a map from a log and make it the live version of a map folder.

    Args:
        source: rosbag2 folder or file, video, folder with a COLMAP model, or folder of images.
        map_path: Map folder, new or existing.
        budget: 'quick', 'standard' or 'full'.
        features: 'rootsift', 'superpoint' or 'xfeat', or 'auto' to compare the first two on images
            of the log, as `--features auto` does; None is 'rootsift'.
        poses: TUM file of map_from_camera (metres, optical frame); None takes those of the log.
        calibration: Calibration file to use instead of what the log has.
        image_list: Text file with the names of the images to use, for folders.
        device: 'auto', 'cpu' or 'cuda'.
        progress: Show progress bars.

    Returns:
        The map that was written, the reconstruction it was made from, and why images were left out.

    Raises:
        InputError: the log or its poses cannot be used.
        MapFormatError: `map_path` holds something else.
    """
    from dataclasses import replace

    from d2s_ros.data.sources import LogOptions, open_source
    from d2s_ros.features.types import FeatureConfig
    from d2s_ros.map_building import pipeline
    from d2s_ros.map_building.config import budget as budget_of

    options = LogOptions(calibration=None if calibration is None else os.fspath(calibration))
    opened = open_source(
        source, poses=poses, image_list=image_list, options=options, for_mapping=True
    )
    auto = features == 'auto'
    chosen = None if features is None or auto else FeatureConfig(name=features)
    config = replace(budget_of(budget, features=chosen), compare_features=auto)
    return pipeline.build_map(opened, os.fspath(map_path), config, device=device, progress=progress)


def update_map(
    map_path: Path,
    logs: Sequence[Path],
    *,
    dry_run: bool = False,
    device: str = 'auto',
    progress: bool = False,
) -> UpdateResult:
    """Update a map from logs without labels; poses that a log may hold are not used.

    A new version goes live only if it localizes old and new frames at least as well.

    Args:
        map_path: Map folder with update data.
        logs: rosbag2 logs, or folders of images with a calibration.
        dry_run: Do everything but write to the map.
        device: 'auto', 'cpu' or 'cuda'.
        progress: Show progress bars.

    Returns:
        The verdict with its reasons, and figures of both versions.

    Raises:
        InputError: no log can be read.
        MapFormatError: the map is missing, damaged or has no update data.
    """
    from d2s_ros.map_update import pipeline

    return pipeline.update_map(
        map_path, logs, dry_run=dry_run, device=device, show_progress=progress
    )


def evaluate(
    map_path: Path,
    queries: Path,
    *,
    truth: Path | None = None,
    image_list: Path | None = None,
    device: str = 'auto',
    progress: bool = False,
) -> dict[str, Any]:
    """Localize queries whose poses are known and compare.

    Args:
        map_path: Map folder.
        queries: Log or folder of query images.
        truth: TUM file of map_from_camera of the queries; None takes the poses of the log.
        image_list: Text file with the names of the images to use, for folders.
        device: 'auto', 'cpu' or 'cuda'.
        progress: Show a progress bar.

    Returns:
        Counts, median and 95 % errors (unit of the map, degrees), recalls, size and latency, as
        `d2s evaluate --json` prints them.

    Raises:
        InputError: no query has a true pose.
    """
    from d2s_ros.data.sources import open_source
    from d2s_ros.evaluation.map_evaluation import OURS, evaluate_map, summary
    from d2s_ros.localization.localizer import Localizer

    localizer = Localizer.from_map(map_path, device=device)
    opened = open_source(queries, poses=truth, image_list=image_list)
    return summary(evaluate_map(localizer, opened, pictures=0, progress=progress))[OURS]
