"""Training of one map by several processes of torchrun.

The first process does everything else: features, reconstruction, samples, writing. For the training
the others map its samples from the work folder into memory, so that a computer holds them once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2s_ros import distributed
from d2s_ros.config import from_dict, to_dict
from d2s_ros.data.array_log import ArrayLog, StageLog
from d2s_ros.device import resolve_device
from d2s_ros.errors import InputError
from d2s_ros.map_building.stages import BuildStages
from d2s_ros.scene_models.landmark.network import LandmarkConfig
from d2s_ros.scene_models.landmark.samples import LandmarkSample, unpack_sample
from d2s_ros.scene_models.landmark.trainer import LandmarkTrainingConfig, train_landmark_network
from d2s_ros.scene_models.regression.network import RegressionConfig
from d2s_ros.scene_models.regression.samples import RegressionSample
from d2s_ros.scene_models.regression.trainer import (
    RegressionTrainingConfig,
    train_regression_network,
)


def share_training(
    head: str,
    network: LandmarkConfig | RegressionConfig,
    training: LandmarkTrainingConfig | RegressionTrainingConfig,
    log: StageLog,
    samples: Sequence[Sequence[str]],
    held_out: Sequence[str],
    stages: BuildStages,
) -> None:
    """Tell the other processes what to train; the caller then trains as they do.

    Args:
        head: 'landmark' or 'regression'.
        network: Shape of the network.
        training: Options.
        log: Where the samples are.
        samples: Their keys, for each image; held_out: those that are not trained on.
        stages: Of this build.

    Raises:
        InputError: the samples could not be written.
    """
    if distributed.world() == 1:
        return
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
        'checkpoint': None if stages.checkpoint is None else str(stages.checkpoint),
        'samples': [list(keys) for keys in samples],
        'held_out': list(held_out),
    }
    distributed.share_bytes(json.dumps(document).encode())


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
        log = ArrayLog(path, read_only=True)
        checkpoint = None if document['checkpoint'] is None else Path(document['checkpoint'])
        if document['head'] == 'landmark':
            train_landmark_network(
                [
                    unpack_sample(LandmarkSample, log.read(key))
                    for keys in document['samples']
                    for key in keys
                ],
                from_dict(LandmarkConfig, document['network']),
                from_dict(LandmarkTrainingConfig, document['training']),
                device=device,
                checkpoint=checkpoint,
                held_out=[unpack_sample(LandmarkSample, log.read(k)) for k in document['held_out']],
            )
        else:
            train_regression_network(
                [
                    [unpack_sample(RegressionSample, log.read(key)) for key in keys]
                    for keys in document['samples']
                ],
                from_dict(RegressionConfig, document['network']),
                from_dict(RegressionTrainingConfig, document['training']),
                device=device,
                checkpoint=checkpoint,
                held_out=[
                    unpack_sample(RegressionSample, log.read(key)) for key in document['held_out']
                ],
            )
