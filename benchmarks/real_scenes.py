"""Real scenes cut into folds of left-out blocks; features, poses, reconstructions and maps kept.

A fold leaves blocks of consecutive images out of a map and asks for them: what a robot sees where
nobody mapped. Two walks have no poses and no calibration. Theirs come of one reconstruction of all
their images, made by this package's matching and pycolmap, with the camera calibrated on the way.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from places import Observed, Places

from d2s_ros.data.array_log import StageLog
from d2s_ros.data.colmap_model import ColmapSource
from d2s_ros.data.frames import Frame
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, FeatureExtractor
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.map_building.config import BuildConfig, budget
from d2s_ros.map_building.scene_model import train_map
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.maps.store import MapStore
from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.colmap_database import pipeline_options, write_database
from d2s_ros.reconstruction.pair_matching import match_pairs, select_pairs
from d2s_ros.reconstruction.pipeline import reconstruct
from d2s_ros.reconstruction.reconstruction import (
    ImageInput,
    Reconstruction,
    ReconstructionConfig,
    pack_reconstruction,
    unpack_reconstruction,
)

#: Focal length over image width that the calibration of a walk starts from.
_FOCAL_GUESS = 0.75


@dataclass(frozen=True)
class RealScene:
    """How a scene is cut.

    Attributes:
        block: Consecutive images that are left out together.
        folds: Every block is in one of so many folds.
        posed: Whether the folder has a COLMAP model.
        images: So many of the first ones are used; 0: all.
    """

    block: int
    folds: int
    posed: bool = True
    images: int = 0


SCENES: dict[str, RealScene] = {
    'walk_loop': RealScene(12, 5, posed=False, images=120),
    'walk_university': RealScene(12, 5, posed=False, images=120),
    'redkitchen': RealScene(10, 5),
    'fox': RealScene(3, 5),
    'castle-P30': RealScene(1, 5),
    'lund_door': RealScene(1, 4),
    'fountain-P11': RealScene(1, 4),
}


class RealScenes:
    """Scenes and their folds.

    Args:
        data: Folder of the scenes.
        work: Folder of what is kept.
    """

    def __init__(self, data: Path, work: Path) -> None:
        self.data, self.work = data, work
        self.places = Places(work)
        self.extractor: FeatureExtractor = create_extractor(FeatureConfig())
        self._observed: dict[str, list[Observed]] = {}

    def observed(self, scene: str) -> list[Observed]:
        """Return all images of a scene with features and reference poses, in order."""
        if scene not in self._observed:
            if SCENES[scene].posed:
                source = ColmapSource(self.data / scene)
                found = self.places.extracted(scene, source, self.extractor)
            else:
                found = self._walk(scene)
            self._observed[scene] = sorted(found, key=lambda frame: frame.name)
        return self._observed[scene]

    def split(self, scene: str, fold: int) -> tuple[list[Observed], list[Observed]]:
        """Return the mapping images and the left-out ones of a fold."""
        cut = SCENES[scene]
        mapping: list[Observed] = []
        left_out: list[Observed] = []
        for index, frame in enumerate(self.observed(scene)):
            (left_out if index // cut.block % cut.folds == fold else mapping).append(frame)
        return mapping, left_out

    def reconstruction(self, scene: str, fold: int) -> Reconstruction:
        """Return the points of a fold's mapping images."""
        images = _inputs(self.split(scene, fold)[0])
        path = self.work / 'reconstructions' / f'{scene}_{fold}.npz'
        if not path.exists():
            found = reconstruct(images)
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = pack_reconstruction(found, images)
            np.savez(path, **arrays)
        with np.load(path) as stored:
            return unpack_reconstruction(dict(stored), images)

    def map(
        self, scene: str, fold: int, variant: str, config: BuildConfig | None = None
    ) -> SceneMap:
        """Return the map of a fold.

        Args:
            scene, fold: Which.
            variant: Name of what the map is made by; maps of it are used again.
            config: Options.
        """
        folder = self.work / 'maps' / variant / f'{scene}_{fold}'
        if not (folder / 'current').exists():
            reconstruction = self.reconstruction(scene, fold)
            scene_map, metrics = train_map(
                reconstruction, self.extractor, config or budget('standard')
            )
            manifest = replace(scene_map.manifest, metrics=metrics)
            MapStore(folder).write(replace(scene_map, manifest=manifest), None)
        return SceneMap.open(folder)

    def _walk(self, scene: str) -> list[Observed]:
        """Return the images of a walk that its reconstruction placed, with its camera."""
        path = self.work / 'walks' / f'{scene}.json'
        guessed = self.places.extracted(scene, frames(self.data / scene), self.extractor)
        guessed = guessed[: SCENES[scene].images or None]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(_calibrated_poses(guessed, path.with_suffix('.matches'))))
        known = json.loads(path.read_text())
        camera = Camera.from_dict(known['camera'])
        return [
            replace(frame, camera=camera, truth=RigidTransform.from_tum(known['poses'][frame.name]))
            for frame in guessed
            if frame.name in known['poses']
        ]


def _inputs(frames: Sequence[Observed]) -> list[ImageInput]:
    return [
        ImageInput(frame.name, index, frame.camera, frame.truth, frame.features)
        for index, frame in enumerate(frames)
    ]


def frames(folder: Path) -> Any:
    """Yield the images of a walk with a guessed camera."""
    import cv2

    for path in sorted((folder / 'images').glob('*.jpg')):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        height, width = image.shape
        focal = _FOCAL_GUESS * width
        camera = Camera('pinhole', width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
        yield Frame(path.stem, 0, np.asarray(image, np.uint8), camera, None)


def _calibrated_poses(frames: list[Observed], matches_log: Path) -> dict[str, Any]:
    """Reconstruct images without poses, and calibrate their one camera on the way.

    Once with the guessed camera, whose adjustment finds focal length and distortion, and once more
    with that camera: images that a wrong camera lost are placed then.
    """
    images = [replace(image, map_from_camera=None) for image in _inputs(frames)]
    config = ReconstructionConfig(retrieval_neighbours=6)
    pairs = select_pairs(images, config)
    # The frames just before and after are not all among the most similar ones.
    for step in (2, 3, 5, 8):
        pairs += [(i, i + step) for i in range(len(images) - step)]
    ideal = [image.camera.undistort(image.features.keypoints) for image in images]
    stage = StageLog(matches_log)
    matches = match_pairs(images, ideal, sorted(set(pairs)), config, stage, guided=False)
    camera = images[0].camera
    for refined in (True, False):
        images = [replace(image, camera=camera) for image in images]
        model = _mapped(images, matches, config, refined=refined)
        print(f'{model.num_reg_images()} of {len(images)} images placed', flush=True)
        if refined:
            camera = Camera.from_colmap(
                'RADIAL', camera.width, camera.height, next(iter(model.cameras.values())).params
            )
            print(camera, flush=True)
    poses = {}
    for image in model.images.values():
        if image.has_pose:
            pose = RigidTransform.from_matrix(image.cam_from_world().matrix()).inverse()
            poses[frames[int(image.name)].name] = list(pose.to_tum())
    return {'camera': camera.to_dict(), 'poses': poses}


def _mapped(
    images: list[ImageInput],
    matches: dict[tuple[int, int], Any],
    config: ReconstructionConfig,
    *,
    refined: bool,
) -> Any:
    """Return pycolmap's largest model; `refined`: with its camera adjusted to RADIAL."""
    pycolmap = import_pycolmap()
    ideal = [image.camera.undistort(image.features.keypoints) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        database_path = Path(folder) / 'database.db'
        write_database(images, ideal, matches, database_path, verify=True)
        options = pipeline_options(config.min_angle_deg)
        options.mapper.filter_max_reproj_error = config.max_reprojection_error_unposed_px
        options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.3
        options.ba_global_max_refinements = 2
        options.ba_global_max_num_iterations = 25
        options.ba_refine_focal_length = refined
        models = pycolmap.incremental_mapping(str(database_path), folder, folder, options)
    model = max(models.values(), key=lambda candidate: candidate.num_reg_images())
    if refined:
        camera = next(iter(model.cameras.values()))
        fx, fy, cx, cy = camera.params
        camera.model = pycolmap.CameraModelId.RADIAL
        camera.params = [0.5 * (fx + fy), cx, cy, 0.0, 0.0]
        adjustment = pycolmap.BundleAdjustmentOptions()
        adjustment.refine_extra_params = True
        pycolmap.bundle_adjustment(model, adjustment)
    return model
