"""`d2s localize`: poses of the images of a log."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2s_ros.cli.options import (
    add_device,
    add_precision,
    add_source,
    add_weights,
    check_outputs,
    open_input,
    user_path,
)
from d2s_ros.errors import InputError, NothingLocalizedError, UsageError

if TYPE_CHECKING:
    from d2s_ros.data.frames import Frame, FrameSource
    from d2s_ros.geometry.transforms import RigidTransform
    from d2s_ros.localization.localizer import Localizer
    from d2s_ros.localization.questions import Question
    from d2s_ros.localization.result import LocalizationResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('map', type=user_path, metavar='MAP', help='folder of a map or an area')
    add_source(parser)
    parser.add_argument(
        '--trajectory',
        type=user_path,
        metavar='OUT.txt',
        help='TUM lines of the localized frames; of an area whose places have frames of their own, '
        'one file for each: OUT.FRAME.txt',
    )
    parser.add_argument(
        '--report', type=user_path, metavar='OUT.json', help='every frame and a summary'
    )
    parser.add_argument(
        '--send-labels',
        type=user_path,
        metavar='OUT.questions',
        help='do not localize: write the labels that the map tells of each image (--head labels), '
        'to localize on another computer with INPUT OUT.questions; no picture is in them',
    )
    add_weights(parser)
    add_device(parser)
    add_precision(parser)


def send_labels(
    localizer: Localizer, source: FrameSource, path: Path, *, progress: bool = False
) -> int:
    """Write what is sent of the images of a log; returns the exit code.

    Raises:
        InputError: there is no image that could be used.
    """
    from tqdm import tqdm

    from d2s_ros.localization.questions import SUFFIX, Question, write_questions

    if path.suffix != SUFFIX:
        raise UsageError(f'{path} must end with {SUFFIX}, so that it is known when it is read')
    questions, refused = [], 0
    bar = tqdm(source, total=len(source), desc='labels', unit='image', disable=not progress)
    for frame in bar:
        question = Question.of(localizer, frame)
        if isinstance(question, Question):
            questions.append(question)
        else:
            refused += 1
    if not questions:
        raise InputError('no image could be used, so there is nothing to send')
    write_questions(path, questions)
    size = path.stat().st_size / 1e3 / len(questions)
    print(f'{path}: labels of {len(questions)} images, {size:.0f} kB each; {refused} not usable')
    return 0


def answers(
    localizer: Localizer, path: Path, *, progress: bool = False
) -> Iterator[tuple[Question, LocalizationResult]]:
    """Localize the questions of a file."""
    from tqdm import tqdm

    from d2s_ros.localization.questions import read_questions

    for one in tqdm(read_questions(path), desc='localizing', unit='image', disable=not progress):
        yield one, one.answer(localizer)


def run(args: argparse.Namespace) -> int:
    """Localize, write trajectory and report; returns the exit code.

    Raises:
        NothingLocalizedError: after writing both files, if no frame could be localized.
    """
    from d2s_ros.data.tum import write_tum
    from d2s_ros.evaluation.keypoint_marks import marks_of
    from d2s_ros.evaluation.run import localize_log, summarise
    from d2s_ros.localization.localizer import Localizer
    from d2s_ros.localization.opening import open_localizer
    from d2s_ros.localization.questions import SUFFIX

    check_outputs(args.trajectory, args.report, args.send_labels)
    if args.send_labels and (args.trajectory or args.report):
        raise UsageError('--send-labels localizes nothing: leave --trajectory and --report out')
    localizer = open_localizer(
        args.map, device=args.device, weights=args.weights, precision=args.precision
    )
    facts = localizer.facts
    given: Iterator[tuple[Frame | Question, LocalizationResult]]
    asked = Path(args.input)
    answering = asked.suffix == SUFFIX and asked.is_file()
    if (answering or args.send_labels) and not isinstance(localizer, Localizer):
        raise UsageError('labels are those of one map: give the map of a place, not the area')
    if answering:
        assert isinstance(localizer, Localizer)
        given = answers(localizer, asked, progress=not args.quiet)
    else:
        source = open_input(args, want_poses=False, fallback=next(iter(facts.cameras), None))
        if args.send_labels:
            assert isinstance(localizer, Localizer)
            return send_labels(localizer, source, Path(args.send_labels), progress=not args.quiet)
        given = localize_log(
            localizer, source, details=args.report is not None, progress=not args.quiet
        )
    frames: list[dict[str, Any]] = []
    results = []
    #: By frame and stamp.
    poses: dict[str, dict[int, RigidTransform]] = {}
    repeated = 0
    for frame, result in given:
        entry = result.to_report(frame.name, frame.stamp_ns)
        if result.details is not None and frame.camera is not None:
            entry |= marks_of(result.details, frame.camera.width, frame.camera.height)
        frames.append(entry)
        # Of many images, the keypoints are too much to hold.
        results.append(replace(result, details=None))
        if result.map_from_camera is not None:
            # A trajectory has one pose at a time; the report has all frames.
            of_frame = poses.setdefault(result.frame or facts.frame, {})
            repeated += frame.stamp_ns in of_frame
            of_frame.setdefault(frame.stamp_ns, result.map_from_camera)
    summary = {
        'map': str(args.map),
        'map_version': facts.version,
        'map_frame': facts.frame,
        'unit': 'm' if facts.metric else 'arbitrary',
        'features': facts.features.name,
        'device': localizer.device,
        **summarise(results),
    }
    places = Counter(result.place for result in results if result.place)
    if places:
        summary['places'] = dict(places.most_common())
    if args.trajectory:
        for name, of_frame in (poses or {facts.frame: {}}).items():
            path = Path(args.trajectory)
            if name != facts.frame:
                path = path.with_name(f'{path.stem}.{name}{path.suffix}')
            stamps = sorted(of_frame)
            write_tum(path, stamps, [of_frame[stamp] for stamp in stamps])
    if args.report:
        write_json(args.report, {'frames': frames, 'summary': summary})
    latency = summary['latency_ms'].get('total', {}).get('median', float('nan'))
    print(
        f'{summary["localized"]} of {summary["frames"]} frames localized, median latency '
        f'{latency:.0f} ms'
    )
    for place, count in places.most_common():
        print(f'in {place}: {count}')
    for status, count in summary['refused'].items():
        reason = commonest_reason(results, status)
        print(f'refused: {count} x {status}{f": {reason}" if reason else ""}')
    if not facts.metric:
        print('the map was built without poses: its scale is arbitrary, so that of these poses too')
    if repeated:
        print(
            f'{repeated} poses have the stamp of an earlier image; the trajectory has the first '
            'of each stamp'
        )
    if not summary['frames']:
        raise InputError(f'{args.input} has no images')
    if not poses:
        raise NothingLocalizedError(
            'nothing could be localized; is this the mapped place, and do calibration and image '
            'fit? the report gives a reason for each frame'
        )
    return 0


def commonest_reason(results: Sequence[LocalizationResult], status: str) -> str:
    """Return the reason that most results of a status give, apart from the numbers in it."""
    reasons = [result.reason for result in results if result.status.value == status]
    kinds = Counter(re.sub(r'[-+]?\d[\d.]*', '#', reason) for reason in reasons)
    if not kinds:
        return ''
    kind = kinds.most_common(1)[0][0]
    return next(r for r in reasons if re.sub(r'[-+]?\d[\d.]*', '#', r) == kind)


def write_json(path: str | Path, document: Any) -> None:
    """Write JSON; an existing file is replaced only when the new one is complete."""
    target = Path(path)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        temporary.write_text(json.dumps(document, indent=1) + '\n')
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f'cannot write {target}: {error.strerror}') from error
