"""The training loop: batches, optimisers, schedule, checkpoints."""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from d2s_ros import distributed
from d2s_ros.device import has_fast_bfloat16
from d2s_ros.errors import InputError
from d2s_ros.features.superpoint.layers import LINEAR_LAYERS
from d2s_ros.features.warped_pairs import is_held_out
from tools.superpoint_training.labels import label_path, read_labels, read_photograph
from tools.superpoint_training.losses import Batch, LossWeights, total_loss
from tools.superpoint_training.network import TrainableSuperPoint
from tools.superpoint_training.optimizer import Muon
from tools.superpoint_training.pairs import Augmentation, Labels, Pair, make_pair
from tools.superpoint_training.synthetic import synthetic_pair

_logger = logging.getLogger(__name__)

CHECKPOINT = 'checkpoint.pt'


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. A step is one update of the weights, on `batch` pairs per process."""

    batch: int = 4
    size: int = 160
    keypoints: int = 192
    muon_lr: float = 0.015
    adam_lr: float = 1e-3
    warmup: int = 50
    decay_share: float = 0.3
    freeze_share: float = 0.25
    ema: float = 0.998
    checkpoint_every: int = 50
    workers: int = 0
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    weights: LossWeights = field(default_factory=LossWeights)


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps or of minutes, whichever is given."""

    steps: int | None = None
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Return the used share of the budget, 1 when it is used up."""
        shares = []
        if self.steps is not None:
            shares.append(step / max(1, self.steps))
        if self.minutes is not None:
            shares.append(seconds / max(1e-9, self.minutes * 60))
        return max(shares, default=0.0)


def decay_factor(progress: float, share: float) -> float:
    """Learning rate relative to its plateau: 1, then linearly to 0 over the last `share`.

    A plateau with a short decay works for a budget in minutes, whatever number of steps that is.
    """
    return min(1.0, max(0.0, (1.0 - progress) / max(share, 1e-9)))


def collate(pairs: list[Pair]) -> Batch:
    """Stack pairs, padding keypoints with invisible ones."""
    count = max(2, max(len(pair.source_keypoints) for pair in pairs))
    dim = pairs[0].descriptors.shape[1]
    n = len(pairs)
    keypoints = np.zeros((2 * n, count, 2), np.float32)
    visible = np.zeros((2 * n, count), np.bool_)
    places = np.zeros((n, count, 2), np.float32)
    descriptors = np.zeros((n, count, dim), np.float16)
    for b, pair in enumerate(pairs):
        k = len(pair.source_keypoints)
        places[b, :k] = pair.source_keypoints
        descriptors[b, :k] = pair.descriptors
        for v, view in enumerate(pair.views):
            keypoints[2 * b + v, :k] = view.keypoints
            visible[2 * b + v, :k] = view.visible
    views = [view for pair in pairs for view in pair.views]
    return Batch(
        images=torch.from_numpy(np.stack([view.image for view in views]))[:, None],
        heatmaps=torch.from_numpy(np.stack([view.heatmap for view in views])),
        valid=torch.from_numpy(np.stack([view.valid for view in views])),
        keypoints=torch.from_numpy(keypoints),
        visible=torch.from_numpy(visible),
        source_keypoints=torch.from_numpy(places),
        descriptors=torch.from_numpy(descriptors),
        second_from_first=torch.from_numpy(
            np.stack([pair.second_from_first for pair in pairs]).astype(np.float32)
        ),
    )


class PairStream(IterableDataset):  # type: ignore[type-arg]
    """Endless pairs; each process and loader worker draws its own from the seed."""

    def __init__(self, config: TrainingConfig, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed

    def __iter__(self) -> Iterator[Pair]:
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.seed, distributed.rank(), number])
        return self.draw(rng)

    def draw(self, rng: np.random.Generator) -> Iterator[Pair]:
        """Yield pairs without end."""
        raise NotImplementedError


class PhotographPairs(PairStream):
    """Pairs of views of labelled photographs; those held out for evaluation are left out."""

    def __init__(
        self, images: Path, names: list[str], labels: Path, config: TrainingConfig, seed: int
    ) -> None:
        super().__init__(config, seed)
        self.images, self.labels = images, labels
        self.names = [name for name in names if not is_held_out(name)]
        if not self.names:
            raise InputError(f'{images} has no photographs to train on')
        self._cache: dict[str, tuple[np.ndarray, Labels]] = {}

    def draw(self, rng: np.random.Generator) -> Iterator[Pair]:
        """Yield pairs without end, every photograph once per round."""
        while True:
            for index in rng.permutation(len(self.names)):
                photograph, labels = self._load(self.names[index])
                yield make_pair(
                    rng,
                    photograph,
                    labels,
                    size=self.config.size,
                    keypoints=self.config.keypoints,
                    config=self.config.augmentation,
                )

    def _load(self, name: str) -> tuple[np.ndarray, Labels]:
        if name not in self._cache:
            photograph = read_photograph(self.images / name)
            self._cache[name] = (photograph, read_labels(label_path(self.labels, name)))
        return self._cache[name]


class SyntheticPairs(PairStream):
    """Pairs of views of synthetic shapes."""

    def draw(self, rng: np.random.Generator) -> Iterator[Pair]:
        """Yield pairs without end."""
        while True:
            yield synthetic_pair(rng, size=self.config.size, config=self.config.augmentation)


class Trainer:
    """Trains one network.

    Args:
        config: The run.
        teacher_dim: Length of the teacher's descriptors, 0 without.
        out: Folder of the checkpoint.
        device: Where to train.
    """

    def __init__(
        self, config: TrainingConfig, *, teacher_dim: int, out: Path, device: str = 'cpu'
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.out = config, out
        self.device = torch.device(device)
        self.model = TrainableSuperPoint().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        projection = nn.init.orthogonal_(torch.empty(max(1, teacher_dim), 256))
        self.projection = nn.Parameter(projection.to(self.device))
        self.has_teacher = teacher_dim > 0
        turned: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            layer = name.split('.')[0]
            normalised = layer.startswith('conv') and layer not in LINEAR_LAYERS
            (turned if normalised else plain).append(parameter)
        self.muon = Muon(turned, lr=config.muon_lr)
        self.adam = torch.optim.AdamW(
            [*plain, self.projection], lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.ema = copy.deepcopy(self.model).eval()
        self.step = 0
        self.seconds = 0.0

    def fit(self, stream: PairStream, budget: Budget) -> None:
        """Train until the budget is used up, saving a checkpoint now and then and at the end."""
        loader = DataLoader(
            stream,
            batch_size=self.config.batch,
            collate_fn=collate,
            num_workers=self.config.workers,
            persistent_workers=False,
        )
        progress = budget.progress(self.step, self.seconds)
        with tqdm(total=budget.steps, initial=self.step, disable=distributed.rank() > 0) as bar:
            for batch in loader:
                if distributed.agree(progress >= 1.0):
                    break
                started = time.monotonic()
                if progress >= self.config.freeze_share:
                    self.freeze_first_stage()
                terms = self.update(
                    batch.to(self.device), decay_factor(progress, self.config.decay_share)
                )
                bar.update()
                if self.step % 10 == 0:
                    shown = {name: f'{float(value):.3f}' for name, value in terms.items()}
                    bar.set_postfix(shown)
                self.seconds += time.monotonic() - started
                progress = budget.progress(self.step, self.seconds)
                if self.step % self.config.checkpoint_every == 0:
                    self.save()
        self.save()

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Begin with finished weights, and leave the two layers at full resolution as they are."""
        for network in (self.model, self.ema):
            network.start_from(state)
        self.model.freeze_first_stage()

    def freeze_first_stage(self) -> None:
        """Keep the first stage as its average is now: each further step costs half."""
        if self.model.first_stage_frozen:
            return
        mean = self.ema.state_dict()
        first = {name: mean[name] for name in mean if name.split('.')[0][4:] in ('1a', '1b')}
        self.model.load_state_dict(first, strict=False)
        self.model.freeze_first_stage()

    def update(self, batch: Batch, decay: float) -> dict[str, Tensor]:
        """Take one step; return the terms of the loss.

        Args:
            batch: On the trainer's device.
            decay: Factor of the learning rates.
        """
        factor = min(1.0, (self.step + 1) / self.config.warmup) * decay
        for optimizer, rate in ((self.muon, self.config.muon_lr), (self.adam, self.config.adam_lr)):
            for group in optimizer.param_groups:
                group['lr'] = rate * factor
        self.model.train()
        images = batch.images.contiguous(memory_format=torch.channels_last)
        # Where bfloat16 is emulated a step takes seven times as long.
        fast = has_fast_bfloat16(self.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            logits, raw = self.model(images)
        loss, terms = total_loss(
            logits,
            raw,
            self.projection if self.has_teacher else None,
            batch,
            self.config.weights,
        )
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients([*self.model.parameters(), self.projection])
        self.muon.step()
        self.adam.step()
        self.step += 1
        # Young weights change fast: average over the last fifth of the steps at most.
        rate = min(self.config.ema, 1 - 1 / (self.step / 5 + 1))
        with torch.no_grad():
            for mean, value in zip(
                self.ema.state_dict().values(), self.model.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - rate)
        return terms

    def save(self) -> None:
        """Write the checkpoint; an interruption leaves the previous one."""
        if distributed.rank() > 0:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            'model': self.model.state_dict(),
            'ema': self.ema.state_dict(),
            'projection': self.projection.detach(),
            'muon': self.muon.state_dict(),
            'adam': self.adam.state_dict(),
            'frozen': self.model.first_stage_frozen,
            'statistics_frozen': self.model.statistics_frozen,
            'step': self.step,
            'seconds': self.seconds,
            'config': json.dumps(asdict(self.config)),
        }
        temporary = self.out / f'{CHECKPOINT}.partial'
        torch.save(state, temporary)
        os.replace(temporary, self.out / CHECKPOINT)

    def load(self) -> None:
        """Continue from the checkpoint in the trainer's folder.

        Raises:
            InputError: if there is none, or it cannot be read.
        """
        path = self.out / CHECKPOINT
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state['model'])
            self.ema.load_state_dict(state['ema'])
            self.projection.data.copy_(state['projection'])
            self.muon.load_state_dict(state['muon'])
            self.adam.load_state_dict(state['adam'])
            if state['frozen']:
                self.model.freeze_first_stage()
            for network in (self.model, self.ema):
                network.statistics_frozen = bool(state.get('statistics_frozen', False))
            self.step, self.seconds = int(state['step']), float(state['seconds'])
        except (OSError, RuntimeError, KeyError, ValueError, UnpicklingError) as error:
            reason = str(error).strip().split('\n')[0]
            raise InputError(f'cannot resume from {path}: {reason}') from error
        _logger.info('resumed at step %d after %.0f s', self.step, self.seconds)
