"""Options of a map build, and the budgets that set them."""

from __future__ import annotations

from dataclasses import dataclass, field

from d2s_ros.config import option, validate
from d2s_ros.features.types import FeatureConfig
from d2s_ros.map_building.placement import PlacementConfig
from d2s_ros.reconstruction.reconstruction import ReconstructionConfig
from d2s_ros.scene_models.options import ModelOptions
from d2s_ros.scene_models.registry import MODELS, model_class


@dataclass(frozen=True)
class BuildConfig(ModelOptions):
    """Everything a map build depends on besides its input; stored in the manifest.

    The options of the scene models come first: each reads its own.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    compare_features: bool = option(
        False,
        'Take the kind of features that places more of the images that are left out, of equals '
        'superpoint; `features` gives the rest of their options.',
    )
    features_reason: str = option(
        '', 'Why these features, where nobody has said which and none were compared.'
    )
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    head: str = option(
        next(iter(MODELS)),
        'Scene model: landmarks chosen by a network, the regression of the D2S paper, or labels.',
    )
    max_images: int = option(400, 'Longer logs are thinned evenly to this many.', minimum=2)
    holdout_every: int = option(8, 'Every n-th image is held out of training.', minimum=2)
    reliability_threshold: float = option(0.6, 'Stored in the map.', minimum=0.0, maximum=1.0)
    keep_update_data: bool = option(True, 'Store what self-supervised updates need.')
    keep_colours: bool = option(
        False, 'Store the colours of points with what updates need, for the eye.'
    )
    update_keypoints: int = option(1024, 'Keypoints of an image kept for updates.', minimum=64)
    max_update_mb: float = option(
        500.0,
        'Size of what is kept for updates; of long logs fewer keypoints an image.',
        unit='MB',
        minimum=1.0,
    )

    def __post_init__(self) -> None:
        validate(self)
        model_class(self.head)


def budget(
    name: str,
    *,
    features: FeatureConfig | None = None,
    head: str = next(iter(MODELS)),
    recipe: str = 'default',
    seed: int = 0,
) -> BuildConfig:
    """Return the configuration of a budget: 'quick', 'standard' or 'full'.

    Args:
        name: The budget.
        features: Features of the map.
        head: Name of the scene model.
        recipe: 'default'; 'paper': the regression head trained as published, with the steps of
            the budget; 'learned': the same network from random weights.
        seed: Seed of the training.
    """
    if recipe in ('paper', 'learned'):
        head = 'regression'
    values = model_class(head).budget(name, recipe=recipe, seed=seed)
    return BuildConfig(features=features or FeatureConfig(), head=head, **values)
