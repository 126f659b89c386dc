"""What is known of a map before it is asked for a pose; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from d2s_ros.features.types import FeatureConfig
from d2s_ros.geometry.cameras import Camera
from d2s_ros.maps.manifest import MapManifest


@dataclass(frozen=True)
class MapFacts:
    """What is known of a map, or of the maps of an area together.

    Attributes:
        version: What identifies its state.
        frame: Of its poses; of an area the frame that is common where one is.
        metric: Whether one unit is a metre.
        features: Of its images.
        cameras: Of its mapping images.
        scale: See `MapManifest.scaled_by`; of an area the product over its places.
        place_frames: Of an area, the frames of places that are not in the common one.
    """

    version: str
    frame: str
    metric: bool
    features: FeatureConfig
    cameras: tuple[Camera, ...]
    scale: float = 1.0
    place_frames: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: MapManifest) -> MapFacts:
        """Return the facts of one map."""
        return cls(
            manifest.version,
            manifest.map_frame,
            manifest.metric,
            manifest.features,
            manifest.cameras,
            manifest.scaled_by,
        )
