"""What the other processes of torchrun do while the first builds a map: they train with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d2s_ros import distributed
from d2s_ros.data.array_log import ArrayLog
from d2s_ros.device import resolve_device
from d2s_ros.errors import InputError
from d2s_ros.scene_models.registry import model_class


def join_build(device: str = 'auto') -> None:
    """Take part in the training of a map that the first process builds.

    Args:
        device: 'auto', 'cpu' or 'cuda'.

    Raises:
        InputError: the folder of the first process cannot be read here.
    """
    with distributed.group(resolve_device(device)) as device:
        document: dict[str, Any] = json.loads(distributed.share_bytes(b''))
        path = Path(document['log'])
        if not path.is_file():
            raise InputError(
                f'{path} cannot be read by all processes; on several computers, give a map folder '
                'on a disk that they share'
            )
        model_class(document['head']).join_training(
            document['network'],
            document['training'],
            ArrayLog(path, read_only=True),
            document['samples'],
            document['held_out'],
            device=device,
            checkpoint=None if document['checkpoint'] is None else Path(document['checkpoint']),
        )
