"""The shape of the landmark head, as maps store it."""

from __future__ import annotations

from dataclasses import dataclass

from d2s_ros.config import option, validate
from d2s_ros.errors import ConfigError

#: What `LandmarkConfig.hidden_inputs` may name.
HIDEABLE_INPUTS = ('descriptors', 'candidate_points', 'keypoints')


@dataclass(frozen=True)
class LandmarkConfig:
    """Shape of the landmark head."""

    descriptor_dim: int = option(128, 'Length of a descriptor.', minimum=1, maximum=4096)
    num_landmarks: int = option(8192, 'Landmarks in the map.', minimum=1)
    num_candidates: int = option(
        6, 'Landmarks considered for each keypoint.', minimum=1, maximum=256
    )
    width: int = option(128, 'Width of the attention network.', minimum=8, maximum=4096)
    num_layers: int = option(
        0, 'Attention layers; 0 scores each keypoint alone.', minimum=0, maximum=64
    )
    num_heads: int = option(4, 'Attention heads.', minimum=1, maximum=256)
    num_frequencies: int = option(6, 'Fourier frequencies of coordinates.', minimum=1, maximum=32)
    max_context: int = option(
        512, 'Keypoints that are attended to: evenly chosen among more.', minimum=1
    )
    hidden_inputs: tuple[str, ...] = option(
        (), f'Inputs that the network sees as zeros, for ablations: {", ".join(HIDEABLE_INPUTS)}.'
    )

    descriptor_width: int = option(
        0,
        'Hidden width of the network that descriptors pass before they are compared; 0: none.',
        minimum=0,
        maximum=4096,
    )
    short_keys: int = option(
        0,
        'Principal components that the map keeps of a key, an even number; 0: product codes.',
        minimum=0,
        maximum=256,
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.short_keys % 2 or self.short_keys > self.descriptor_dim:
            raise ConfigError(
                f'short_keys is {self.short_keys}: an even number of at most '
                f'{self.descriptor_dim} is needed'
            )
        unknown = sorted(set(self.hidden_inputs) - set(HIDEABLE_INPUTS))
        if unknown:
            raise ConfigError(
                f'hidden_inputs has {unknown[0]!r}, known are {", ".join(HIDEABLE_INPUTS)}'
            )
