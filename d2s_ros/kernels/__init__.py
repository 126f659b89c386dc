"""The door to the kernels: the few computations of each frame that are written twice.

`reference` has them in NumPy and PyTorch, `compiled` in C: they replace hundreds of small calls of
NumPy and PyTorch in each frame. Both keep the contract of `interface.Kernels`. Which one computes
is chosen once: by D2S_KERNELS=reference or compiled in the environment, otherwise compiled kernels
where they were built.
"""

from __future__ import annotations

import functools
import os

from d2s_ros.device import has_torch
from d2s_ros.errors import UsageError
from d2s_ros.kernels.interface import Kernels, observers

__all__ = ['NAMES', 'SWITCH', 'Kernels', 'active', 'fallback_warning', 'is_compiled', 'observers']

#: Environment variable that chooses the implementation, and what it may be.
SWITCH, NAMES = 'D2S_KERNELS', ('reference', 'compiled')


@functools.cache
def active() -> Kernels:
    """Return the kernels that compute here.

    Raises:
        UsageError: D2S_KERNELS is unknown, or asks for compiled kernels that were not built; or
            they were not built, and PyTorch is missing, too.
    """
    from d2s_ros.kernels import library

    name = os.environ.get(SWITCH, '')
    if name and name not in NAMES:
        raise UsageError(f'{SWITCH}={name} is unknown; use {" or ".join(NAMES)}, or unset it')
    if name == 'compiled' and not library.is_built():
        raise UsageError(
            f'{SWITCH}=compiled, but the compiled kernels were not built from these sources; '
            'install the package again where there is a C compiler'
        )
    if name == 'reference' or not library.is_built():
        if not has_torch():
            raise UsageError(
                'neither the compiled part of the package nor PyTorch is here; install a C '
                'compiler and the package again, or PyTorch'
            )
        from d2s_ros.kernels import reference

        return reference
    from d2s_ros.kernels import compiled

    return compiled


def is_compiled() -> bool:
    """Return whether the compiled kernels compute here."""
    from d2s_ros.kernels import library

    return library.is_built() and os.environ.get(SWITCH) != 'reference'


def fallback_warning() -> str:
    """Return what to tell users where the reference computes though nobody asked for it, or ''."""
    from d2s_ros.kernels import library

    if os.environ.get(SWITCH) or library.is_built():
        return ''
    return (
        'the compiled part of the package is missing: images take longer; install the package '
        'again where there is a C compiler'
    )
