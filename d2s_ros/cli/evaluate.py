"""`d2s evaluate`: errors of a trajectory against the truth."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('estimate', metavar='OUT.txt', help='TUM trajectory to judge')
    parser.add_argument('truth', metavar='TRUTH.txt', help='TUM trajectory of the truth')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--max-difference',
        type=float,
        default=0.001,
        metavar='S',
        help='stamps this close are of one frame [s] (default: 0.001)',
    )


def run(args: argparse.Namespace) -> int:
    """Print errors and recalls; returns the exit code."""
    from d2s_ros.data.tum import read_tum
    from d2s_ros.evaluation.metrics import evaluate_trajectory

    estimate, truth = read_tum(args.estimate), read_tum(args.truth)
    metrics = evaluate_trajectory(
        dict(zip(map(int, estimate.stamps_ns), estimate.poses, strict=True)),
        dict(zip(map(int, truth.stamps_ns), truth.poses, strict=True)),
        max_difference_ns=round(args.max_difference * 1e9),
    )
    print(json.dumps(metrics.to_dict(), indent=1) if args.json else metrics.table())
    return 0
