"""Localizes images in an area: names the places that an image may show, and asks their maps."""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d2s_ros.device import resolve_device
from d2s_ros.errors import MapFormatError
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureExtractor
from d2s_ros.geometry.cameras import Camera
from d2s_ros.localization.compute_budget import FULL, ComputeBudget
from d2s_ros.localization.config import LocalizerConfig
from d2s_ros.localization.extraction import TakenImage, take_image, take_shots
from d2s_ros.localization.localizer import Localizer
from d2s_ros.localization.map_facts import MapFacts
from d2s_ros.localization.place_choice import Attempt, agree, choose
from d2s_ros.localization.pose_prior import PosePrior, PriorSource
from d2s_ros.localization.result import LocalizationResult
from d2s_ros.localization.rig_shot import RigShot
from d2s_ros.maps.area import Area, read_area
from d2s_ros.maps.files import version_folder
from d2s_ros.maps.manifest import read_manifest
from d2s_ros.maps.scene_map import SceneMap
from d2s_ros.scene_models.base import View

#: Asks the map of a place, with what is known of the pose in it.
_Ask = Callable[[Localizer, PriorSource | None], LocalizationResult]


#: Keypoints that a further place is asked about first, once another has given a pose.
_GLANCE = 512
#: A place that has this share of what `max_rival_share` allows is asked about all keypoints.
_CLOSER_LOOK = 0.6


def _asks(taken: TakenImage) -> _Ask:
    """Return what asks a map about one image."""

    def ask(localizer: Localizer, known: PriorSource | None) -> LocalizationResult:
        result = localizer.localize_view(
            taken.view, details=True, features_ms=taken.elapsed_ms, prior=known
        )
        return taken.at_full_size(result)

    return ask


def _glances(taken: TakenImage) -> _Ask:
    """Return what asks a map about the strongest keypoints of an image alone."""
    view = taken.view
    return _asks(
        replace(taken, view=View(view.features.strongest(_GLANCE), view.camera, view.image))
    )


class OpenPlaces:
    """The localizers of places, made when they are asked for; those not used for longest go.

    Args:
        area: The area.
        open_map: Makes a localizer of a map.
        max_open: How many are kept.

    Attributes:
        opened: Number of localizers made so far.

    Raises:
        MapFormatError: the map of a place is missing or damaged.
    """

    def __init__(
        self, area: Area, open_map: Callable[[SceneMap], Localizer], max_open: int
    ) -> None:
        self._open_map, self._max_open = open_map, max_open
        self._open: OrderedDict[str, Localizer] = OrderedDict()
        self._folders = {}
        self.opened = 0
        #: By place.
        self.manifests = {}
        for name in area.places:
            # All are read once: what is damaged shows now, not when a robot comes there.
            scene_map = SceneMap.open(area.folder(name))
            assert scene_map.path is not None
            self._folders[name] = scene_map.path
            self.manifests[name] = scene_map.manifest
            if len(self._open) < max_open:
                self._keep(name, scene_map)

    def _keep(self, name: str, scene_map: SceneMap) -> Localizer:
        localizer = self._open[name] = self._open_map(scene_map)
        self.opened += 1
        return localizer

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Localizer:
        """Return the localizer of a place, of the version that was live when the area was opened.

        Raises:
            MapFormatError: that version is not there any more.
        """
        found = self._open.pop(name, None)
        if found is not None:
            self._open[name] = found
            return found
        while len(self._open) >= self._max_open:
            self._open.popitem(last=False)
        return self._keep(name, SceneMap.open(self._folders[name]))


class AreaLocalizer:
    """Localizes images in the places of an area; no memory between images, as `Localizer`.

    The features of an image are extracted once. They name the places that look alike; the maps of
    at most `max_candidates` of these are asked for a pose. A pose is accepted if no other place
    explains the image nearly as well.

    Attributes:
        area: The area, as it was when it was opened.
        places: The localizers of its places.
    """

    def __init__(
        self,
        area: Area,
        extractor: FeatureExtractor | None = None,
        *,
        device: str = 'cpu',
        weights: str | None = None,
        config: LocalizerConfig | None = None,
        precision: str = 'auto',
    ) -> None:
        self.area, self.device = area, device
        self.config = config or LocalizerConfig()
        self._index = area.read_index()
        self._names = list(area.places)
        features = read_manifest(version_folder(area.folder(self._names[0]))).features
        self.extractor = extractor or create_extractor(
            features, device=device, weights=weights, precision=precision
        )

        def open_map(scene_map: SceneMap) -> Localizer:
            return Localizer(
                scene_map, self.extractor, device=device, config=self.config, precision=precision
            )

        self.places = OpenPlaces(area, open_map, self.config.max_open_places)
        for name, manifest in self.places.manifests.items():
            if manifest.features != features:
                raise MapFormatError(
                    f'{area.root}: the places {self._names[0]} and {name} have different features; '
                    'build all with the same'
                )

    @classmethod
    def from_area(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = 'auto',
        weights: str | None = None,
        config: LocalizerConfig | None = None,
        precision: str = 'auto',
    ) -> AreaLocalizer:
        """Open an area; arguments and errors are those of `Localizer.from_map`."""
        return cls(
            read_area(path),
            device=resolve_device(device),
            weights=weights,
            config=config,
            precision=precision,
        )

    @property
    def facts(self) -> MapFacts:
        """What is known of the maps of all places together."""
        manifests = list(self.places.manifests.values())
        return MapFacts(
            self.area.version(),
            self.area.frame,
            all(manifest.metric for manifest in manifests),
            manifests[0].features,
            tuple(dict.fromkeys(camera for one in manifests for camera in one.cameras)),
            # Changes whenever a place is rescaled, which is all that is asked of it.
            scale=math.prod(one.scaled_by for one in manifests),
            place_frames=tuple(frame for frame in self.area.frames() if frame != self.area.frame),
        )

    def localize(
        self,
        image: NDArray[np.uint8] | None,
        camera: Camera | None,
        *,
        details: bool = False,
        budget: ComputeBudget = FULL,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize one image; arguments as for `Localizer.localize`.

        Returns:
            With a pose also its place and frame. A prior is of the place that it names, in the
            frame of poses there; that place is always one of the candidates.
        """
        taken = take_image(image, camera, self.extractor, budget, self.config.limits)
        if isinstance(taken, LocalizationResult):
            return taken
        return self.localize_image(taken, details=details, prior=prior)

    def localize_image(
        self, taken: TakenImage, *, details: bool = False, prior: PriorSource | None = None
    ) -> LocalizationResult:
        """Localize from what was extracted of an image, as `localize` does."""
        return self._answer(
            [taken.view], _asks(taken), taken.elapsed_ms, details, prior, _glances(taken)
        )

    def attempts(self, taken: TakenImage) -> list[Attempt]:
        """Return what the map of each candidate says of an image, the likeliest place first."""
        return self._ask_all([taken.view], _asks(taken), None)

    def localize_rig(
        self,
        shots: Sequence[RigShot],
        *,
        details: bool = False,
        budget: ComputeBudget = FULL,
        prior: PriorSource | None = None,
    ) -> LocalizationResult:
        """Localize what several cameras of one robot see; arguments as for `Localizer`."""
        found = take_shots(shots, self.extractor, budget, self.config.limits)

        def ask(localizer: Localizer, known: PriorSource | None) -> LocalizationResult:
            return localizer.rig.localize(found, details=True, prior=known)

        views = [one.view for one in found.taken.values()]
        return self._answer(views, ask, found.features_ms, details, prior)

    def candidates(self, views: Sequence[View], last: str = '') -> list[str]:
        """Return the places that images of one moment may show, the likeliest first.

        Args:
            views: What the images show.
            last: The place before, if it is known: it comes first.
        """
        alike = np.zeros(len(self._names))
        for view in views:
            alike += self._index.similarities(view.features.descriptors)
        order = [self._names[row] for row in np.argsort(-alike, kind='stable')]
        if last in self.area.places:
            order = [last, *(name for name in order if name != last)]
        return order[: self.config.max_candidates]

    def _answer(
        self,
        views: Sequence[View],
        ask: _Ask,
        features_ms: float,
        details: bool,
        prior: PriorSource | None,
        glance: _Ask | None = None,
    ) -> LocalizationResult:
        """Ask the candidates, and choose between what they say."""
        started = time.perf_counter()
        attempts = self._ask_all(views, ask, prior() if prior is not None else None, glance)
        result = choose(attempts, self.config.limits)
        spent = sum(one.result.latency_ms.get('network', 0.0) for one in attempts)
        total = 1e3 * (time.perf_counter() - started)
        latency = {
            'features': features_ms,
            'network': spent,
            'pose': total - spent,
            'total': features_ms + total,
        }
        return replace(result, latency_ms=latency, details=result.details if details else None)

    def _ask_all(
        self,
        views: Sequence[View],
        ask: _Ask,
        known: PosePrior | None,
        glance: _Ask | None = None,
    ) -> list[Attempt]:
        """Ask the candidates; once one has given a pose, others only as far as they are rivals."""
        best: Attempt | None = None
        found: list[Attempt] = []
        for name in self.candidates(views, '' if known is None else known.place):
            prior = self._prior_in(name, known)
            one = None
            if best is not None and glance is not None:
                one = self._glanced(name, best, glance, prior)
            if one is None:
                one = self._attempt(name, ask(self.places.get(name), prior))
                most = -1 if best is None else best.result.num_inliers
                if one.result.localized and one.result.num_inliers > most:
                    best = one
            found.append(one)
        return found

    def _glanced(
        self, name: str, best: Attempt, glance: _Ask, prior: PriorSource | None
    ) -> Attempt | None:
        """Return what a place says of the strongest keypoints; None where it may be a rival.

        Its inliers are told in proportion: as a share of those that the best place so far has among
        the same keypoints.
        """
        details = best.result.details
        assert details is not None
        own = int(details.inlier[:_GLANCE].sum())
        one = self._attempt(name, glance(self.places.get(name), prior))
        seen = 0 if one.result.details is None else len(one.result.details.inlier)
        if own == 0 or seen != min(_GLANCE, len(details.inlier)):
            # The map looks at keypoints of its own: they are not the same.
            return None
        share = one.result.num_inliers / own
        limits = self.config.limits
        if share > _CLOSER_LOOK * limits.max_rival_share and not agree(best, one, limits):
            return None
        # Of two places that agree, the pose of all keypoints is the better one.
        count = min(round(share * best.result.num_inliers), best.result.num_inliers - 1)
        return replace(one, result=replace(one.result, num_inliers=count))

    def _attempt(self, name: str, result: LocalizationResult) -> Attempt:
        """Bring what the map of a place says to the frame of poses there."""
        transform = self.area.places[name].area_from_place
        if transform is not None:
            result = result.transformed(transform)
        pose, covariance = result.map_from_camera, result.covariance
        estimate = None if result.details is None else result.details.estimate
        if pose is None and estimate is not None:
            # Refused, and relative to the map's origin: it may still be the pose of a neighbour.
            pose = estimate.camera_from_map.inverse()
            pose = pose.moved(np.array(self.places.manifests[name].origin))
            pose = pose if transform is None else transform @ pose
            covariance = estimate.covariance
        return Attempt(name, self.area.frame_of(name), result, pose, covariance)

    def _prior_in(self, name: str, known: PosePrior | None) -> PriorSource | None:
        """Return a prior in the frame of a place's map; None where it tells nothing of it."""
        if known is None or known.place not in self.area.places:
            return None
        if self.area.frame_of(known.place) != self.area.frame_of(name):
            return None
        transform = self.area.places[name].area_from_place
        if transform is None:
            return lambda: known
        moved = replace(known, map_from_camera=transform.inverse() @ known.map_from_camera)
        return lambda: moved
