"""Every version of a map checked to the last byte."""

from __future__ import annotations

import os
from pathlib import Path

from d2s_ros.errors import MapFormatError
from d2s_ros.maps.files import MANIFEST_FILE, UPDATE_FILE, version_folder
from d2s_ros.maps.manifest import read_checked
from d2s_ros.maps.scene_map import SceneMap


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Check every version of a map folder, or one version; return what is wrong, empty if nothing.

    Stripped update data is not an error.
    """
    root = Path(path).expanduser()
    if (root / MANIFEST_FILE).exists():
        folders = [root]
        problems: list[str] = []
    else:
        problems = []
        try:
            version_folder(root)
        except MapFormatError as error:
            problems.append(str(error))
        versions = root / 'versions'
        folders = sorted(
            entry
            for entry in (versions.iterdir() if versions.is_dir() else ())
            if not entry.name.startswith('.')
        )
    for folder in folders:
        try:
            scene_map = SceneMap.open(folder)
            if folder != root and scene_map.manifest.version != folder.name:
                problems.append(f'{folder} holds version {scene_map.manifest.version}')
            if UPDATE_FILE in scene_map.manifest.files and (folder / UPDATE_FILE).exists():
                read_checked(folder, UPDATE_FILE, scene_map.manifest)
        except MapFormatError as error:
            problems.append(str(error))
    return problems
