"""The landmark head as a scene model: a table of landmarks and the network that chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import from_dict, to_dict
from d2s_ros.data.array_log import ArrayLog
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.reconstruction.reconstruction import Reconstruction
from d2s_ros.scene_models.base import (
    BuildContext,
    Built,
    LabelledView,
    SceneModel,
)
from d2s_ros.scene_models.growth import Growth, UpdateTraining
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.leave_one_out import LeaveOneOut, statistics_of
from d2s_ros.scene_models.landmark.observer import LandmarkObserver
from d2s_ros.scene_models.landmark.product_codes import ProductCodes
from d2s_ros.scene_models.landmark.short_form import ShortForm
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.scene_models.landmark.stored_tensors import check_landmark_tensors
from d2s_ros.scene_models.landmark.table import LandmarkTable

if TYPE_CHECKING:
    from d2s_ros.scene_models.landmark.network import LandmarkNetwork


@dataclass(frozen=True, eq=False)
class LandmarkModel(SceneModel):
    """Coordinates taken from landmarks, chosen by a small network.

    Attributes:
        table: The landmarks.
        stored: The network that chooses among a keypoint's nearest ones.
        left_out: Leaves mapping images out; None where it is not known which made the landmarks.
    """

    name: ClassVar[str] = 'landmark'

    table: LandmarkTable
    stored: StoredNetwork
    left_out: LeaveOneOut | None = None

    @property
    def network(self) -> LandmarkNetwork:
        """The network; needs PyTorch, unlike what localizes."""
        return self.stored.network

    @classmethod
    def build(cls, context: BuildContext) -> Built:
        """Make the landmarks of a reconstruction and train the network."""
        from d2s_ros.scene_models.landmark import build

        describe = build.learn_descriptors(context)
        reconstruction = describe.of_reconstruction(context.reconstruction)
        context = replace(context, reconstruction=reconstruction)
        table, left_out = build.build_table(context)
        network, figures = build.train(table, left_out, describe, context)
        return Built(
            cls(table, StoredNetwork.of(network), left_out),
            {'training': figures, 'num_landmarks': len(table)},
        )

    @classmethod
    def budget(cls, name: str, *, recipe: str, seed: int) -> dict[str, Any]:
        """Return the fields of `BuildConfig` that differ from their defaults in a budget."""
        from d2s_ros.scene_models.landmark import build

        return build.budget(name, seed)

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
        """Train as the first process of torchrun does, on the samples that it shares."""
        from d2s_ros.scene_models.landmark.samples import LandmarkSample
        from d2s_ros.scene_models.landmark.trainer import (
            LandmarkTrainingConfig,
            train_landmark_network,
        )
        from d2s_ros.scene_models.shared_samples import unpack_sample

        train_landmark_network(
            [unpack_sample(LandmarkSample, log.read(key)) for keys in samples for key in keys],
            from_dict(LandmarkConfig, network_config),
            from_dict(LandmarkTrainingConfig, training),
            device=device,
            checkpoint=checkpoint,
            held_out=[unpack_sample(LandmarkSample, log.read(key)) for key in held_out],
        )

    @property
    def network_config(self) -> dict[str, Any]:
        """The shape of the network."""
        return to_dict(self.stored.config)

    @property
    def summary(self) -> str:
        """How large it is, for people."""
        return f'{len(self.table)} landmarks'

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return keys as codes, points, covariances, and the weights of the network."""
        table = self.table.coded(self.stored.config.short_keys)
        scaling = {
            'center': table.center.astype(np.float32),
            'extent': np.array([table.extent], np.float32),
        }
        if table.short is not None:
            return {**table.short.tensors(), **scaling, **self.stored.tensors()}
        assert table.codes is not None
        rows, columns = np.triu_indices(3)
        return {
            'key_codebook': table.codes.codebook,
            'key_codes': table.codes.codes,
            'points': table.points_in_map.astype(np.float32),
            'covariances': table.covariances[:, rows, columns].astype(np.float32),
            **scaling,
            **self.stored.tensors(),
        }

    @classmethod
    def from_tensors(
        cls, network_config: dict[str, Any], tensors: Mapping[str, NDArray[Any]]
    ) -> LandmarkModel:
        """Make the model again from what `network_config` and `tensors` gave."""
        config = from_dict(LandmarkConfig, network_config)
        check_landmark_tensors(tensors, config)
        center, extent = tensors['center'], float(tensors['extent'][0])
        stored = StoredNetwork.from_tensors(config, tensors)
        if config.short_keys:
            short = ShortForm.from_tensors(tensors)
            return cls(LandmarkTable.of_short(short, center, extent), stored)
        codes = ProductCodes(tensors['key_codebook'], tensors['key_codes'], config.descriptor_dim)
        covariances = np.zeros((len(tensors['points']), 3, 3), np.float32)
        rows, columns = np.triu_indices(3)
        covariances[:, rows, columns] = tensors['covariances']
        covariances[:, columns, rows] = tensors['covariances']
        table = LandmarkTable(
            codes.decode(),
            tensors['points'],
            covariances,
            center,
            extent,
            codes,
        )
        return cls(table, stored)

    def scaled(self, factor: float) -> LandmarkModel:
        """Return the model with everything in the place larger by `factor`."""
        return LandmarkModel(self.table.scaled(factor), self.stored)

    def cropped(self, kept: NDArray[np.bool_]) -> LandmarkModel:
        """Return the model with some landmarks (M,) alone."""
        return LandmarkModel(self.table.of_rows(kept), self.stored)

    def observer(self, *, device: str, precision: str, sigma_px: float) -> LandmarkObserver:
        """Make the landmarks ready for the search, and the network for one image after another."""
        return LandmarkObserver(
            self.table,
            self.stored,
            self.left_out,
            device=device,
            precision=precision,
            sigma_px=sigma_px,
        )

    @property
    def points_in_map(self) -> NDArray[np.float32]:
        """(M, 3) float32 points of the landmarks."""
        return self.table.points_in_map

    @property
    def extent(self) -> float:
        """Half the width of most of the scene, unit of the map."""
        return self.table.extent

    @property
    def leaves_out(self) -> bool:
        """Whether it is known which images made the landmarks."""
        return self.left_out is not None

    def with_mapping(self, reconstruction: Reconstruction) -> LandmarkModel:
        """Return the model with what it needs to leave out the images that it was made from."""
        reconstruction = self.stored.describe.of_reconstruction(reconstruction)
        statistics = statistics_of(self.table, reconstruction)
        left_out = LeaveOneOut(
            reconstruction, self.table, statistics, self.stored.config.num_candidates
        )
        return replace(self, left_out=left_out)

    @property
    def used_points(self) -> NDArray[np.int64]:
        """(K,) points of the reconstruction that are landmarks."""
        assert self.left_out is not None
        return np.flatnonzero(self.left_out.statistics.landmark_of_point >= 0)

    def updated(self, growth: Growth, training: UpdateTraining) -> Built:
        """Choose landmarks anew among old and new points, and train the network on for them."""
        from d2s_ros.scene_models.landmark import update

        reconstruction = self.stored.describe.of_reconstruction(growth.reconstruction)
        growth = replace(growth, reconstruction=reconstruction)
        table, left_out = update.grown_table(self.table, self.stored.config, growth)
        network, figures = update.train_on_growth(self.network, table, left_out, growth, training)
        return Built(
            LandmarkModel(table, StoredNetwork.of(network), left_out),
            {'training': figures, 'num_landmarks': len(table)},
        )

    def updated_as_published(
        self, views: Sequence[LabelledView], training: UpdateTraining
    ) -> Built:
        """Train the network on copied labels: no landmark is new."""
        from d2s_ros.scene_models.landmark import update

        assert self.left_out is not None
        described = [
            replace(
                labelled,
                view=replace(
                    labelled.view, features=self.stored.describe.of_features(labelled.view.features)
                ),
            )
            for labelled in views
        ]
        network, figures = update.train_on_labels(
            self.network, self.table, self.left_out, described, training
        )
        return Built(replace(self, stored=StoredNetwork.of(network)), {'training': figures})

    def export_onnx(self, extractor: FeatureExtractor, folder: Path) -> dict[str, Any]:
        """Write SuperPoint and the choice of landmarks as ONNX files, and check them."""
        from d2s_ros.scene_models.landmark.onnx_export import export_networks

        return export_networks(self.table, self.network, extractor, folder)
