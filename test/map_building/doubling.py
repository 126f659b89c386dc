"""Tasks that other processes can import."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from d2s_ros.errors import InputError


def double(key: str, values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return the doubled values, and which process doubled them."""
    if not len(values):
        raise InputError('nothing to double')
    return {key: {'doubled': 2 * values, 'pid': np.array([os.getpid()])}}


def threads_of(key: str) -> dict[str, dict[str, np.ndarray]]:
    """Return how many threads each library that computes uses here."""
    import cv2
    import torch
    from threadpoolctl import threadpool_info

    counts = [one['num_threads'] for one in threadpool_info()]
    return {key: {'threads': np.array([cv2.getNumThreads(), torch.get_num_threads(), *counts])}}


def traced(folder: str, key: str, function, *arguments):
    """Do another task, and leave a file for each time that it was begun."""
    (Path(folder) / f'{key.replace("/", "_")}.{os.getpid()}').write_text(str(os.getppid()))
    return function(*arguments)
