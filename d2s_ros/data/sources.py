"""Open whatever the user calls INPUT."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from d2s_ros.data.bag_storage import (
    is_ros1,
    is_storage_file,
    require_regular,
    storage_files,
)
from d2s_ros.data.bags import BagSource
from d2s_ros.data.camera_guess import guess_camera, guess_camera_of_images
from d2s_ros.data.colmap_model import ColmapSource, find_colmap_model
from d2s_ros.data.frames import FrameSource
from d2s_ros.data.image_folder import (
    ImageFolderSource,
    find_calibration,
    images_of,
    list_images,
    read_calibration,
    select_names,
)
from d2s_ros.data.tum import data_lines
from d2s_ros.data.video import VideoSource, is_video_file
from d2s_ros.errors import InputError, UsageError
from d2s_ros.geometry.cameras import Camera

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogOptions:
    """How logs are read; the same for localizing and for updates.

    Attributes:
        image_topic, camera_info_topic: Topics of a log; found by type if None.
        calibration: Calibration file to use instead of what the input has.
        rectified: The images of the log are rectified: use P of camera_info without distortion.
    """

    image_topic: str | None = None
    camera_info_topic: str | None = None
    calibration: str | None = None
    rectified: bool = False


def open_source(
    path: str | os.PathLike[str],
    *,
    image_list: str | os.PathLike[str] | None = None,
    poses: str | os.PathLike[str] | None = None,
    pose_topic: str | None = None,
    options: LogOptions | None = None,
    partial: bool = False,
    want_poses: bool = True,
    for_mapping: bool = False,
    fallback: Camera | None = None,
) -> FrameSource:
    """Open a rosbag2 log, a video, a folder with a COLMAP model, or a folder of images.

    Args:
        path: Folder, a single .mcap or .db3 file (also .zstd), or a video; ~ is the home folder.
        image_list: Text file with the names of the images to use, one per line (folders only).
        poses: TUM file of map_from_camera (or lines by image name, for folders).
        pose_topic: Topic of the poses of a log; see `find_poses` for None.
        options: Topics and calibration.
        partial: Read what is there of a log that is cut off.
        want_poses: Look for poses in a log; localizing needs none.
        for_mapping: Of a video, take the frames that a map is made of: sharp and well spaced. A
            video or folder without calibration and poses gets a first guess of the camera, which is
            to be refined (`camera_is_guess`).
        fallback: Calibration of videos and folders that have none.

    Raises:
        InputError: nothing usable at `path`, or the input is broken.
        UsageError: an option that does not fit the kind of input.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise InputError(f'{path} does not exist')
    if not root.is_dir():
        require_regular(root)
    options = options or LogOptions()
    names = None if image_list is None else read_image_list(image_list)
    if root.is_file() and is_video_file(root):
        return _open_video(root, names, poses, pose_topic, options, partial, for_mapping, fallback)
    is_log = (
        root.is_file()
        or (root / 'metadata.yaml').is_file()
        or bool(storage_files(root) and not list_images(root))
    )
    if is_log:
        if root.is_file() and not is_storage_file(root) and not is_ros1(root):
            raise InputError(
                f'{path} is neither a rosbag2 file (.mcap, .db3), nor a video, nor a folder; give '
                f'a log, a video or a folder of images'
            )
        if names is not None:
            raise UsageError('an image list selects images of a folder, not of a log')
        camera = None
        if options.calibration is not None:
            camera = read_calibration(options.calibration)
        return BagSource(
            root,
            options.image_topic,
            options.camera_info_topic,
            pose_topic,
            poses,
            camera=camera,
            rectified=options.rectified,
            partial=partial,
            want_poses=want_poses,
        )
    if options.image_topic or options.camera_info_topic or pose_topic:
        raise UsageError(f'{path} is a folder of images: it has no topics to choose')
    if options.calibration is None and find_colmap_model(root) is not None:
        return ColmapSource(root, names, poses)
    if not list_images(root):
        ros1 = sorted(file.name for file in root.glob('*.bag'))
        hint = f'; {ros1[0]} is a ROS 1 bag: convert it with rosbags-convert' if ros1 else ''
        raise InputError(
            f'{path} holds no log (metadata.yaml, .mcap, .db3) and no .jpg or .png images{hint}'
        )
    return _open_folder(root, options, poses, names, for_mapping, fallback)


def _open_video(
    path: Path,
    names: list[str] | None,
    poses: str | os.PathLike[str] | None,
    pose_topic: str | None,
    options: LogOptions,
    partial: bool,
    for_mapping: bool,
    fallback: Camera | None,
) -> VideoSource:
    """Open a video as `open_source` was asked to."""
    if options.image_topic or options.camera_info_topic or pose_topic:
        raise UsageError(f'{path} is a video: it has no topics to choose')
    if names is not None:
        raise UsageError('an image list selects images of a folder, not frames of a video')
    if options.rectified:
        raise UsageError('--rectified is for logs; give a video the calibration of its pictures')
    camera = None if options.calibration is None else read_calibration(options.calibration)
    if camera is None and fallback is not None:
        _say_fallback(path, fallback)
    source = VideoSource(path, camera or fallback, poses, choose=for_mapping, partial=partial)
    if for_mapping and camera is None and poses is None:
        source.guess_camera(guess_camera(*source.size))
    return source


def _open_folder(
    root: Path,
    options: LogOptions,
    poses: str | os.PathLike[str] | None,
    names: list[str] | None,
    for_mapping: bool,
    fallback: Camera | None,
) -> ImageFolderSource:
    """Open a folder of images; without calibration it gets the fallback, or a guess for mapping."""
    if options.calibration is not None or find_calibration(root) is not None:
        return ImageFolderSource(root, options.calibration, poses, names)
    if fallback is not None:
        _say_fallback(root, fallback)
        return ImageFolderSource(root, fallback, poses, names)
    if not for_mapping or poses is not None:
        return ImageFolderSource(root, None, poses, names)
    folder, all_names = images_of(root)
    guess = guess_camera_of_images(folder, select_names(all_names, names, folder))
    source = ImageFolderSource(root, guess, None, names)
    source.camera_is_guess = True
    return source


def _say_fallback(path: Path, camera: Camera) -> None:
    _logger.warning(
        '%s has no calibration: that of the camera the map was made with is used (focal length '
        '%.1f px at %dx%d); for another camera give --calibration',
        path,
        camera.fx,
        camera.width,
        camera.height,
    )


def read_image_list(path: str | os.PathLike[str]) -> list[str]:
    """Read image names, one per line; blank lines and lines that begin with # are skipped.

    Raises:
        InputError: if the file cannot be read or names nothing.
    """
    names = [line for _number, line in data_lines(path)]
    if not names:
        raise InputError(f'{path} names no images')
    return names
