"""The search for landmarks: by PyTorch, compiled, and its kinds of products, in turns.

    python benchmarks/search.py [--landmarks N] [--keypoints N] [--threads N] [--record NAME]

Keys are made up: unit vectors that are longer in some directions than in others, as descriptors
are. Times are of the processor, not of the clock, as other jobs may share it. Every round measures
each way once, so that what else the computer does strikes all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from d2s_ros.threads import limit_threads, set_passive_omp_wait

set_passive_omp_wait()

import numpy as np
from records import write_record

from d2s_ros.kernels import compiled, library, reference

#: Kinds of products by their numbers in products.c.
KINDS = ('plain C', 'AVX2', 'AVX-VNNI', 'AVX-512 VNNI', 'NEON dot products')
COMPONENTS, CANDIDATES, QUERIES = 64, 6, 8


def unit(rng: np.random.Generator, count: int, dim: int = 128) -> np.ndarray:
    """Return unit vectors (count, dim)."""
    values = rng.normal(size=(count, dim)) * np.linspace(2.0, 0.1, dim)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def products(rng: np.random.Generator, kind: int, landmarks: int, rows: int) -> Callable[[], int]:
    """Return a run of one kind of products of `rows` keypoints; it gives -1 where there is none."""
    stride, groups = -(-landmarks // 64) * 64, COMPONENTS // 4
    queries = rng.integers(1, 256, (QUERIES, COMPONENTS)).astype(np.uint8)
    packed = rng.integers(-127, 128, (stride, COMPONENTS)).astype(np.int8)
    offsets, found = np.zeros(stride, np.int32), np.empty((QUERIES, stride), np.uint8)

    def run() -> int:
        for _ in range(rows // QUERIES):
            given = queries, packed, offsets, stride, groups, 4, 9000
            if library.call('d2s_products', kind, *given, found):
                return -1
        return 0

    return run


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--landmarks', type=int, default=8192)
    parser.add_argument('--keypoints', type=int, default=2048)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--record', metavar='NAME')
    args = parser.parse_args()
    started = time.time()
    limit_threads(args.threads)
    rng = np.random.default_rng(0)
    keys = unit(rng, args.landmarks)
    near = keys[rng.integers(0, len(keys), args.keypoints)] + rng.normal(
        0, 0.03, (args.keypoints, keys.shape[1])
    )
    queries = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    before, now = reference.key_index(keys), compiled.key_index(keys)
    ways: dict[str, Callable[[], Any]] = {
        'search, products of PyTorch': lambda: before.search(
            queries, CANDIDATES, threads=args.threads
        ),
        'search, compiled': lambda: now.search(queries, CANDIDATES, threads=args.threads),
    }
    for kind, name in enumerate(KINDS):
        run = products(rng, kind, args.landmarks, args.keypoints)
        if run() == 0:
            ways[f'products alone, {name}, one thread'] = run
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - begin))
    figures = {
        name: {'median_ms': round(float(np.median(x)), 2), 'least_ms': round(min(x), 2)}
        for name, x in times.items()
    }
    lines = ['| way | CPU ms, median | CPU ms, least |', '|---|---|---|']
    lines += [
        f'| {name} | {row["median_ms"]} | {row["least_ms"]} |' for name, row in figures.items()
    ]
    print('\n'.join(lines))
    if args.record:
        measures = ('d2s_ros/kernels', 'benchmarks/search.py')
        print(
            write_record(args.record, figures, started, tables={'ways': lines}, measures=measures)
        )


if __name__ == '__main__':
    main()
