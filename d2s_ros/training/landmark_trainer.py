"""Training of the landmark head: which candidate is right, or none, for every keypoint."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from d2s_ros.config import option, validate
from d2s_ros.network.landmark import LandmarkConfig, LandmarkNetwork
from d2s_ros.training.samples import LandmarkSample

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LandmarkTrainingConfig:
    """Options of the training loop."""

    steps: int = option(500, 'Optimiser steps.', minimum=0)
    images_per_step: int = option(4, 'Images in a batch.', minimum=1)
    keypoints_per_image: int = option(512, 'Random keypoints of each image.', minimum=16)
    learning_rate: float = option(2e-3, 'Peak of the one-cycle schedule.', minimum=0.0)
    weight_decay: float = option(0.01, 'Of AdamW.', minimum=0.0)
    descriptor_noise: float = option(
        0.02, 'Standard deviation of noise added to descriptors.', minimum=0.0
    )
    max_minutes: float = option(0.0, 'Stop after this time; 0 for no limit.', minimum=0.0)
    checkpoint_seconds: float = option(20.0, 'Time between checkpoints.', minimum=0.0)
    seed: int = option(0, 'Seed of all randomness.', minimum=0)

    def __post_init__(self) -> None:
        validate(self)


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
        for name in (
            'descriptors',
            'evidence',
            'candidate_points',
            'keypoints',
            'log_scales',
            'correct',
        ):
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

    Returns:
        The network on the CPU in eval mode, and figures of the run (steps, seconds, loss).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = LandmarkNetwork(network_config)
    if initial is not None:
        network.load_state_dict(initial)
    network.to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle(step, config.steps)
    )
    generator = torch.Generator().manual_seed(config.seed)
    step, seconds, loss_average = 0, 0.0, math.nan
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state['network'])
        optimizer.load_state_dict(state['optimizer'])
        scheduler.load_state_dict(state['scheduler'])
        generator.set_state(state['generator'].cpu())
        step, seconds, loss_average = state['step'], state['seconds'], state['loss']
        _logger.info('training resumes at step %d of %d', step, config.steps)

    def save() -> None:
        if checkpoint is None:
            return
        temporary = checkpoint.with_suffix('.tmp')
        torch.save(
            {
                'network': network.state_dict(),
                'optimizer': optimizer.state_dict(),
                'scheduler': scheduler.state_dict(),
                'generator': generator.get_state(),
                'step': step,
                'seconds': seconds,
                'loss': loss_average,
            },
            temporary,
        )
        os.replace(temporary, checkpoint)

    amp_type = torch.device(device).type
    started = last_saved = time.monotonic()
    already = seconds
    bar = tqdm(total=config.steps, initial=step, desc='training', unit='step', disable=not progress)
    try:
        while step < config.steps and len(samples):
            batch = draw_batch(samples, config, generator)
            batch = {name: value.to(device) for name, value in batch.items()}
            correct, mask = batch.pop('correct'), batch['mask']
            with torch.autocast(amp_type, dtype=torch.bfloat16):
                logits = network(**batch)
            loss = landmark_loss(logits, correct, mask)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            step += 1
            value = float(loss.detach())
            loss_average = value if math.isnan(loss_average) else 0.95 * loss_average + 0.05 * value
            now = time.monotonic()
            seconds = already + now - started
            bar.update()
            bar.set_postfix(loss=f'{loss_average:.3f}', refresh=False)
            if on_step is not None:
                on_step(step, loss_average)
            if now - last_saved > config.checkpoint_seconds:
                save()
                last_saved = now
            if config.max_minutes and seconds > 60 * config.max_minutes:
                _logger.info('training stops at its time limit after %d steps', step)
                break
    except BaseException:
        save()
        raise
    finally:
        bar.close()
    network.to('cpu').eval()
    figures = {
        'steps': step,
        'seconds': round(seconds, 2),
        'loss': None if math.isnan(loss_average) else round(loss_average, 4),
    }
    return network, figures


def one_cycle(step: int, total: int, warmup: float = 0.2) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to zero."""
    progress = min(1.0, (step + 1) / max(1, total))
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
