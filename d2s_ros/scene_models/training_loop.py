"""The training loop that all heads share: checkpoints, time limit, early stop, several processes.

A checkpoint is a sha256 and what it is of, so that a damaged one is noticed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from d2s_ros import distributed
from d2s_ros.config import option, validate

_logger = logging.getLogger(__name__)

Config = TypeVar('Config')
Network = TypeVar('Network', bound=nn.Module)


@dataclass(frozen=True)
class LoopOptions:
    """Options of a training that the loop reads; each head adds its own."""

    steps: int = option(500, 'Optimiser steps.', minimum=0)
    max_minutes: float = option(0.0, 'Stop after this time; 0 for no limit.', minimum=0.0)
    checkpoint_seconds: float = option(20.0, 'Time between checkpoints.', minimum=0.0)
    evaluate_every: int = option(50, 'Steps between evaluations on held-out images.', minimum=1)
    seed: int = option(0, 'Seed of all randomness.', minimum=0)

    def __post_init__(self) -> None:
        validate(self)


def new_network(
    make: Callable[[Config], Network],
    config: Config,
    seed: int,
    initial: dict[str, Tensor] | None,
) -> Network:
    """Return a network with the weights of a seed, or with given ones; no other drawing changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make(config)
    if initial is not None:
        network.load_state_dict(initial)
    return network


def run_loop(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
    loss_of_step: Callable[[int], Tensor],
    config: LoopOptions,
    *,
    clip_norm: float = 0.0,
    average: float = 0.0,
    checkpoint: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    evaluate: Callable[[], float] | None = None,
    patience: int = 0,
) -> dict[str, Any]:
    """Minimise `loss_of_step(step)`, step = 0, 1, ..., whose only randomness is `generator`.

    Args:
        network: Trained in place, on its device; left in eval mode on the CPU.
        optimizer, scheduler: Of the network's parameters.
        generator: Saved with each checkpoint, so a resumed run draws what an uninterrupted one
            would have drawn.
        loss_of_step: Makes a batch and returns its loss; of several processes each has its share,
            and the gradient is the mean of theirs.
        config: Limits.
        clip_norm: Largest norm of the gradient; 0 leaves it as it is.
        average: What a step keeps of the running mean of the weights, which is what is evaluated
            and left in the network; 0: the weights themselves.
        checkpoint: File to resume from and to save to.
        progress: Show a progress bar.
        on_step: Called with (steps done, average loss) after each step; an exception ends training
            after a checkpoint was saved.
        evaluate: Returns the loss on held-out images; with `patience`, the weights of its lowest
            value are kept, those before the first step among them.
        patience: Evaluations without improvement before training stops; 0 never stops early.

    Returns:
        Figures of the run: steps, seconds, loss (None without a step); with `patience` also
        best_step and best_loss.
    """
    step, seconds, loss_average = 0, 0.0, math.nan
    best = _Best()
    mean = _weights(network) if average else None
    watch = evaluate if patience else None
    state = read_checkpoint(checkpoint)
    if state is not None:
        network.load_state_dict(state['network'])
        optimizer.load_state_dict(state['optimizer'])
        scheduler.load_state_dict(state['scheduler'])
        generator.set_state(state['generator'])
        step, seconds, loss_average = state['step'], state['seconds'], state['loss']
        best = _Best(**state['best'])
        mean = state['mean']
        _logger.info('training resumes at step %d of %d', step, config.steps)

    def save() -> None:
        if checkpoint is None or distributed.rank() > 0:
            return
        write_checkpoint(
            checkpoint,
            {
                'network': network.state_dict(),
                'optimizer': optimizer.state_dict(),
                'scheduler': scheduler.state_dict(),
                'generator': generator.get_state(),
                'step': step,
                'seconds': seconds,
                'loss': loss_average,
                'best': vars(best),
                'mean': mean,
            },
        )

    network.train()
    started = last_saved = time.monotonic()
    already = seconds
    bar = tqdm(total=config.steps, initial=step, desc='training', unit='step', disable=not progress)
    between_steps = True

    def evaluated() -> None:
        if watch is not None:
            own = None if mean is None else _weights(network)
            if mean is not None:
                network.load_state_dict(mean)
            network.eval()
            with torch.no_grad():
                best.update(step, distributed.mean(watch()), network)
            network.train()
            if own is not None:
                network.load_state_dict(own)

    try:
        if step == 0:
            evaluated()
        while step < config.steps and not (watch and best.misses >= patience):
            between_steps = False
            loss = loss_of_step(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            distributed.average_gradients(network.parameters())
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
            scheduler.step()
            step += 1
            if mean is not None:
                # Of the first steps the mean forgets the start sooner.
                _average(mean, network, min(average, step / (step + 10)))
            value = distributed.mean(float(loss.detach()))
            loss_average = value if math.isnan(loss_average) else 0.95 * loss_average + 0.05 * value
            now = time.monotonic()
            seconds = already + now - started
            bar.update()
            if step % config.evaluate_every == 0 or step == config.steps:
                evaluated()
            postfix = {'loss': f'{loss_average:.3f}'}
            if watch:
                postfix['held_out'] = f'{best.last:.3f}'
            bar.set_postfix(postfix, refresh=False)
            between_steps = True
            if on_step is not None:
                on_step(step, loss_average)
            if now - last_saved > config.checkpoint_seconds:
                save()
                last_saved = now
            if config.max_minutes and distributed.agree(seconds > 60 * config.max_minutes):
                _logger.info('training stops at its time limit after %d steps', step)
                break
    except BaseException:
        # Half a step cannot be gone on from: the result would not be the same.
        if between_steps:
            save()
        raise
    finally:
        bar.close()
    figures: dict[str, Any] = {'steps': step, 'seconds': round(seconds, 2), 'loss': None}
    if not math.isnan(loss_average):
        figures['loss'] = round(loss_average, 4)
    if mean is not None:
        network.load_state_dict(mean)
    if best.network is not None:
        network.load_state_dict(best.network)
        figures |= {'best_step': best.step, 'best_loss': round(best.loss, 4)}
    network.to('cpu').eval()
    return figures


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def _average(mean: dict[str, Tensor], network: nn.Module, kept: float) -> None:
    for name, value in network.state_dict().items():
        mean[name].lerp_(value.detach().cpu(), 1.0 - kept)


@dataclass
class _Best:
    """The weights with the lowest loss on held-out images so far."""

    loss: float = math.inf
    last: float = math.inf
    step: int = 0
    misses: int = 0
    network: dict[str, Tensor] | None = None

    def update(self, step: int, loss: float, network: nn.Module) -> None:
        self.last = loss
        if loss < self.loss:
            self.loss, self.step, self.misses = loss, step, 0
            self.network = _weights(network)
        else:
            self.misses += 1


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint; where it cannot be written, that is said and training goes on."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    temporary = path.with_suffix('.tmp')
    try:
        temporary.write_bytes(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        _logger.warning(
            'cannot write the checkpoint %s (%s): training goes on without',
            path,
            error.strerror or error,
        )


def read_checkpoint(path: Path | None) -> dict[str, Any] | None:
    """Return what was saved; None, and said, if it is damaged. All processes get the first's."""
    if path is None:
        return None
    data = b''
    if distributed.rank() == 0 and path.is_file():
        content = path.read_bytes()
        data = content[32:]
        if hashlib.sha256(data).digest() != content[:32]:
            _logger.warning('the checkpoint %s is damaged: training starts again', path)
            data = b''
    data = distributed.share_bytes(data)
    if not data:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    return state


def one_cycle(step: int, total: int, warmup: float = 0.2) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to zero."""
    progress = min(1.0, (step + 1) / max(1, total))
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def halving(step: int, total: int, parts: int = 7) -> float:
    """Return the share of the first learning rate: halved after every `parts`-th of the run."""
    return float(0.5 ** min(parts - 1, parts * step // max(1, total)))
