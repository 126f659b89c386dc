"""Training of the landmark head: which candidate is right, or none, for every keypoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from d2s_ros import distributed
from d2s_ros.config import option
from d2s_ros.device import has_fast_bfloat16
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.network import LandmarkNetwork
from d2s_ros.scene_models.landmark.samples import LandmarkSample
from d2s_ros.scene_models.optimizers import AdamW
from d2s_ros.scene_models.training_loop import LoopOptions, new_network, one_cycle, run_loop

#: Fields of a sample that the network sees.
_INPUTS = ('descriptors', 'evidence', 'candidate_points', 'keypoints', 'log_scales')


@dataclass(frozen=True)
class LandmarkTrainingConfig(LoopOptions):
    """Options of the training loop."""

    images_per_step: int = option(4, 'Images in a batch.', minimum=1)
    keypoints_per_image: int = option(512, 'Random keypoints of each image.', minimum=16)
    learning_rate: float = option(2e-3, 'Peak of the one-cycle schedule.', minimum=0.0)
    weight_decay: float = option(0.01, 'Of AdamW.', minimum=0.0)
    descriptor_noise: float = option(
        0.02, 'Standard deviation of noise added to descriptors.', minimum=0.0
    )
    patience: int = option(
        0, 'Evaluations without improvement before training stops; 0 never stops.', minimum=0
    )


def landmark_loss(logits: Tensor, correct: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the negative log-probability that a right candidate (or rightly none) is chosen.

    Args:
        logits: (B, N, C + 1), the last for 'none'.
        correct: (B, N, C) bool.
        mask: (B, N) bool, False for padding.
    """
    allowed = torch.cat([correct, ~correct.any(dim=-1, keepdim=True)], dim=-1)
    log_probability = functional.log_softmax(logits.float(), dim=-1)
    chosen = log_probability.masked_fill(~allowed, -math.inf).logsumexp(dim=-1)
    if mask is None:
        return -chosen.mean()
    return -(chosen * mask).sum() / mask.sum().clamp_min(1)


def draw_batch(
    samples: Sequence[LandmarkSample],
    config: LandmarkTrainingConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw random keypoints of random images; images with fewer keypoints are padded."""
    chosen = torch.randint(len(samples), (config.images_per_step,), generator=generator).tolist()
    count = config.keypoints_per_image
    parts: dict[str, list[Tensor]] = {}
    masks = []
    for index in chosen:
        sample = samples[index]
        subset = torch.randperm(len(sample), generator=generator)[:count]
        missing = count - len(subset)
        for name in (*_INPUTS, 'correct'):
            value = getattr(sample, name)[subset]
            if missing:
                value = torch.cat([value, value.new_zeros((missing, *value.shape[1:]))])
            parts.setdefault(name, []).append(value)
        masks.append(torch.arange(count) < len(subset))
    batch = {name: torch.stack(values) for name, values in parts.items()}
    batch['mask'] = torch.stack(masks)
    if config.descriptor_noise:
        noise = torch.randn(batch['descriptors'].shape, generator=generator)
        batch['descriptors'] = batch['descriptors'] + config.descriptor_noise * noise
    return batch


def train_landmark_network(
    samples: Sequence[LandmarkSample],
    network_config: LandmarkConfig,
    config: LandmarkTrainingConfig,
    *,
    device: str = 'cpu',
    initial: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    held_out: Sequence[LandmarkSample] = (),
) -> tuple[LandmarkNetwork, dict[str, Any]]:
    """Train from scratch, from given weights, or on from a checkpoint of the same run.

    Args:
        samples: One per mapping image.
        network_config: Shape of the network.
        config: Options.
        device: 'cpu' or 'cuda'.
        initial: State dict to start from (a previous map).
        checkpoint: File to resume from and to save to; the result of a resumed run equals that of
            an uninterrupted one.
        progress: Show a progress bar.
        on_step: Called with (step, loss) after each step; an exception ends training.
        held_out: Samples that are not trained on, for the early stop (`patience`).

    Returns:
        The network on the CPU in eval mode, and figures of the run (steps, seconds, loss).
    """
    network = new_network(LandmarkNetwork, network_config, config.seed, initial).to(device)
    if network.descriptors is not None:
        # The samples hold what it gives.
        network.descriptors.requires_grad_(False)
    optimizer = AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle(step, config.steps)
    )
    generator = torch.Generator().manual_seed(config.seed)
    amp_type = torch.device(device).type
    # Where it is not computed by the processor, a step takes eight times as long in it.
    half = has_fast_bfloat16(amp_type)
    own = distributed.share_of(config.images_per_step)

    def loss_of_step(step: int) -> Tensor:
        batch = draw_batch(samples, config, generator)
        total = batch['mask'].sum()
        batch = {name: value[own].to(device) for name, value in batch.items()}
        correct, mask = batch.pop('correct'), batch['mask']
        with torch.autocast(amp_type, dtype=torch.bfloat16, enabled=half):
            logits = network(**batch)
        loss = landmark_loss(logits, correct, mask)
        # The mean over processes is then the mean over all keypoints of the batch.
        return (
            loss if distributed.world() == 1 else loss * (distributed.world() * mask.sum() / total)
        )

    def held_out_loss() -> float:
        losses = []
        for sample in held_out:
            inputs = {name: getattr(sample, name)[None].to(device) for name in _INPUTS}
            with torch.autocast(amp_type, dtype=torch.bfloat16, enabled=half):
                logits = network(**inputs)
            losses.append(float(landmark_loss(logits, sample.correct[None].to(device))))
        return sum(losses) / len(losses)

    figures = run_loop(
        network,
        optimizer,
        scheduler,
        generator,
        loss_of_step,
        config if samples else replace(config, steps=0),
        clip_norm=1.0,
        checkpoint=checkpoint,
        progress=progress,
        on_step=on_step,
        evaluate=held_out_loss if held_out else None,
        patience=config.patience,
    )
    return network, figures
