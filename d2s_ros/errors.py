"""Errors that a user can act on.

Expected outcomes ("this frame cannot be localized") are values with a reason, never exceptions.
A D2SError is a broken contract or bad input; its message is one line that says what is wrong and
what to do about it.
"""

from __future__ import annotations


class D2SError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 3


class UsageError(D2SError):
    """The call itself is wrong (arguments that contradict each other, a missing option)."""

    exit_code = 2


class ConfigError(D2SError):
    """A configuration has an unknown key, a wrong type or a value out of range."""

    exit_code = 2


class DeviceError(D2SError):
    """The device that was asked for is not there or ran out of memory."""


class InputError(D2SError):
    """Input data cannot be used: unreadable, empty, inconsistent."""


class CalibrationError(InputError):
    """A camera calibration is missing, invalid or of an unknown model."""


class UnsupportedImageError(InputError):
    """An image cannot be decoded or has an encoding, size or type that is not supported."""


class BagError(InputError):
    """A rosbag2 log cannot be read or lacks what is needed."""


class WeightsError(InputError):
    """A weight file is missing, of another architecture, or its hash does not match."""


class MapFormatError(InputError):
    """A map folder is missing, damaged, or of another version."""


class NothingLocalizedError(D2SError):
    """Not a single frame could be localized."""

    exit_code = 4
