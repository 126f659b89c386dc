"""The options of all scene models together; a build has them, localizing needs none."""

from __future__ import annotations

from d2s_ros.scene_models.labels.build import LabelOptions
from d2s_ros.scene_models.landmark.build import LandmarkOptions
from d2s_ros.scene_models.regression.build import RegressionOptions


class ModelOptions(LandmarkOptions, RegressionOptions, LabelOptions):
    """Options of all scene models, side by side; each model reads its own."""
