"""What is kept of a live camera, shown in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from d2s_ros.data.live_camera import LiveState

#: From dark to bright, and the width of the picture in characters.
_SHADES, _WIDTH = ' .:-=+*#%@', 48


class CameraPreview:
    """Draws the last kept picture and counts; lines only, where the output is no terminal."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stderr
        self._drawn = 0
        self._picture: list[str] = []

    def __call__(self, state: LiveState) -> None:
        """Show the state after a frame."""
        line = f'kept {state.kept} of {state.count} frames, {state.blurred} blurred'
        if state.too_fast:
            line += '; too fast: go back to where the last picture was taken'
        elif state.blurred > 0.3 * state.count:
            line += '; move slower, or light the room'
        if not self._output.isatty():
            if state.picture is not None:
                print(line, file=self._output, flush=True)
            return
        if state.picture is not None:
            self._picture = _drawn(state)
        lines = [*self._picture, f'{line}  (Ctrl-C ends and builds)']
        # Up to where the last picture began, then over it.
        back = f'\x1b[{self._drawn}A' if self._drawn else ''
        text = ''.join(f'\x1b[2K{row}\n' for row in lines)
        print(f'{back}{text}', end='', file=self._output, flush=True)
        self._drawn = len(lines)


def _drawn(state: LiveState) -> list[str]:
    """Return the picture as rows of characters; a character is twice as high as wide."""
    import cv2

    assert state.picture is not None
    height = max(1, round(_WIDTH * state.picture.shape[0] / state.picture.shape[1] / 2))
    small = cv2.resize(state.picture, (_WIDTH, height), interpolation=cv2.INTER_AREA)
    return [
        ''.join(_SHADES[value * len(_SHADES) // 256] for value in row) for row in small.tolist()
    ]
