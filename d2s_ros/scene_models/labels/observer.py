"""The pose of an image by labels alone, and which keypoints then show which points.

The images whose pooled labels are most alike say which points may be seen. The pose that most
pairs of these and keypoints with fitting labels agree on is refined, coarse to fine, to where
points lie where the image shows their labels; near it, keypoints are offered the points that
project there and have their labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2s_ros.errors import UsageError
from d2s_ros.features.dense import DenseExtractor, FeaturePyramid
from d2s_ros.geometry.transforms import RigidTransform
from d2s_ros.reconstruction.reconstruction import MappedImage, Reconstruction
from d2s_ros.scene_models.base import Observation, Observer, PlaceEvidence, View
from d2s_ros.scene_models.labels.field import LabelField
from d2s_ros.scene_models.labels.images import LabelImage, Undistorter
from d2s_ros.scene_models.labels.matching import keypoint_pixels, pose_from_labels
from d2s_ros.scene_models.labels.memory import remembered_view
from d2s_ros.scene_models.labels.network import LabelNetwork
from d2s_ros.scene_models.labels.pairing import pair_keypoints
from d2s_ros.scene_models.labels.question import (
    LabelView,
    heads_digest,
    pack_labels,
    view_of_labels,
)
from d2s_ros.scene_models.labels.refinement import refine
from d2s_ros.scene_models.labels.table import POOLED_LEVELS, LabelTable
from d2s_ros.scene_models.leave_out_points import PointsWithoutImages

#: Mapping images that are retrieved, and how many where these give no pose with enough evidence.
_RETRIEVED = (3, 12)
#: Points that a pose is refined on.
_REFINED_ON = 1500
#: Mapping images nearest to a pose, whose points it may show.
_NEAREST = 6
#: A pose is as likely this far from a mapping image as at it, degrees for a distance of its depth.
_DEGREES_OF_DEPTH = 60.0
#: Mapping images of which a build keeps what the heads tell, some 8 MB each.
_KEPT_FIELDS = 64
#: Place evidence that a pose needs, nats. That labels drawn by chance are likelier than chance by a
#: factor of x happens once in x poses (Markov): ten thousand poses are tried, and one image of ten
#: thousand may be wrong. What is measured with other names of the labels is no bound: heads are
#: surer of what they know, so that wrong names are worse than images of other places.
LEAST_EVIDENCE = float(np.log(1e8))
#: One point counts in a cell of this size, the nearest to the camera: neighbours tell the same.
_CELL_PX = 16
#: Shares of points that may be seen as their labels say; the others are hidden, or seen from too
#: far aside for the heads. All are tried, each as likely.
_SHARES_SEEN = np.linspace(0.1, 0.9, 9)


@dataclass(frozen=True, eq=False)
class MappingView(View):
    """The view of a mapping image; `index` says which."""

    index: int = -1


@dataclass(frozen=True, eq=False)
class LabelPose:
    """A pose found by labels.

    Attributes:
        camera_from_map: The pose.
        points: (P,) points that may be seen there.
        evidence: That it is no chance, see `place_evidence`.
    """

    camera_from_map: RigidTransform
    points: NDArray[np.int64]
    evidence: float


@dataclass(frozen=True, eq=False)
class MappingImages:
    """What is kept of a build, to leave images out of retrieval.

    Attributes:
        reconstruction: What the map was made from.
        images: By the index of the mapping image; of those that calibration asks about.
        points: To leave images out of where points are; None leaves them where they are.
        probabilities: What the heads tell of some of them, in half precision: several questions
            are asked about each.
    """

    reconstruction: Reconstruction
    images: dict[int, LabelImage]
    points: PointsWithoutImages | None = None
    probabilities: dict[int, list[NDArray[np.float16]]] = dataclass_field(default_factory=dict)

    def keep(self, index: int, probabilities: list[NDArray[np.float32]]) -> None:
        """Keep what the heads tell of an image, while there is room."""
        if len(self.probabilities) < _KEPT_FIELDS:
            self.probabilities[index] = [values.astype(np.float16) for values in probabilities]


class LabelObserver(Observer):
    """Labels on a device.

    Args:
        table: Of the map.
        network: Heads; read only.
        dense: Dense features, on `device`.
        chance: Median and scale of what `place_evidence` is by chance.
        sigma_px: Noise of a keypoint of scale 1.
        device: 'cpu' or 'cuda'.
        mapping: To leave mapping images out; None where it is not known.
        memory: To leave out mapping images that are only remembered; None without.
    """

    starts_from_priors = True

    def __init__(
        self,
        table: LabelTable,
        network: LabelNetwork,
        dense: DenseExtractor,
        chance: tuple[float, float],
        sigma_px: float,
        device: str,
        mapping: MappingImages | None,
        memory: Reconstruction | None = None,
    ) -> None:
        self._memory = memory
        self._table, self._dense, self._chance = table, dense, chance
        if device != 'cpu':
            clone = LabelNetwork(network.config, dense.channels)
            clone.load_state_dict(network.state_dict())
            network = clone.to(device)
        self._network = network.eval()
        self._undistorter = Undistorter(network.config.max_size)
        self._mapping = mapping
        self._sigma_px = sigma_px
        self._covariances = table.covariances.astype(np.float64) * sigma_px**2

    def mapping_view(self, image: MappedImage) -> View:
        """Return the view of a mapping image with the pixels that were kept of it."""
        if self._mapping is None:
            raise UsageError('the pixels of mapping images are not kept with a map of labels')
        for index in self._mapping.images:
            if self._mapping.reconstruction.images[index].name == image.name:
                return MappingView(image.features, image.camera, index=index)
        raise UsageError(f'nothing is kept of the mapping image {image.name}')

    def observe(self, view: View) -> Observation:
        """Find the pose by labels, and offer keypoints the points that they may show."""
        return self._observe(view, self._table)

    def observe_near(self, view: View, map_from_camera: RigidTransform) -> Observation:
        """Observe from a pose that is known roughly: nothing is retrieved or searched."""
        field = self.field(view)
        start = map_from_camera.inverse()
        return self.observation(
            view, field, self._table, self._finish(field, self._table, start, None)
        )

    def question(self, view: View) -> dict[str, NDArray[Any]]:
        """Return the likeliest label of every place."""
        return pack_labels(self.field(view), self._network.config, heads_digest(self._network))

    def asked(self, view: View, sent: Mapping[str, NDArray[Any]]) -> View:
        """Return the view whose likeliest labels were sent."""
        return view_of_labels(view, sent, self._network.config, heads_digest(self._network))

    def observe_by_chance(self, view: View, rng: np.random.Generator) -> Observation:
        """Observe with the names of all labels exchanged.

        What lies near each other in the map still has labels that are alike, so that chance finds
        as much structure as it does in another place.
        """
        count = self._network.config.num_labels
        labels = self._table.labels.copy()
        for level in range(labels.shape[1]):
            labels[:, level] = rng.permutation(count).astype(np.uint8)[labels[:, level]]
        return self._observe(view, replace(self._table, labels=labels))

    def observe_without(self, index: int, *, move_points: bool = True) -> Observation:
        """Observe a mapping image as if it could not be retrieved.

        Heads and labels keep what they learned from it, points with `move_points` False as well.
        """
        if self._memory is not None:
            image = self._memory.images[index]
            view = remembered_view(self._table, self._network.config, image)
            return self._observe(view, self._table, left_out=index)
        assert self._mapping is not None
        image = self._mapping.reconstruction.images[index]
        table = self._table
        if move_points and self._mapping.points is not None:
            points, covariances, gone = self._mapping.points.without(
                index, table.points_in_map, table.covariances
            )
            table = replace(table, points_in_map=points, covariances=covariances).unseen(gone)
        return self._observe(self.mapping_view(image), table, left_out=index)

    def field(self, view: View) -> LabelField:
        """Return what a view says of labels at every place."""
        if isinstance(view, LabelView) and view.field is not None:
            return view.field
        if isinstance(view, MappingView):
            return self._mapping_field(view.index)
        if view.image is None:
            raise UsageError('maps of labels localize images; features alone are not enough')
        return self.field_of(self._undistorter(view.image, view.camera))

    def _mapping_field(self, index: int) -> LabelField:
        assert self._mapping is not None
        image = self._mapping.images[index]
        known = self._mapping.probabilities.get(index)
        if known is None:
            found = self.probabilities(image)
            self._mapping.keep(index, found)
        else:
            found = [values.astype(np.float32) for values in known]
        return self.field_from(found, image)

    def field_of(self, image: LabelImage) -> LabelField:
        """Return what a label image says of labels at every place."""
        return self.field_from(self.probabilities(image), image)

    def field_from(self, probabilities: list[NDArray[np.float32]], image: LabelImage) -> LabelField:
        """Return the field of what `probabilities` told of an image."""
        return LabelField.of(probabilities, self._network.config.levels, image.camera)

    @torch.inference_mode()
    def probabilities(
        self, image: LabelImage, features: FeaturePyramid | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the probability (h, w, K) of the labels of each level in a label image.

        Args:
            image: The image.
            features: Its dense features, where they are known.
        """
        if features is None:
            features = self._dense.maps(image.grey)
        probabilities = self._network.dense(features)
        strides = self._network.config.levels
        height, width = image.grey.shape
        return [
            probability[: -(-height // stride), : -(-width // stride)].cpu().numpy()
            for probability, stride in zip(probabilities, strides, strict=True)
        ]

    def find_pose(
        self, field: LabelField, view: View, table: LabelTable, left_out: int | None = None
    ) -> LabelPose:
        """Return the best pose for what an image says of labels."""
        similarity = table.unit_vectors @ field.pooled(POOLED_LEVELS)
        if left_out is not None:
            similarity[left_out] = -np.inf
        order = [
            int(index) for index in np.argsort(-similarity, kind='stable') if index != left_out
        ]
        pixels = keypoint_pixels(field, view)
        best: LabelPose | None = None
        for count in _RETRIEVED:
            also = order[:count]
            pose = pose_from_labels(field, pixels, table.points.at(table.seen_by_any(also)))
            if pose is not None:
                found = self._finish(field, table, pose, left_out)
                if best is None or found.evidence > best.evidence:
                    best = found
            if len(also) == len(order) or (best and best.evidence >= LEAST_EVIDENCE):
                break
        if best is None:
            start = order[0] if order else 0
            return LabelPose(table.poses[start], table.seen_by(start), 0.0)
        return best

    def _finish(
        self, field: LabelField, table: LabelTable, pose: RigidTransform, left_out: int | None
    ) -> LabelPose:
        """Refine a pose coarse to fine, with the points that images near it see."""
        count = len(field.levels)
        visible = np.zeros(0, np.int64)
        for levels in (range(count - 1), range(count - 1, count)):
            near = [image for image in nearest_images(table, pose, _NEAREST) if image != left_out]
            visible = table.seen_by_any(near)
            points = table.points.at(visible)
            pose, _ = refine(field, points.some(_REFINED_ON), pose, levels)
        return LabelPose(pose, visible, place_evidence(field, table, visible, pose))

    def _observe(self, view: View, table: LabelTable, left_out: int | None = None) -> Observation:
        field = self.field(view)
        found = self.find_pose(field, view, table, left_out)
        return self.observation(view, field, table, found)

    def observation(
        self, view: View, field: LabelField, table: LabelTable, found: LabelPose
    ) -> Observation:
        """Return what keypoints show at a pose that labels have found."""
        covariances = self._covariances
        if table.covariances is not self._table.covariances:
            covariances = table.covariances.astype(np.float64) * self._sigma_px**2
        coordinates, candidates = pair_keypoints(
            view, field, table, covariances, found.camera_from_map, found.points
        )
        evidence = PlaceEvidence(found.evidence, *self._chance, LEAST_EVIDENCE)
        return Observation(view, coordinates, candidates, evidence)


def nearest_images(table: LabelTable, pose: RigidTransform, count: int) -> list[int]:
    """Return the mapping images whose poses are nearest to camera_from_map."""
    shift = np.linalg.norm(table.centres - pose.inverse().translation, axis=1)
    trace = np.einsum('nij,ij->n', table.rotations, pose.rotation)
    turn = np.degrees(np.arccos(np.clip(0.5 * (trace - 1.0), -1.0, 1.0)))
    distances = shift / table.depths + turn / _DEGREES_OF_DEPTH
    return [int(index) for index in np.argsort(distances, kind='stable')[:count]]


def place_evidence(
    field: LabelField, table: LabelTable, visible: NDArray[np.int64], pose: RigidTransform
) -> float:
    """Return how much likelier than by chance a pose makes the labels of points, nats.

    The likelihood ratio of a point is the geometric mean of those of its levels, which may depend
    on each other; with a share s of points that are seen it is 1 - s + s times that. The product
    over cells of the image is averaged over shares: for labels drawn by chance its mean is at
    most 1.
    """
    points = table.points.at(visible)
    pixels, in_camera = field.project(pose.rotation, pose.translation, points.points_in_map)
    camera = field.camera
    with np.errstate(invalid='ignore'):
        inside = ((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)
    seen = np.flatnonzero(inside)
    if len(seen) == 0:
        return 0.0
    seen = seen[np.argsort(in_camera[seen, 2], kind='stable')]
    cells = (pixels[seen] // _CELL_PX).astype(np.int64) @ [1, 1 << 20]
    _, first = np.unique(cells, return_index=True)
    seen = seen[first]
    values = [
        level.evidence(pixels[seen].astype(np.float32), points.labels[seen, number], 0.0)
        for number, level in enumerate(field.levels)
    ]
    ratio = np.exp(np.mean(values, axis=0, dtype=np.float64))
    shares = _SHARES_SEEN[:, None]
    logs = np.log(1.0 - shares + shares * ratio).sum(axis=1)
    return float(np.logaddexp.reduce(logs) - np.log(len(logs)))
