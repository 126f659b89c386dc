"""What the localizer node shows of the localizer's options, as parameters localizer.*."""

from __future__ import annotations

from dataclasses import dataclass, field

from d2s_ros.config import option, same_option, validate
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.limits import Limits, read_limits
from d2s_ros.localization.pose_solver import PoseSolverConfig

#: Limits of acceptance that are parameters; the others are in the limits file.
SHOWN_LIMITS = (
    'false_accept_rate',
    'max_rotation_sigma_deg',
    'max_relative_translation_sigma',
    'max_focal_error',
    'max_intrinsics_error',
)


@dataclass(frozen=True)
class LocalizerParameters:
    """What the node shows of the localizer's options."""

    reliability_threshold: float = same_option(LocalizerConfig, 'reliability_threshold')
    min_correspondences: int = same_option(LocalizerConfig, 'min_correspondences')
    guided_refinement: bool = same_option(LocalizerConfig, 'guided_refinement')
    false_accept_rate: float = same_option(Limits, 'false_accept_rate')
    max_rotation_sigma_deg: float = same_option(Limits, 'max_rotation_sigma_deg')
    max_relative_translation_sigma: float = same_option(Limits, 'max_relative_translation_sigma')
    max_focal_error: float = same_option(Limits, 'max_focal_error')
    max_intrinsics_error: float = same_option(Limits, 'max_intrinsics_error')
    limits_file: str = option(
        '',
        'YAML file with other limits of acceptance, read when the map is loaded; '
        'config/limits.yaml lists them. Empty: their defaults.',
    )
    solver: PoseSolverConfig = field(default_factory=PoseSolverConfig)

    def __post_init__(self) -> None:
        validate(self)
        # A file that cannot be used is told of when it is named, not when a map is loaded.
        self.localizer_config()

    def localizer_config(self) -> LocalizerConfig:
        """Return the localizer's options.

        Raises:
            ConfigError: the limits file is missing or wrong.
        """
        shown = {name: getattr(self, name) for name in SHOWN_LIMITS}
        return LocalizerConfig(
            reliability_threshold=self.reliability_threshold,
            min_correspondences=self.min_correspondences,
            guided_refinement=self.guided_refinement,
            limits=read_limits(self.limits_file, shown) if self.limits_file else Limits(**shown),
            solver=self.solver,
        )
