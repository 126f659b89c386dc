"""Finish the layers after the last pooling for precise positions, on maps computed once.

    python -m tools.superpoint_training.finishing --images DIR --out DIR --minutes 60

The layers before it cost nine tenths of a step and change least, so what they give for a number
of pairs of views is stored, and a step on two cores takes a tenth. Begins with the packaged
weights, or those of --start. With --layers detector only the detector's head moves, and the
descriptor at a given place stays exactly as it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from d2s_ros.errors import D2SError, InputError, UsageError
from d2s_ros.features.superpoint.files import default_weights_path, projection_path
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.superpoint.weights import load_network
from d2s_ros.features.warped_pairs import is_held_out
from d2s_ros.kernels.tensors import score_map
from tools.superpoint_training.labels import photograph_names, read_photograph
from tools.superpoint_training.losses import (
    PEAK_BORDER,
    mapped_points,
    position_losses,
    refined_peaks,
    strongest_peaks,
)
from tools.superpoint_training.optimizer import Muon
from tools.superpoint_training.pairs import Augmentation, draw_views
from tools.superpoint_training.projection import SMOOTHING
from tools.superpoint_training.trainer import Budget, decay_factor

_logger = logging.getLogger(__name__)

#: The layers that --layers lets move.
LAYERS = {
    'detector': ('convPa', 'convPb'),
    'all': ('conv4a', 'conv4b', 'convPa', 'convPb', 'convDa', 'convDb'),
}
#: Pairs of views per file.
SHARD = 20
#: Of every so many shards one is of photographs that are held out, for measuring.
MEASURED_EVERY = 10
VIEWS = Augmentation(scale=(1.0, 2.2), clean=0.4, grain=2.5, smoothing=SMOOTHING)


@dataclass(frozen=True)
class FinishingConfig:
    """A run. Rates are of the plateau; `keep` is the weight of staying with the old scores."""

    batch: int = 4
    size: int = 192
    muon_lr: float = 0.01
    adam_lr: float = 3e-4
    decay_share: float = 0.5
    warmup: int = 30
    ema: float = 0.99
    precision: float = 2.0
    ranking: float = 0.5
    keep: float = 0.5
    layers: str = 'detector'
    checkpoint_every: int = 100
    seed: int = 0


class Head(torch.nn.Module):
    """What follows the last pooling, with the weights of a network.

    Args:
        network: It gives the weights.
        layers: What moves, of `LAYERS`; what comes before that is in `entering`, not in `forward`.
    """

    def __init__(self, network: SuperPointNet, layers: str) -> None:
        super().__init__()
        self.layers = layers
        for name in LAYERS['all']:
            setattr(self, name, copy.deepcopy(network.get_submodule(name)))

    def _shared(self, x: Tensor) -> Tensor:
        for name in ('conv4a', 'conv4b'):
            x = functional.relu(self.get_submodule(name)(x))
        return x

    def entering(self, x: Tensor) -> Tensor:
        """Run the layers that stay on what the last pooling gives."""
        return x if self.layers == 'all' else self._shared(x)

    def forward(self, x: Tensor, *, describe: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return logits, and raw descriptors if they are asked for, of what `entering` gave."""
        if self.layers == 'all':
            x = self._shared(x)
        logits = self.get_submodule('convPb')(functional.relu(self.get_submodule('convPa')(x)))
        raw = None
        if describe:
            raw = self.get_submodule('convDb')(functional.relu(self.get_submodule('convDa')(x)))
        return logits, raw


def pooled_maps(network: SuperPointNet, images: Tensor) -> Tensor:
    """Return what the last pooling gives, (V, 128, S/8, S/8)."""
    x = images
    for stage in ('1', '2', '3'):
        for part in ('a', 'b'):
            x = functional.relu(network.get_submodule(f'conv{stage}{part}')(x))
        x = functional.max_pool2d(x, 2)
    return x


def store_pairs(
    network: SuperPointNet,
    images: Path,
    folder: Path,
    *,
    count: int,
    size: int,
    seed: int = 0,
) -> None:
    """Draw pairs of views and store what the last pooling gives, SHARD to a file; goes on."""
    names = photograph_names(images)
    kinds = {
        'train': [name for name in names if not is_held_out(name)],
        'measure': [name for name in names if is_held_out(name)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for shard in range(-(-count // SHARD)):
        kind = 'measure' if shard % MEASURED_EVERY == 1 else 'train'
        target = folder / f'{kind}-{shard:05d}.npz'
        if target.is_file() or not kinds[kind]:
            continue
        rng = np.random.default_rng([seed, shard])
        maps, motions, clean = [], [], []
        for _ in range(SHARD):
            photograph = read_photograph(images / str(rng.choice(kinds[kind])))
            views, motion, plain = draw_views(rng, photograph, size, VIEWS)
            with torch.inference_mode():
                maps.append(pooled_maps(network, torch.from_numpy(np.stack(views))[:, None]))
            motions.append(motion)
            clean.append(plain)
        temporary = target.with_suffix('.partial')
        with temporary.open('wb') as stream:
            np.savez(
                stream,
                maps=torch.stack(maps).half().numpy(),
                motions=np.stack(motions).astype(np.float32),
                clean=np.array(clean),
            )
        os.replace(temporary, target)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of views as the moving layers see them.

    Attributes:
        maps: (P, 2, C, s, s) float16, what enters the first layer that moves.
        logits: (P, 2, 65, s, s) float16, of the weights that it began with.
        motions: (P, 3, 3), homography from the first view to the second.
        clean: (P,) whether neither view is degraded.
    """

    maps: Tensor
    logits: Tensor
    motions: Tensor
    clean: Tensor

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps (2B, C, s, s), old logits (2B, 65, s, s) and motions (B, 3, 3)."""
        maps = self.maps[index].flatten(0, 1).float()
        return (
            maps.contiguous(memory_format=torch.channels_last),
            self.logits[index].flatten(0, 1).float(),
            self.motions[index],
        )


class Store:
    """What `store_pairs` wrote by now, each file passed through the layers that stay but once."""

    def __init__(self, folder: Path, old: Head) -> None:
        self.folder, self.old = folder, old
        self._known: dict[str, Pairs] = {}

    def read(self, kind: str) -> Pairs:
        """Return all pairs to 'train' or to 'measure'."""
        paths = sorted(self.folder.glob(f'{kind}-*.npz'))
        if not paths:
            raise InputError(f'{self.folder} has no pairs to {kind}')
        for path in paths:
            if path.name not in self._known:
                self._known[path.name] = self._read(path)
        shards = [self._known[path.name] for path in paths]
        return Pairs(
            *(torch.cat([getattr(s, name) for s in shards]) for name in Pairs.__dataclass_fields__)
        )

    def _read(self, path: Path) -> Pairs:
        with np.load(path) as stored:
            maps = torch.from_numpy(stored['maps'])
            motions, clean = torch.from_numpy(stored['motions']), torch.from_numpy(stored['clean'])
        entering, logits = [], []
        with torch.inference_mode():
            for pair in maps:
                x = self.old.entering(pair.float().contiguous(memory_format=torch.channels_last))
                entering.append(x.half())
                logits.append(self.old(x)[0].half())
        return Pairs(torch.stack(entering), torch.stack(logits), motions, clean)


def measure(head: Head, pairs: Pairs, *, peaks: int = 48) -> dict[str, float]:
    """Return mean and median distance and the share found again, of clean pairs and of others."""
    rows: dict[str, list[NDArray[np.float32]]] = {'clean': [], 'degraded': []}
    for index in range(len(pairs.clean)):
        maps, _, motion = pairs.batch(torch.tensor([index]))
        with torch.inference_mode():
            scores = score_map(head(maps)[0])
            found, _ = strongest_peaks(scores, peaks)
            points = refined_peaks((scores + 1e-3).log(), found)
            forward = mapped_points(motion, points[:1])[0]
            gaps = torch.cdist(forward, points[1]).min(dim=1).values
            side = scores.shape[-1]
            inside = ((forward > PEAK_BORDER) & (forward < side - 1 - PEAK_BORDER)).all(dim=1)
        rows['clean' if pairs.clean[index] else 'degraded'].append(gaps[inside].numpy())
    result = {}
    for kind, found_gaps in rows.items():
        gap = np.concatenate(found_gaps) if found_gaps else np.zeros(0, np.float32)
        near = gap[gap <= 3.0]
        result[f'{kind}_found'] = float(len(near) / max(1, len(gap)))
        result[f'{kind}_mean'] = float(near.mean()) if len(near) else float('nan')
        result[f'{kind}_median'] = float(np.median(near)) if len(near) else float('nan')
    return result


class Finisher:
    """Moves the last layers of a network."""

    def __init__(self, network: SuperPointNet, config: FinishingConfig, out: Path) -> None:
        if config.layers not in LAYERS:
            raise UsageError(f'--layers is one of {", ".join(LAYERS)}, not {config.layers}')
        torch.manual_seed(config.seed)
        self.network, self.config, self.out = network, config, out
        old: Any = Head(network, config.layers).requires_grad_(False)
        self.old: Head = old.to(memory_format=torch.channels_last)
        self.head = copy.deepcopy(self.old)
        moved = [self.head.get_submodule(name) for name in LAYERS[config.layers]]
        for module in moved:
            module.requires_grad_(True)
        self.ema = copy.deepcopy(self.head).requires_grad_(False)
        inner = [m.get_parameter('weight') for m in moved if m.weight.shape[-1] == 3]  # type: ignore[index, union-attr]
        # Muon keeps weights at norm one per filter; here they keep their own.
        self.sizes = [float(weight.detach().norm()) / len(weight) ** 0.5 for weight in inner]
        self.inner = inner
        self.muon = Muon(inner, lr=config.muon_lr)
        chosen = {id(weight) for weight in inner}
        rest = [p for m in moved for p in m.parameters() if id(p) not in chosen]
        self.adam = torch.optim.Adam(rest, lr=config.adam_lr, betas=(0.9, 0.98))
        self.step = 0
        self.seconds = 0.0

    def update(
        self, maps: Tensor, old_logits: Tensor, motions: Tensor, decay: float
    ) -> dict[str, float]:
        """Take one step; return the terms of the loss."""
        config = self.config
        factor = min(1.0, (self.step + 1) / config.warmup) * decay
        for optimizer, rate in ((self.muon, config.muon_lr), (self.adam, config.adam_lr)):
            for group in optimizer.param_groups:
                group['lr'] = rate * factor
        describe = config.layers == 'all'
        logits, raw = self.head(maps, describe=describe)
        position, ranking, median = position_losses(logits, motions)
        keep = functional.kl_div(
            functional.log_softmax(logits, dim=1),
            functional.log_softmax(old_logits, dim=1),
            log_target=True,
            reduction='none',
        )
        keep = keep.sum(dim=1).mean()
        loss = config.precision * position + config.ranking * ranking + config.keep * keep
        if raw is not None:
            with torch.no_grad():
                old_raw = self.old(maps, describe=True)[1]
            loss = loss + 5.0 * (1.0 - functional.cosine_similarity(raw, old_raw, dim=1)).mean()
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            for weight, size in zip(self.inner, self.sizes, strict=True):
                weight.div_(size)
            self.muon.step()
            for weight, size in zip(self.inner, self.sizes, strict=True):
                weight.mul_(size)
        self.adam.step()
        self.step += 1
        rate = min(config.ema, 1 - 1 / (self.step / 5 + 1))
        with torch.no_grad():
            for mean, value in zip(self.ema.parameters(), self.head.parameters(), strict=True):
                mean.lerp_(value, 1 - rate)
        terms = {'position': position, 'ranking': ranking, 'keep': keep, 'median': median}
        return {name: float(value.detach()) for name, value in terms.items()}

    def batches(self, pairs: Pairs) -> Iterator[Tensor]:
        """Yield indices without end, every pair once per round."""
        rng = np.random.default_rng([self.config.seed, self.step])
        while True:
            order = rng.permutation(len(pairs.clean))
            for start in range(0, len(order) - self.config.batch + 1, self.config.batch):
                yield torch.from_numpy(order[start : start + self.config.batch])

    def fit(self, stored: Path, budget: Budget) -> None:
        """Train until the budget is used up; reads again what is stored at each checkpoint."""
        progress = budget.progress(self.step, self.seconds)
        store = Store(stored, self.old)
        while progress < 1.0:
            pairs, held_out = store.read('train'), store.read('measure')
            if len(pairs.clean) < self.config.batch:
                raise InputError(f'{stored} has {len(pairs.clean)} pairs, less than a batch')
            if self.step == 0:
                self._note(measure(self.old, held_out), len(pairs.clean))
            sums: dict[str, float] = {}
            for number, index in enumerate(self.batches(pairs), 1):
                started = time.monotonic()
                terms = self.update(
                    *pairs.batch(index), decay_factor(progress, self.config.decay_share)
                )
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
                self.seconds += time.monotonic() - started
                progress = budget.progress(self.step, self.seconds)
                if number == self.config.checkpoint_every or progress >= 1.0:
                    break
            means = {name: value / number for name, value in sums.items()}
            self._note({**means, **measure(self.ema, held_out)}, len(pairs.clean))
            self.save()

    def _note(self, figures: dict[str, float], pairs: int) -> None:
        row = {'step': self.step, 'minutes': self.seconds / 60, 'pairs': pairs, **figures}
        row = {name: round(value, 4) for name, value in row.items()}
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / 'curve.jsonl').open('a') as stream:
            stream.write(json.dumps(row) + '\n')
        _logger.info('%s', row)

    def save(self) -> None:
        """Write the checkpoint, and the weights as they are; an interruption leaves the last."""
        state = {
            'head': self.head.state_dict(),
            'ema': self.ema.state_dict(),
            'muon': self.muon.state_dict(),
            'adam': self.adam.state_dict(),
            'step': self.step,
            'seconds': self.seconds,
        }
        temporary = self.out / 'checkpoint.partial'
        torch.save(state, temporary)
        os.replace(temporary, self.out / 'checkpoint.pt')
        self.write_weights(self.out / 'superpoint.safetensors')

    def load(self) -> None:
        """Go on from the checkpoint in the folder."""
        state = torch.load(self.out / 'checkpoint.pt', weights_only=True)
        for name in ('head', 'ema', 'muon', 'adam'):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = int(state['step']), float(state['seconds'])

    def write_weights(self, path: Path) -> None:
        """Write the averaged weights in the published layout, float16."""
        weights = dict(self.network.state_dict())
        weights.update(self.ema.state_dict())
        half = {name: value.half().contiguous().cpu() for name, value in weights.items()}
        temporary = path.with_suffix('.partial')
        temporary.write_bytes(save(half, {'format': 'pt', 'finishing_steps': str(self.step)}))
        os.replace(temporary, path)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    defaults = FinishingConfig()
    parser = argparse.ArgumentParser(
        prog='python -m tools.superpoint_training.finishing',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--images', type=Path, help='photographs; none: only what is stored')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--stored', type=Path, help='folder of stored maps; OUT/pairs otherwise')
    parser.add_argument('--start', type=Path, help='weight file; the packaged one otherwise')
    parser.add_argument('--pairs', type=int, default=1000, help='pairs of views to store')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--minutes', type=float, help='time to train')
    length.add_argument('--steps', type=int, help='for a busy machine; neither: only store pairs')
    parser.add_argument('--checkpoint-every', type=int, default=defaults.checkpoint_every)
    parser.add_argument('--layers', default=defaults.layers, choices=tuple(LAYERS))
    parser.add_argument('--resume', action='store_true')
    for name in ('batch', 'size', 'muon_lr', 'adam_lr', 'precision', 'ranking', 'keep', 'seed'):
        value = getattr(defaults, name)
        parser.add_argument(f'--{name.replace("_", "-")}', type=type(value), default=value)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')
    cv2.setNumThreads(1)
    try:
        finish(options)
    except D2SError as error:
        _logger.error('%s', error)
        return error.exit_code
    return 0


def finish(options: argparse.Namespace) -> None:
    """Store pairs and train as the options say."""
    start = default_weights_path() if options.start is None else options.start
    if start is None:
        raise UsageError('the package has no superpoint weights; give --start a file')
    network, _ = load_network(start)
    stored = options.out / 'pairs' if options.stored is None else options.stored
    if options.images is not None:
        store_pairs(
            network, options.images, stored, count=options.pairs, size=options.size,
            seed=options.seed,
        )  # fmt: skip
    if options.minutes is None and options.steps is None:
        return
    names = ('batch', 'size', 'muon_lr', 'adam_lr', 'precision', 'ranking', 'keep', 'seed')
    config = FinishingConfig(
        layers=options.layers,
        checkpoint_every=options.checkpoint_every,
        **{name: getattr(options, name) for name in names},
    )
    finisher = Finisher(network, config, options.out)
    if options.resume and (options.out / 'checkpoint.pt').is_file():
        finisher.load()
    if projection_path(Path(start)).is_file():
        # Descriptors at a given place stay, so what shortens them does; it also says to smooth.
        options.out.mkdir(parents=True, exist_ok=True)
        target = projection_path(options.out / 'superpoint.safetensors')
        shutil.copyfile(projection_path(Path(start)), target)
    finisher.fit(stored, Budget(steps=options.steps, minutes=options.minutes))


if __name__ == '__main__':
    sys.exit(main())
