"""Whether the cameras of a rig stand where their transforms say, by what many images tell."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from d2s_ros.geometry.transforms import vector_from_rotation
from d2s_ros.localization.result import CameraShare, LocalizationResult

#: Images whose disagreements are averaged, and the fewest.
_WINDOW, _FEWEST = 20, 5
#: Standard deviations of the mean by which a camera must be off, and the least that is told.
_SIGMAS, _LEAST_DEGREES, _LEAST_METRES = 5.0, 0.3, 0.02


class ExtrinsicWatch:
    """Averages where the images of each camera put it, beside where its transform does.

    One image is left out of a pose where it disagrees clearly; small errors of a transform bend
    every pose a little, and only several images tell them.

    Attributes:
        distrusted: Cameras that were left out so often that they would only give wrong poses. Of
            two cameras, of which either may be wrong, it is the second.
    """

    def __init__(self) -> None:
        self._found: dict[str, deque[NDArray[np.float64]]] = {}
        self._left_out: dict[str, deque[bool]] = {}
        self.distrusted: set[str] = set()
        self._sentence = ''

    def reset(self) -> None:
        """Forget what was seen."""
        self._found.clear()
        self._left_out.clear()
        self.distrusted.clear()
        self._sentence = ''

    def check(self, result: LocalizationResult) -> str:
        """Take in the next result of a rig.

        Returns:
            Empty if all transforms may be right, else which are not, for people.
        """
        for share in result.cameras:
            found = self._found.setdefault(share.name, deque(maxlen=_WINDOW))
            if share.disagreement is not None and result.localized:
                moved = share.disagreement.camera_moved
                found.append(
                    np.concatenate([vector_from_rotation(moved.rotation), moved.translation])
                )
        if self.distrusted:
            # They are asked no more, so that nothing new is known of them.
            return self._sentence
        off = {share.name: self._off(share) for share in result.cameras}
        telling = {name: text for name, text in off.items() if text}
        if not telling:
            return ''
        self._distrust(result, set(telling))
        # With two cameras either may be the one; all that are off are named.
        self._sentence = 'a transform between cameras is wrong: ' + '; '.join(
            f'by the images {name} is {text} from where TF has it beside the others'
            for name, text in telling.items()
        )
        if self.distrusted:
            self._sentence += (
                f'; not used until that is mended: {", ".join(sorted(self.distrusted))}'
            )
        return self._sentence

    def _distrust(self, result: LocalizationResult, off: set[str]) -> None:
        """Note the cameras that are left out again and again."""
        both = len(result.cameras) == 2
        for index, share in enumerate(result.cameras):
            left_out = self._left_out.setdefault(share.name, deque(maxlen=_WINDOW))
            one = share.status == 'left_out'
            if both:
                one = index == 1 and any(other.status == 'left_out' for other in result.cameras)
            left_out.append(one)
            if share.name in off and sum(left_out) >= _FEWEST:
                self.distrusted.add(share.name)

    def _off(self, share: CameraShare) -> str:
        found = np.array(self._found[share.name])
        if len(found) < _FEWEST:
            return ''
        mean = np.median(found, axis=0)
        # The median absolute deviation, as that of a normal distribution.
        spread = 1.4826 * np.median(np.abs(found - mean), axis=0) / np.sqrt(len(found))
        turn, distance = float(np.linalg.norm(mean[:3])), float(np.linalg.norm(mean[3:]))
        turned = np.degrees(turn) > _LEAST_DEGREES and turn > _SIGMAS * np.linalg.norm(spread[:3])
        moved = distance > _LEAST_METRES and distance > _SIGMAS * np.linalg.norm(spread[3:])
        if not turned and not moved:
            return ''
        return f'{distance:.3f} m and {np.degrees(turn):.1f} degrees'
