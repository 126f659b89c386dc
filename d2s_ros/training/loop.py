"""The training loop that all heads share: checkpoints, time limit, progress."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

_logger = logging.getLogger(__name__)


class LoopConfig(Protocol):
    """What the loop reads of a head's training options."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""

    @property
    def max_minutes(self) -> float:
        """Stop after this time; 0 for no limit."""

    @property
    def checkpoint_seconds(self) -> float:
        """Time between checkpoints."""


def run_loop(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
    loss_of_step: Callable[[int], Tensor],
    config: LoopConfig,
    *,
    clip_norm: float = 0.0,
    checkpoint: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Minimise `loss_of_step(step)`, step = 0, 1, ..., whose only randomness is `generator`.

    Args:
        network: Trained in place, on its device; left in eval mode on the CPU.
        optimizer, scheduler: Of the network's parameters.
        generator: Saved with each checkpoint, so a resumed run draws what an uninterrupted one
            would have drawn.
        loss_of_step: Makes a batch and returns its loss.
        config: Limits.
        clip_norm: Largest norm of the gradient; 0 leaves it as it is.
        checkpoint: File to resume from and to save to.
        progress: Show a progress bar.
        on_step: Called with (steps done, average loss) after each step; an exception ends training
            after a checkpoint was saved.

    Returns:
        Figures of the run: steps, seconds, loss (None without a step).
    """
    step, seconds, loss_average = 0, 0.0, math.nan
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, map_location='cpu', weights_only=True)
        network.load_state_dict(state['network'])
        optimizer.load_state_dict(state['optimizer'])
        scheduler.load_state_dict(state['scheduler'])
        generator.set_state(state['generator'])
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

    network.train()
    started = last_saved = time.monotonic()
    already = seconds
    bar = tqdm(total=config.steps, initial=step, desc='training', unit='step', disable=not progress)
    try:
        while step < config.steps:
            loss = loss_of_step(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
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
    loss_figure = None if math.isnan(loss_average) else round(loss_average, 4)
    return {'steps': step, 'seconds': round(seconds, 2), 'loss': loss_figure}


def one_cycle(step: int, total: int, warmup: float = 0.2) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to zero."""
    progress = min(1.0, (step + 1) / max(1, total))
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def halving(step: int, total: int, parts: int = 7) -> float:
    """Return the share of the first learning rate: halved after every `parts`-th of the run."""
    return float(0.5 ** min(parts - 1, parts * step // max(1, total)))
