"""Train SuperPoint weights from a folder of photographs.

With a teacher (ALIKED-n16):
    python -m tools.superpoint_training --images DIR --out DIR --teacher aliked-n16.pth --minutes 90

From finished weights, for precision; they are the teacher unless there is another:
    python -m tools.superpoint_training --images DIR --out DIR --start packaged --minutes 90

From scratch (synthetic shapes, homographic adaptation, then everything together):
    python -m tools.superpoint_training --images DIR --out DIR --device cuda --minutes 60

On several GPUs, the same behind torchrun:
    torchrun --nproc_per_node 4 -m tools.superpoint_training ...
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from d2s_ros import distributed
from d2s_ros.errors import D2SError, UsageError
from d2s_ros.features.superpoint.extractor import checked_device
from d2s_ros.features.superpoint.files import default_weights_path, projection_path
from d2s_ros.features.superpoint.network import SuperPointNet
from d2s_ros.features.superpoint.weights import load_network
from d2s_ros.features.warped_pairs import is_held_out
from tools.superpoint_training.labels import (
    AlikedTeacher,
    HomographicAdaptation,
    SuperPointTeacher,
    cache_labels,
    photograph_names,
    read_photograph,
)
from tools.superpoint_training.losses import LossWeights
from tools.superpoint_training.network import save_weights
from tools.superpoint_training.pairs import Augmentation
from tools.superpoint_training.projection import SMOOTHING, fit_projection, save_projection
from tools.superpoint_training.trainer import (
    Budget,
    PhotographPairs,
    SyntheticPairs,
    Trainer,
    TrainingConfig,
)

_logger = logging.getLogger(__name__)

#: Part of the budget that goes to synthetic shapes when there is no teacher.
SYNTHETIC_SHARE = 0.3
#: About as many photographs give the projection of the descriptors.
PROJECTION_PHOTOGRAPHS = 100


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    defaults = TrainingConfig()
    parser = argparse.ArgumentParser(
        prog='python -m tools.superpoint_training',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--images', type=Path, required=True, help='folder of photographs')
    parser.add_argument('--out', type=Path, required=True, help='labels, checkpoints and weights')
    parser.add_argument('--teacher', type=Path, help='weights of ALIKED-n16; without: from scratch')
    parser.add_argument('--start', help='weights to begin with, a file or "packaged"')
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument('--minutes', type=float, help='time to train, labels not counted')
    budget.add_argument('--steps', type=int, help='updates of the weights')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--resume', action='store_true', help='continue from the checkpoint in OUT')
    parser.add_argument('--seed', type=int, default=defaults.seed)
    parser.add_argument('--batch', type=int, default=defaults.batch, help='pairs per step')
    parser.add_argument('--size', type=int, default=defaults.size, help='side of a view, px')
    parser.add_argument('--workers', type=int, default=defaults.workers, help='loader processes')
    parser.add_argument('--warps', type=int, default=32, help='of homographic adaptation')
    fine = parser.add_argument_group('with --start')
    fine.add_argument('--muon-lr', type=float, default=0.006)
    fine.add_argument('--adam-lr', type=float, default=3e-4)
    fine.add_argument('--decay', type=float, default=0.5, help='share of falling rates, at the end')
    fine.add_argument('--detector', type=float, default=5.0, help='weight of the labels')
    fine.add_argument('--precision', type=float, default=2.0, help='weight of distances')
    fine.add_argument('--ranking', type=float, default=0.5, help='weight of what is exact on top')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0: all')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')
    try:
        checked_device(options.device)
        with distributed.group(options.device) as device:
            train(options, device)
    except D2SError as error:
        _logger.error('%s', error)
        return error.exit_code
    except KeyboardInterrupt:
        _logger.warning('interrupted; continue with --resume')
        return 130
    return 0


def train(options: argparse.Namespace, device: str) -> Path:
    """Train as the options say; return the weight file."""
    if options.size % 8 or options.size < 64:
        raise UsageError(f'--size is {options.size}, it must be a multiple of 8, at least 64')
    if options.batch < 1:
        raise UsageError('--batch must be at least 1')
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    config = TrainingConfig(
        batch=options.batch, size=options.size, workers=options.workers, seed=options.seed
    )
    budget = Budget(steps=options.steps, minutes=options.minutes)
    start: SuperPointNet | None = None
    if options.start is not None:
        config = finishing(config, options)
        start = _starting_network(options.start)
    labeller: AlikedTeacher | HomographicAdaptation | SuperPointTeacher
    if options.teacher is not None:
        labeller = AlikedTeacher(options.teacher, device=device)
    elif start is not None:
        labeller = SuperPointTeacher(start, smoothing=config.augmentation.smoothing, device=device)
    else:
        detector = _train_detector(options, config, _part(budget, SYNTHETIC_SHARE), device)
        labeller = HomographicAdaptation(detector, warps=options.warps, device=device)
        budget = _part(budget, 1 - SYNTHETIC_SHARE)
    labels = options.out / 'labels'
    if distributed.rank() == 0:
        cache_labels(options.images, labels, labeller, labeller.name)
    distributed.wait()
    names = cache_labels(options.images, labels, labeller, labeller.name)
    trainer = Trainer(config, teacher_dim=labeller.dim, out=options.out, device=device)
    if start is not None:
        trainer.start_from(start.state_dict())
        if labeller.dim == 256:
            # Its own descriptors: nothing to turn them by.
            torch.nn.init.eye_(trainer.projection.data)
    if options.resume and (options.out / 'checkpoint.pt').is_file():
        trainer.load()
    # Another seed after a resume: the same pairs would come again otherwise.
    seed = config.seed + trainer.step
    trainer.fit(PhotographPairs(options.images, names, labels, config, seed), budget)
    path = Path(options.out) / 'superpoint.safetensors'
    if distributed.rank() == 0:
        save_weights(trainer.ema, path, {'steps': str(trainer.step), 'teacher': labeller.name})
        _write_projection(path, options.images, device)
        _logger.info('wrote %s after %d steps', path, trainer.step)
    return path


def finishing(config: TrainingConfig, options: argparse.Namespace) -> TrainingConfig:
    """Return how to go on from finished weights: smaller steps, and a loss on positions."""
    return dataclasses.replace(
        config,
        muon_lr=options.muon_lr,
        adam_lr=options.adam_lr,
        decay_share=options.decay,
        freeze_share=0.0,
        augmentation=Augmentation(scale=(1.0, 2.2), clean=0.4, grain=2.5, smoothing=SMOOTHING),
        weights=LossWeights(
            detector=options.detector, precision=options.precision, ranking=options.ranking
        ),
    )


def _starting_network(name: str) -> SuperPointNet:
    path = default_weights_path() if name == 'packaged' else Path(name)
    if path is None:
        raise UsageError('the package has no superpoint weights; give --start a file')
    return load_network(path)[0]


def _write_projection(weights: Path, images: Path, device: str) -> None:
    """Fit the projection of finished weights on photographs that are trained on."""
    network, _ = load_network(weights)
    names = [name for name in photograph_names(images) if not is_held_out(name)]
    chosen = names[:: max(1, len(names) // PROJECTION_PHOTOGRAPHS)]
    projection = fit_projection(
        network, (read_photograph(images / name) for name in chosen), device=device
    )
    save_projection(projection, projection_path(weights))


def _train_detector(
    options: argparse.Namespace, config: TrainingConfig, budget: Budget, device: str
) -> SuperPointNet:
    """Train a detector on synthetic shapes; descriptors are not trained."""
    config = dataclasses.replace(config, weights=LossWeights(pair_contrast=0.0))
    trainer = Trainer(config, teacher_dim=0, out=options.out / 'synthetic', device=device)
    if options.resume and (trainer.out / 'checkpoint.pt').is_file():
        trainer.load()
    trainer.fit(SyntheticPairs(config, config.seed + trainer.step), budget)
    network = SuperPointNet()
    network.load_state_dict(trainer.ema.folded_state_dict())
    return network


def _part(budget: Budget, share: float) -> Budget:
    return Budget(
        steps=None if budget.steps is None else max(1, round(budget.steps * share)),
        minutes=None if budget.minutes is None else budget.minutes * share,
    )


if __name__ == '__main__':
    sys.exit(main())
