"""The scene models that a map may have: a line for each."""

from __future__ import annotations

from d2s_ros.errors import ConfigError
from d2s_ros.scene_models.base import SceneModel
from d2s_ros.scene_models.labels.build import LabelOptions
from d2s_ros.scene_models.labels.model import LabelModel
from d2s_ros.scene_models.landmark.build import LandmarkOptions
from d2s_ros.scene_models.landmark.model import LandmarkModel
from d2s_ros.scene_models.regression.build import RegressionOptions
from d2s_ros.scene_models.regression.model import RegressionModel

#: By the name that manifests and options use (`head`); the first is the default.
MODELS: dict[str, type[SceneModel]] = {
    LandmarkModel.name: LandmarkModel,
    RegressionModel.name: RegressionModel,
    LabelModel.name: LabelModel,
}


class ModelOptions(LandmarkOptions, RegressionOptions, LabelOptions):
    """Options of all scene models, side by side; each model reads its own."""


def model_class(name: str) -> type[SceneModel]:
    """Return the scene model of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MODELS:
        raise ConfigError(f'head is {name!r}, it must be one of {", ".join(MODELS)}')
    return MODELS[name]
