"""Training samples as arrays: kept beside a build, and shared by several processes of torchrun.

For the training the other processes map the samples from the work folder into memory, so that a
computer holds them once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from d2s_ros import distributed
from d2s_ros.config import to_dict
from d2s_ros.errors import InputError
from d2s_ros.scene_models.base import BuildContext

S = TypeVar('S')


def pack_sample(sample: Any, without: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Return the tensors of a sample (a dataclass of tensors) as arrays."""
    names = [field.name for field in fields(sample) if field.name not in without]
    return {name: getattr(sample, name).numpy() for name in names}


def unpack_sample(kind: type[S], arrays: Mapping[str, NDArray[Any]]) -> S:
    """Return the sample that `pack_sample` was given."""
    return kind(**{name: torch.from_numpy(value) for name, value in arrays.items()})


def share_training(
    head: str,
    network: Any,
    training: Any,
    samples: Sequence[Sequence[str]],
    held_out: Sequence[str],
    context: BuildContext,
) -> None:
    """Tell the other processes what to train; the caller then trains as they do.

    Args:
        head: Name of the scene model, whose `join_training` they call.
        network: Shape of the network.
        training: Options.
        samples: Keys of the samples in the context's log, for each image; held_out: those that are
            not trained on.
        context: Of this build.

    Raises:
        InputError: the samples could not be written.
    """
    if distributed.world() == 1:
        return
    log = context.samples
    missing = [key for keys in [*samples, held_out] for key in keys if key not in log]
    if log.path is None or missing:
        raise InputError(
            'several processes share their samples in a folder beside the map, which cannot be '
            'written; make room, or build with one process'
        )
    document = {
        'head': head,
        'network': to_dict(network),
        'training': to_dict(training),
        'log': str(log.path),
        'checkpoint': None if context.checkpoint is None else str(context.checkpoint),
        'samples': [list(keys) for keys in samples],
        'held_out': list(held_out),
    }
    distributed.share_bytes(json.dumps(document).encode())
