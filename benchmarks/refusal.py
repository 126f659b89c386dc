"""Which poses are published: on frames that do not show the mapped place, and on ones that do.

    python benchmarks/refusal.py [--work DIR] [--logs DIR] [--data DIR] [--photos DIR] [--json OUT]

Three simulated buildings are mapped by day. They are asked about frames of other places: buildings
with the same pictures on other walls, unlike buildings, photographs, walls seen from near, dark,
blurred and saturated frames; and about their own frames at dusk, at night and after a third of the
furniture was moved. A solver's pose is right if it is within 50 cm and 10 degrees of the truth, and
close if its error is at most ten times the median error of the poses that were published.

With --focal the buildings' own frames are asked about with a wrong camera_info instead, with
--prior those that are refused with a prior, with --odometry all of them in order, with simulated
odometry that images are fused with. With --data, scenes of photographs are asked about too, and
mapped. Logs, maps and features in the folders are used again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# First: it decides how threads wait, before any is started.
from covariance import described, quarter_table
from places import Observed, Places, is_building, photographs
from records import write_record

from d2s_ros.data.frames import Frame
from d2s_ros.geometry.transforms import (
    RigidTransform,
    pose_error,
    rotation_from_vector,
    vector_from_rotation,
)
from d2s_ros.localization.localizer import Localizer
from d2s_ros.tracking.odometry_fusion import OdometryFusion
from d2s_ros.tracking.calibration_watch import CalibrationWatch
from d2s_ros.localization.pose_prior import PosePrior

#: A right pose is within both.
RIGHT_M, RIGHT_DEG = 0.5, 10.0
#: A close pose is within this many median errors.
CLOSE_MEDIANS = 10.0
SCENES = ('fox', 'castle-P30', 'redkitchen')
#: How long images lean on odometry, as the node's `tracking_seconds`.
TRACKING_SECONDS = 2.0
CHANGES = ('query_day', 'query_dusk', 'query_night', 'query_moved')


def dark(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what a sensor gives of 3 % of the light."""
    return np.clip(0.03 * image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image smeared over 41 px in a random direction."""
    kernel = np.zeros((41, 41), np.float32)
    angle = rng.uniform(0, np.pi)
    end = (round(20 + 20 * np.cos(angle)), round(20 + 20 * np.sin(angle)))
    cv2.line(kernel, (40 - end[0], 40 - end[1]), end, 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def saturated(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image exposed eight times too long."""
    return np.clip(8.0 * image.astype(np.float32), 0, 255).astype(np.uint8)


def wall(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an eighth of the image, as seen from eight times as near."""
    height, width = image.shape[0] // 8, image.shape[1] // 8
    y, x = rng.integers(0, image.shape[0] - height), rng.integers(0, image.shape[1] - width)
    part = image[y : y + height, x : x + width]
    return cv2.resize(part, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_CUBIC)


DEGRADATIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    'dark': dark,
    'blurred': blurred,
    'saturated': saturated,
    'wall': wall,
}


def degraded(
    source: Any, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], count: int
) -> Iterator[Frame]:
    """Yield the first frames of a log, changed."""
    rng = np.random.default_rng(7)
    for frame, _ in zip(source, range(count), strict=False):
        assert frame.image is not None
        yield replace(frame, image=change(frame.image, rng), map_from_camera=None)


def strangers(
    places: Places, place: str, args: argparse.Namespace, localizer: Localizer
) -> Iterator[tuple[str, list[Observed]]]:
    """Yield kinds of frames that do not show the place."""
    extractor = localizer.extractor
    buildings = [f'b{seed}' for seed in args.seeds]
    # Photographs are shared out: each is asked of one building.
    part = buildings.index(place) if is_building(place) else 0
    if is_building(place):
        yield 'same pictures, another layout', places.observed(place, 'other', extractor)
        for name, change in DEGRADATIONS.items():
            frames = degraded(places.source(place, 'other'), change, 30)
            yield name, places.extracted(f'{place}_{name}', frames, extractor)
    others = []
    for other in buildings:
        if other != place:
            others += places.observed(other, 'query_day', extractor)
    yield 'another building', others
    scenes = []
    if places.data is not None:
        for scene in SCENES:
            if scene != place and (places.data / scene).is_dir():
                for name in ('map', 'query'):
                    scenes += places.observed(scene, name, extractor)
    yield 'photographed scenes', scenes[part :: len(buildings)]
    if args.photos is not None:
        photos = places.extracted('photographs', photographs(args.photos), extractor)
        step = len(buildings) * (1 if is_building(place) else 4)
        yield 'photographs', photos[part::step]


def ask(localizer: Localizer, place: str, kind: str, frames: list[Observed]) -> list[dict]:
    """Localize frames; errors are of what the solver found, whether it was published or not."""
    rows = []
    for frame in frames:
        result = localizer.localize_features(frame.features, frame.camera, details=True)
        estimate = result.details.estimate if result.details is not None else None
        error, covered = None, {}
        if result.localized and frame.truth is not None:
            covered = described(result, frame.truth)
        if estimate is not None and frame.truth is not None:
            error = pose_error(estimate.camera_from_map.inverse(), frame.truth)
        rows.append(
            {
                'place': place,
                'kind': kind,
                'frame': frame.name,
                'status': result.status.value,
                'published': result.localized,
                'error': error,
                'given': error if result.localized else None,
                'covered': covered,
            }
        )
    return rows


def simulated_odometry(poses: list[RigidTransform], drift: float, rng: Any) -> list[RigidTransform]:
    """Return odometry whose steps are off by a share of their way and turn.

    As much by chance as by a scale that is wrong throughout. The way also turns it: by that share
    of a radian a metre, about the camera's vertical axis where it is systematic.
    """
    scale, turn_scale, curve = drift * rng.standard_normal(3)
    odometry = [RigidTransform.identity()]
    for before, after in itertools.pairwise(poses):
        motion = before.inverse() @ after
        turn = vector_from_rotation(motion.rotation)
        way = float(np.linalg.norm(motion.translation))
        shares = drift / 3**0.5 * rng.standard_normal((2, 3))
        turned = (1 + turn_scale) * turn + shares[0] * (float(np.linalg.norm(turn)) + way)
        turned[1] += curve * way
        moved = (1 + scale) * motion.translation + shares[1] * way
        odometry.append(odometry[-1] @ RigidTransform(rotation_from_vector(turned), moved))
    return odometry


def ask_in_order(
    localizer: Localizer, place: str, kind: str, frames: list[Observed], drift: float, rng: Any
) -> list[dict]:
    """As `ask`, as a robot with odometry: what is published is fused, and leans on it if refused.

    The fusion is told twice the share that odometry is off by, as the most.
    """
    rows = ask(localizer, place, kind, frames)
    truths = [frame.truth for frame in frames if frame.truth is not None]
    fusion = OdometryFusion(2.0 * drift)
    odometry = simulated_odometry(truths, drift, rng)
    for row, frame, odom in zip(rows, frames, odometry, strict=True):
        assert frame.truth is not None
        stamp_ns = round(float(frame.name) * 1e9)

        def expected(stamp_ns: int = stamp_ns, odom: RigidTransform = odom) -> PosePrior | None:
            predicted = fusion.predict(stamp_ns, odom, TRACKING_SECONDS)
            return PosePrior(*predicted) if predicted is not None else None

        result = localizer.localize_features(frame.features, frame.camera, prior=expected)
        row['published'], row['given'] = False, None
        row['with_prior'] = result.with_prior
        if result.map_from_camera is None or result.covariance is None:
            continue
        fused = fusion.fuse(
            stamp_ns,
            result.map_from_camera,
            result.covariance,
            odom,
            proven=not result.with_prior,
        )
        if fused.refusal:
            row['status'] = 'implausible'
            continue
        row['published'] = True
        row['given'] = pose_error(fused.map_from_body, frame.truth)
        off = np.concatenate(
            [
                fused.map_from_body.translation - frame.truth.translation,
                vector_from_rotation(fused.map_from_body.rotation @ frame.truth.rotation.T),
            ]
        )
        row['nees'] = float(off @ np.linalg.solve(fused.covariance, off))
    return rows


def ask_with_odometry(
    places: Places, names: list[str], drifts: list[float], runs: int
) -> Iterator[tuple[float, list[dict]]]:
    """Yield the rows of all logs in order, for each drift: `runs` times with other noise."""
    for drift in drifts:
        rows: list[dict] = []
        for name in filter(is_building, names):
            localizer = Localizer.from_map(places.map(name), device='cpu')
            for kind in CHANGES:
                frames = places.observed(name, kind, localizer.extractor)
                for run in range(runs):
                    rng = np.random.default_rng([run, int(name[1:]), CHANGES.index(kind)])
                    what = kind.removeprefix('query_')
                    rows += ask_in_order(localizer, name, what, frames, drift, rng)
        yield drift, rows


def ask_wrongly(places: Places, names: list[str], factors: list[float], every: int) -> list[str]:
    """Return a markdown table of frames of the place with a focal length that is off.

    'node' also averages what the last images of a log tell, as the node does.
    """
    lines = ['| focal length given | frames | refused for it | published | by the node | worst |']
    lines.append('|---' * 6 + '|')
    for factor in factors:
        statuses: Counter[str] = Counter()
        errors = []
        for name in filter(is_building, names):
            localizer = Localizer.from_map(places.map(name), device='cpu')
            for kind in CHANGES:
                watch = CalibrationWatch()
                for frame in places.observed(name, kind, localizer.extractor)[::every]:
                    camera = frame.camera
                    camera = replace(camera, fx=factor * camera.fx, fy=factor * camera.fy)
                    result = localizer.localize_features(frame.features, camera)
                    statuses[result.status.value] += 1
                    limits = localizer.estimator.config.limits
                    doubt = watch.check(result, limits.max_focal_error, limits.max_intrinsics_error)
                    if result.map_from_camera is not None and not doubt:
                        assert frame.truth is not None
                        errors.append(pose_error(result.map_from_camera, frame.truth)[0])
        lines.append(
            f'| {100 * (factor - 1):+.0f} % | {statuses.total()} | '
            f'{statuses["calibration_mismatch"]} | {statuses["localized"]} | {len(errors)} | '
            f'{100 * max(errors, default=0.0):.0f} cm |'
        )
    return lines


def noisy(pose: RigidTransform, sigma: tuple[float, float], rng: Any) -> PosePrior:
    """Return a prior that is off by as much as it says: metres, degrees in each direction."""
    turn = rotation_from_vector(np.radians(rng.normal(0, sigma[1], 3)))
    translation = pose.translation + rng.normal(0, sigma[0], 3)
    return PosePrior(RigidTransform(pose.rotation @ turn, translation), *sigma)


def ask_with_prior(
    places: Places, names: list[str], sigmas: list[tuple[float, float]], every: int
) -> list[str]:
    """Return a markdown table of frames refused alone, asked again with priors.

    The priors are the true poses with noise; the same 1 m off; and for frames of another layout
    any pose of the place.
    """
    lines = [
        '| prior, sigma in each direction | refused alone | published with it | median error | '
        'largest | published with one 1 m off | of another layout | published |'
    ]
    lines.append('|---' * 8 + '|')
    for sigma in sigmas:
        rng = np.random.default_rng(1)
        refused = displaced = strange = published_strange = 0
        errors = []
        for name in filter(is_building, names):
            localizer = Localizer.from_map(places.map(name), device='cpu')

            def ask_again(frame: Observed, prior: PosePrior, by: Localizer = localizer) -> Any:
                return by.localize_features(frame.features, frame.camera, prior=lambda: prior)

            poses = []
            for kind in CHANGES:
                for frame in places.observed(name, kind, localizer.extractor)[::every]:
                    assert frame.truth is not None
                    poses.append(frame.truth)
                    prior = noisy(frame.truth, sigma, rng)
                    result = ask_again(frame, prior)
                    if result.localized and not result.with_prior:
                        continue
                    refused += 1
                    if result.map_from_camera is not None:
                        errors.append(pose_error(result.map_from_camera, frame.truth)[0])
                    pose = prior.map_from_camera
                    off = RigidTransform(pose.rotation, pose.translation + np.array([1.0, 0, 0]))
                    displaced += ask_again(frame, replace(prior, map_from_camera=off)).localized
            for frame in places.observed(name, 'other', localizer.extractor)[::every]:
                prior = noisy(poses[rng.integers(len(poses))], sigma, rng)
                strange += 1
                published_strange += ask_again(frame, prior).localized
        lines.append(
            f'| {100 * sigma[0]:.0f} cm, {sigma[1]:.1f} deg | {refused} | {len(errors)} | '
            f'{100 * np.median(errors or [np.nan]):.1f} cm | {100 * max(errors, default=0):.1f} cm '
            f'| {displaced} | {strange} | {published_strange} |'
        )
    return lines


def right(row: dict) -> bool:
    """Return whether the solver's pose is right."""
    return row['error'] is not None and row['error'][0] <= RIGHT_M and row['error'][1] <= RIGHT_DEG


def stranger_table(rows: list[dict]) -> list[str]:
    """Return a markdown table of frames that do not show the place."""
    lines = ['| frames that do not show the place | frames | published | refused because |']
    lines.append('|---' * 4 + '|')
    for kind in [*dict.fromkeys(row['kind'] for row in rows), 'all']:
        chosen = [row for row in rows if kind in ('all', row['kind'])]
        reasons = Counter(row['status'] for row in chosen if not row['published'])
        why = ', '.join(f'{status} {count}' for status, count in reasons.most_common())
        published = sum(row['published'] for row in chosen)
        lines.append(f'| {kind} | {len(chosen)} | {published} | {why} |')
    return lines


def query_table(rows: list[dict]) -> tuple[list[str], dict[str, Any]]:
    """Return a markdown table of frames that show the place, and the figures of all of them."""
    lines = [
        '| frames of the place | frames | solver right | of them published | solver close | '
        'of them published | published | median error | off by 50 cm or 10 deg | '
        'off by 10 medians |'
    ]
    lines.append('|---' * 10 + '|')
    figures: dict[str, Any] = {}
    for kind in [*dict.fromkeys(row['kind'] for row in rows), 'all']:
        chosen = [row for row in rows if kind in ('all', row['kind'])]
        good = [row for row in chosen if right(row)]
        published = [row for row in chosen if row['published']]
        errors = np.array([row['given'] for row in published]).reshape(-1, 2)
        median = np.median(errors, axis=0) if len(errors) else np.full(2, np.nan)
        far = int((errors > CLOSE_MEDIANS * median).any(axis=1).sum())
        close = [
            row
            for row in chosen
            if row['error'] is not None and (np.array(row['error']) <= CLOSE_MEDIANS * median).all()
        ]
        wrong = sum(not right({'error': row['given']}) for row in published)
        figures = {
            'frames': len(chosen),
            'published': len(published),
            'wrong': wrong,
            'far': far,
            'published_of_right': sum(row['published'] for row in good) / max(1, len(good)),
            'published_of_close': sum(row['published'] for row in close) / max(1, len(close)),
        }
        lines.append(
            f'| {kind} | {len(chosen)} | {len(good)} | '
            f'{100 * figures["published_of_right"]:.1f} % | {len(close)} | '
            f'{100 * figures["published_of_close"]:.1f} % | {len(published)} | '
            f'{100 * median[0]:.2f} cm {median[1]:.3f} deg | {wrong} | {far} |'
        )
    return lines, figures


def main() -> int:
    """Print two markdown tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, default=Path('refusal_output'))
    parser.add_argument('--logs', type=Path, help='rendered logs (default: in the work folder)')
    parser.add_argument('--data', type=Path, help='folder of fox, castle-P30 and redkitchen')
    parser.add_argument('--photos', type=Path, help='folder of photographs (.jpg)')
    parser.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    parser.add_argument('--maps', nargs='*', help='ask these maps only (default: all)')
    parser.add_argument('--every', type=int, default=1, help='ask about every n-th frame only')
    parser.add_argument('--focal', type=float, nargs='+', help='ask with these wrong factors only')
    parser.add_argument(
        '--prior',
        type=float,
        nargs='+',
        metavar='M DEG',
        help='ask about refused frames again, with priors of these standard deviations',
    )
    parser.add_argument(
        '--odometry',
        type=float,
        nargs='+',
        metavar='DRIFT',
        help='ask about the own frames in order, fused with odometry that is off by these shares',
    )
    parser.add_argument(
        '--runs', type=int, default=1, help='with --odometry: repetitions with other noise'
    )
    parser.add_argument('--json', type=Path)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    parser.add_argument('--check', action='store_true', help='fail if the targets are missed')
    args = parser.parse_args()
    started = time.time()
    places = Places(args.work, args.logs, args.data)
    names = [f'b{seed}' for seed in args.seeds]
    if args.data is not None:
        names += [name for name in ('fox', 'castle-P30') if (args.data / name).is_dir()]
    if args.maps:
        names = [name for name in names if name in args.maps]
    if args.prior:
        pairs = list(zip(args.prior[::2], args.prior[1::2], strict=True))
        print('\n'.join(ask_with_prior(places, names, pairs, args.every)))
        return 0
    if args.focal:
        print('\n'.join(ask_wrongly(places, names, args.focal, args.every)))
        return 0
    if args.odometry:
        for drift, rows in ask_with_odometry(places, names, args.odometry, args.runs):
            lines, _ = query_table(rows)
            print(f'\nodometry off by {100 * drift:g} %\n\n' + '\n'.join(lines))
            distances = np.array([row['nees'] for row in rows if 'nees' in row])
            limits = (5.348, 10.645, 12.592, 16.812)
            held = ', '.join(f'{100 * np.mean(distances <= limit):.0f}' for limit in limits)
            print(
                f'\n{sum(row["with_prior"] for row in rows)} with a prior, '
                f'{sum(row["status"] == "implausible" for row in rows)} held back; mean NEES '
                f'{distances.mean():.2f}, 50/90/95/99 % ellipsoids hold {held} %'
            )
        return 0
    unknown: list[dict] = []
    known: list[dict] = []
    for name in names:
        localizer = Localizer.from_map(places.map(name), device='cpu')
        for kind, frames in strangers(places, name, args, localizer):
            unknown += ask(localizer, name, kind, frames[:: args.every])
        for kind in CHANGES if is_building(name) else ():
            frames = places.observed(name, kind, localizer.extractor)
            known += ask(localizer, name, kind.removeprefix('query_'), frames[:: args.every])
    foreign = stranger_table(unknown)
    print('\n'.join(foreign))
    lines, figures = query_table(known)
    print('\n' + '\n'.join(lines))
    if args.json:
        args.json.write_text(json.dumps({'strangers': unknown, 'queries': known}, indent=1))
    by_kind: dict[str, list[dict]] = {}
    for row in known:
        if row['published']:
            by_kind.setdefault(row['kind'], []).append(row['covered'])
    quarters, figures['quarters'] = quarter_table(by_kind)
    print('\n' + '\n'.join(quarters))
    if args.record:
        tables = {'foreign': foreign, 'own': lines, 'quarters': quarters}
        write_record(args.record, figures, started, tables=tables)
    accepted = sum(row['published'] for row in unknown)
    if args.check and (
        accepted > 1
        or max(figures['wrong'], figures['far']) > 0.001 * figures['frames']
        or figures['published_of_close'] < 0.95
    ):
        print('below what is asked for', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
