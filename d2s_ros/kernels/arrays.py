"""Formulas on NumPy arrays that are needed where maps are opened, with PyTorch or without."""

from __future__ import annotations

import numpy as np

from d2s_ros.kernels.interface import Floats


def fourier(x: Floats, num_frequencies: int) -> Floats:
    """As `tensors.fourier`: x (..., K) with sines and cosines of doubling frequencies."""
    frequencies = (2.0 ** np.arange(num_frequencies) * np.pi / 2).astype(np.float32)
    angles = (x[..., None] * frequencies).reshape(*x.shape[:-1], x.shape[-1] * num_frequencies)
    return np.concatenate([x, np.sin(angles), np.cos(angles)], axis=-1)
