"""Training the attack on one kind of content, and the pictures that it makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros.errors import InputError
from d2s_ros.privacy.config import AttackConfig
from d2s_ros.privacy.network import InversionNetwork
from d2s_ros.privacy.sparse import SparseView, Window, random_window, stack
from d2s_ros.scene_models.training_loop import LoopOptions, new_network, one_cycle, run_loop

#: Steps that are timed to know how many fit into the time that is given; the first is slower.
_TIMED_STEPS = 3
#: Weight of the differences between gradients: edges count as much as areas.
_GRADIENT_WEIGHT = 1.0


@dataclass(frozen=True, eq=False)
class Example:
    """A photograph of the attacker's with what a map of it would show.

    Attributes:
        grey: (H, W) uint8.
        view: The points.
    """

    grey: NDArray[np.uint8]
    view: SparseView


class Training:
    """The attack on one kind of content.

    Args:
        examples: The attacker's photographs.
        size: (width, height) of pictures, multiples of 16.
        config: Options; its seed gives weights and batches, so that all kinds see the same windows
            of the same photographs in the same order.
        device: 'cpu' or 'cuda'.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        size: tuple[int, int],
        config: AttackConfig,
        device: str = 'cpu',
    ) -> None:
        self._greys = [example.grey for example in examples]
        self._pixels = [example.view.pixels for example in examples]
        self._size, self._config, self._device = size, config, device
        rows = [example.view.rows() for example in examples]
        everything = np.concatenate(rows)
        # Of equal size whatever they are; the points themselves are not standardised, so that the
        # network sees how many there are.
        self._mean = everything.mean(axis=0)
        self._scale = np.maximum(everything.std(axis=0), 1e-3)
        self._rows = [self._standardised(row) for row in rows]
        self.network = new_network(
            lambda width: InversionNetwork(everything.shape[1], width),
            config.width,
            config.seed,
            None,
        ).to(device)

    def _standardised(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        # Of 128 numbers of size one each, a linear map makes sums larger than of two.
        scaled = (rows - self._mean) / (self._scale * np.sqrt(max(1, rows.shape[1] / 8)))
        return np.asarray(scaled, np.float32)

    def run(
        self,
        steps: int,
        *,
        checkpoint: Path | None = None,
        progress: bool = False,
        on_step: Callable[[int, float], None] | None = None,
    ) -> dict[str, Any]:
        """Train, from the checkpoint on if there is one; returns figures of the run."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self._config.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: one_cycle(step, steps)
        )
        generator = torch.Generator().manual_seed(self._config.seed)
        return run_loop(
            self.network,
            optimizer,
            scheduler,
            generator,
            lambda _step: self._loss(generator),
            LoopOptions(steps=steps, checkpoint_seconds=self._config.checkpoint_seconds),
            clip_norm=1.0,
            checkpoint=checkpoint,
            progress=progress,
            on_step=on_step,
        )

    def seconds_per_step(self) -> float:
        """Return how long a step takes here, without changing the training."""
        state = {name: value.clone() for name, value in self.network.state_dict().items()}
        generator = torch.Generator().manual_seed(self._config.seed)
        times = []
        for _ in range(_TIMED_STEPS):
            started = time.perf_counter()
            self._loss(generator).backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - started)
        self.network.zero_grad(set_to_none=True)
        self.network.load_state_dict(state)
        return float(np.median(times))

    def _loss(self, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch of windows."""
        width, height = self._size
        truths, views = [], []
        for _ in range(self._config.pictures_per_step):
            draws = torch.rand(4, generator=generator).tolist()
            index = int(draws[0] * len(self._greys))
            grey = self._greys[index]
            window = random_window(
                grey.shape[1], grey.shape[0], self._size, (draws[1], draws[2], draws[3])
            )
            inside, cells = window.cells(self._pixels[index], self._size)
            views.append((self._rows[index][inside], cells))
            truths.append(window.cut(grey, self._size))
        rows, cells_of_all = stack(views, width * height)
        truth = torch.from_numpy(np.stack(truths))[:, None].to(self._device)
        coarse, refined = self.network(
            rows.to(self._device), cells_of_all.to(self._device), (len(truths), height, width)
        )
        return (
            functional.l1_loss(coarse, truth)
            + functional.l1_loss(refined, truth)
            + _GRADIENT_WEIGHT * _gradient_loss(refined, truth)
        )

    @torch.no_grad()
    def picture(self, view: SparseView, window: Window) -> NDArray[np.float32]:
        """Return the picture (h, w) in [0, 1] that the attack makes of a view."""
        width, height = self._size
        inside, cells = window.cells(view.pixels, self._size)
        rows, index = stack([(self._standardised(view.rows())[inside], cells)], width * height)
        self.network.eval()
        device = next(self.network.parameters()).device
        found = self.network(rows.to(device), index.to(device), (1, height, width))[-1]
        return np.asarray(found[0, 0].clamp(0.0, 1.0).cpu().numpy(), np.float32)


def _gradient_loss(picture: Tensor, truth: Tensor) -> Tensor:
    """Return the mean absolute difference of gradients at three sizes."""
    total = picture.new_zeros(())
    for _ in range(3):
        for axis in (2, 3):
            total = total + functional.l1_loss(picture.diff(dim=axis), truth.diff(dim=axis))
        picture, truth = functional.avg_pool2d(picture, 2), functional.avg_pool2d(truth, 2)
    return total


def steps_within(minutes: float, steps: int, seconds: Sequence[float]) -> int:
    """Return the steps of each training such that all together take no longer.

    Args:
        minutes: For all trainings; 0: no limit.
        steps: The most.
        seconds: Of a step of each kind of content.

    Raises:
        InputError: not even ten steps of each fit.
    """
    if not minutes:
        return steps
    fitting = int(60.0 * minutes / max(sum(seconds), 1e-9))
    if fitting < 10:
        raise InputError(
            f'in {minutes:g} minutes the attack learns {fitting} steps of each of {len(seconds)} '
            'kinds of content here, too few for any picture; give more --minutes, fewer --kinds, '
            'or a smaller --size or --width'
        )
    return min(steps, fitting)
