"""The seam between scene models and everything that uses them.

A scene model tells of an image where in the map its keypoints lie. Each model is one folder beside
this file with all of its own (network, training, inference, tensors) and one line in `registry`.
Nothing outside that folder asks which model a map has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.array_log import ArrayLog, StageLog
from d2s_ros.data.frames import FrameSource
from d2s_ros.errors import InputError, UsageError
from d2s_ros.features.types import FeatureExtractor, LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.noise import detection_sigma_px
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.scene_models.growth import Growth, UpdateTraining

#: Directions further from the optical axis are all alike to a network: tangent of the angle.
_MAX_TANGENT = 4.0
#: Of the held-out images, the most that an early stop of the training looks at.
MAX_VALIDATION_IMAGES = 16


@dataclass(frozen=True, eq=False)
class View:
    """What one image shows before any scene model is asked; what follows from it is computed once.

    Attributes:
        features: Keypoints of the image, N of them.
        camera: Intrinsics at the size of the image.
        image: (H, W) uint8 grey, for models that look at pixels; None where only features are kept,
            as of mapping images.
    """

    features: LocalFeatures
    camera: Camera
    image: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, image: MappedImage) -> View:
        """Return the view of a mapping image."""
        return cls(image.features, image.camera)

    @cached_property
    def ideal_camera(self) -> Camera:
        """The camera without distortion."""
        return self.camera.ideal

    @cached_property
    def _normalized(self) -> NDArray[np.float64]:
        return self.camera.normalize(self.features.keypoints)

    @cached_property
    def ideal_keypoints(self) -> NDArray[np.float64]:
        """(N, 2) float64 undistorted px of `camera.ideal`, NaN where there is none."""
        camera = self.camera
        return self._normalized * [camera.fx, camera.fy] + [camera.cx, camera.cy]

    @cached_property
    def normalized_points(self) -> NDArray[np.float32]:
        """(N, 2) float32 undistorted x/z, y/z, limited as networks see them; 0 where none."""
        normalized = self._normalized.astype(np.float32)
        normalized[np.isnan(normalized)] = 0.0
        return np.clip(normalized, -_MAX_TANGENT, _MAX_TANGENT)

    @cached_property
    def detection_sigmas(self) -> NDArray[np.float64]:
        """(N,) noise of each keypoint, one axis, over that of a keypoint of scale 1."""
        return detection_sigma_px(self.features.scales)


@dataclass(frozen=True, eq=False)
class SceneCoordinates:
    """Where in the map the N keypoints of a view lie.

    Attributes:
        points_in_map: (N, 3) float64, map frame.
        reliability: (N,) float32 in [0, 1]; higher is better.
        covariances: (N, 3, 3) float64 of each point, unit of the map squared; None if unknown.
        landmark_idx: (N,) int64 row of `Observation.candidates.points_in_map` that a coordinate is
            of; None for models without landmarks. Of several keypoints that show one landmark, only
            the most reliable is used.
    """

    points_in_map: NDArray[np.float64]
    reliability: NDArray[np.float32]
    covariances: NDArray[np.float64] | None = None
    landmark_idx: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """Landmarks that each of the N keypoints of a view may show, best first.

    Attributes:
        landmark_idx: (N, C) int64 rows of `points_in_map`.
        similarity: (N, C) float32, higher is more alike.
        points_in_map: (M, 3) float64 all landmarks of the model.
        point_covariances: (M, 3, 3) float64, unit of the map squared.
    """

    landmark_idx: NDArray[np.int64]
    similarity: NDArray[np.float32]
    points_in_map: NDArray[np.float64]
    point_covariances: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlaceEvidence:
    """How sure a scene model is, apart from any keypoint, that an image shows its place.

    Attributes:
        found: For the image; its unit is the model's.
        chance_median, chance_scale: What images of other places have, and the scale of the
            exponential tail above it.
        least: What is needed whatever chance was measured to find.
    """

    found: float
    chance_median: float
    chance_scale: float
    least: float


@dataclass(frozen=True, eq=False)
class Observation:
    """What a scene model says of a view.

    Attributes:
        view: What was seen. A model that finds keypoints of its own (in `View.image`) returns a
            view of these.
        coordinates: Of the keypoints of `view`.
        candidates: For guided refinement, support and priors; None for models without landmarks.
        place: That the image shows the place; None for models that tell by keypoints alone.
    """

    view: View
    coordinates: SceneCoordinates
    candidates: Candidates | None = None
    place: PlaceEvidence | None = None


class Observer(ABC):
    """A scene model made ready on a device; views do not change it."""

    #: Whether a view is observed from a pose that is known roughly first, see `observe_near`.
    starts_from_priors: ClassVar[bool] = False

    @abstractmethod
    def observe(self, view: View) -> Observation:
        """Return where the keypoints of a view lie."""

    def observe_near(self, view: View, map_from_camera: RigidTransform) -> Observation:
        """Observe a view that was taken about here; what is found needs no less evidence.

        Raises:
            NotImplementedError: where `starts_from_priors` is False.
        """
        raise NotImplementedError('this model observes views as they are')

    @abstractmethod
    def observe_by_chance(self, view: View, rng: np.random.Generator) -> Observation:
        """Observe a view such that every pose found from it is chance.

        Keypoints are recognised as ever, but what they show lies in wrong places: calibration
        measures by this how many inliers chance finds.
        """

    def mapping_view(self, image: MappedImage) -> View:
        """Return the view of an image that the model was made from, with all that it looks at."""
        return View.of(image)

    def observe_without(self, index: int, *, move_points: bool = True) -> Observation:
        """Observe a mapping image as if the model was made without it.

        Args:
            index: The image among those that the model was made from (`BuildContext`,
                `SceneModel.with_mapping`).
            move_points: Also take the image out of the coordinates, not of descriptors alone.

        Raises:
            NotImplementedError: where `SceneModel.leaves_out` is False.
        """
        raise NotImplementedError('this model cannot leave an image out')


@dataclass(frozen=True, eq=False)
class BuildContext:
    """What a scene model is built from, and with.

    Attributes:
        reconstruction: Mapping images with features and poses, and points.
        extractor: Of the map's features.
        options: The options of the model; `BuildConfig` inherits them.
        held_out: Indices of images that must not be trained on.
        calibration_images: Indices of images that calibration will leave out of the model.
        source: The log, for models that need the pixels of the mapping images; None without.
        device: Where networks are trained.
        progress: Show progress bars.
        samples: Where training samples of an interrupted build are kept.
        checkpoint: File of the training's checkpoint; None keeps nothing.
        reliability_threshold: Keypoints below are not given to the pose solver.
    """

    reconstruction: Reconstruction
    extractor: FeatureExtractor
    options: Any
    held_out: Sequence[int] = ()
    calibration_images: Sequence[int] = ()
    source: FrameSource | None = None
    device: str = 'cpu'
    progress: bool = False
    samples: StageLog = field(default_factory=lambda: StageLog(None))
    checkpoint: Path | None = None
    reliability_threshold: float = 0.5


@dataclass(frozen=True, eq=False)
class LabelledView:
    """An image whose keypoints have coordinates that were copied from others.

    Attributes:
        view: The image.
        points_in_map: (N, 3) of each keypoint.
        labelled: (N,) bool; the others have none.
    """

    view: View
    points_in_map: NDArray[np.float64]
    labelled: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Built:
    """A model that was built or updated.

    Attributes:
        model: It can leave out the images it was made from, if its kind can.
        figures: Measured on the way, JSON types; stored in the map.
        sigma_px: Noise of its coordinates in the image, px, one axis, for a keypoint of scale 1;
            None if it is that of the keypoints.
    """

    model: SceneModel
    figures: dict[str, Any]
    sigma_px: float | None = None


class SceneModel(ABC):
    """What a map stores of a scene."""

    #: In manifests (`head`) and options.
    name: ClassVar[str]
    #: How it can be trained, of `--recipe`.
    recipes: ClassVar[tuple[str, ...]] = ('default',)
    #: RANSAC allows at least this much, px at 1000 px focal length.
    min_error_px: ClassVar[float] = 0.0
    #: Whether maps keep what updates need: descriptors, keypoints and poses of mapping images.
    keeps_update_data: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def build(cls, context: BuildContext) -> Built:
        """Make the model of a reconstruction."""

    @classmethod
    def budget(cls, name: str, *, recipe: str, seed: int) -> dict[str, Any]:
        """Return the fields of `BuildConfig` that differ from their defaults in a budget.

        Args:
            name: 'quick', 'standard' or 'full'.
            recipe: One of `recipes`.
            seed: Of the training.
        """
        return {}

    @classmethod
    def join_training(
        cls,
        network_config: dict[str, Any],
        training: dict[str, Any],
        log: ArrayLog,
        samples: Sequence[Sequence[str]],
        held_out: Sequence[str],
        *,
        device: str,
        checkpoint: Path | None,
    ) -> None:
        """Train as the first process of torchrun does, on the samples that it shares.

        The arguments are those of `share_training`, options as JSON types.
        """
        raise InputError(f'the {cls.name} head is trained by one process')

    @property
    @abstractmethod
    def network_config(self) -> dict[str, Any]:
        """The shape of the model as the manifest keeps it (`network`), JSON types."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """How large it is, for people."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return what a map file keeps of the model."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, network_config: dict[str, Any], tensors: Mapping[str, NDArray[Any]]
    ) -> SceneModel:
        """Make the model again from what `network_config` and `tensors` gave.

        Raises:
            KeyError, ValueError, RuntimeError, ConfigError: they do not fit together.
        """

    @abstractmethod
    def scaled(self, factor: float) -> SceneModel:
        """Return the model with all lengths that it stores larger by `factor`."""

    def cropped(self, kept: NDArray[np.bool_]) -> SceneModel:
        """Return the model with some landmarks (M,) alone (InputError: it cannot)."""
        raise InputError(f'maps with the {self.name} head cannot be cropped')

    @abstractmethod
    def observer(self, *, device: str, precision: str, sigma_px: float) -> Observer:
        """Make the model ready to observe views.

        Args:
            device: 'cpu' or 'cuda'.
            precision: 'fp32' computes everything in float32; 'auto' the fastest.
            sigma_px: Noise of a keypoint of scale 1, one axis: covariances are for it.
        """

    @property
    def points_in_map(self) -> NDArray[np.float32]:
        """(M, 3) float32 landmarks; none for models without."""
        return np.zeros((0, 3), np.float32)

    @property
    def extent(self) -> float:
        """Half the width of most of the scene, unit of the map; 0 if unknown."""
        return 0.0

    @property
    def leaves_out(self) -> bool:
        """Whether observers can observe mapping images as if the model was made without them."""
        return False

    def with_mapping(self, reconstruction: Reconstruction) -> SceneModel:
        """Return the model able to leave out the images that it was made from (InputError: not)."""
        raise InputError(
            f'maps with the {self.name} head cannot be updated: no image can be left out of '
            'them, so nothing could judge the update; build a map with landmarks'
        )

    @property
    def used_points(self) -> NDArray[np.int64]:
        """(K,) points of the reconstruction it was made from that the model is made of."""
        return np.empty(0, np.int64)

    def updated(self, growth: Growth, training: UpdateTraining) -> Built:
        """Return the model of a reconstruction that has grown (InputError: it cannot)."""
        raise InputError(f'maps with the {self.name} head cannot be updated')

    def updated_as_published(
        self, views: Sequence[LabelledView], training: UpdateTraining
    ) -> Built:
        """Return the model trained on labels that nobody verified (InputError: it cannot)."""
        raise InputError(f'maps with the {self.name} head cannot be updated')

    def export_onnx(self, extractor: FeatureExtractor, folder: Path) -> dict[str, Any]:
        """Write the networks of the model and of its features as ONNX files, and check them.

        Args:
            extractor: Of the map's features, in float32 on the CPU.
            folder: Made if needed; files of the same name are replaced.

        Raises:
            UsageError: the model cannot be exported, or packages are missing.
            InputError: a file does not compute what PyTorch does.
        """
        raise UsageError('the map has no landmarks; only maps of the landmark head are exported')
