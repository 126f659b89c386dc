"""Options of the attack: the only home of their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from d2s_ros.config import option, validate


@dataclass(frozen=True)
class AttackConfig:
    """The attack: equal for all kinds of content, so that only the content differs."""

    size: int = option(
        128, 'Longest side of the pictures that are made.', unit='px', minimum=32, maximum=512
    )
    steps: int = option(400, 'Training steps for each kind of content.', minimum=1)
    minutes: float = option(
        0.0,
        'Time for all trainings together, which lowers the steps of each alike; 0: no limit.',
        unit='min',
        minimum=0.0,
    )
    pictures_per_step: int = option(4, 'Pictures of a training step.', minimum=1)
    learning_rate: float = option(3e-3, 'Peak learning rate (Adam).', minimum=1e-6, maximum=1.0)
    width: int = option(32, 'Channels of the networks at their finest.', minimum=4, maximum=256)
    photographs: int = option(12, 'Photographs of the place that are compared.', minimum=1)
    own_photographs: int = option(
        40, "Most of the attacker's photographs of each folder.", minimum=2
    )
    seed: int = option(0, 'Of weights and batches.', minimum=0)

    #: How often checkpoints are written, s; `LoopOptions` of the training loop.
    checkpoint_seconds: float = option(20.0, 'Time between checkpoints.', unit='s', minimum=0.0)

    def __post_init__(self) -> None:
        validate(self)
