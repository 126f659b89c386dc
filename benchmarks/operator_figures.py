"""The five numbers that an operator asks for, with their bounds, from the record of refusal.py.

    python benchmarks/operator_figures.py [--of integrity] --record operator

Bounds are Clopper and Pearson's, one-sided, 95 %: of faults from above, of availability from below.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from records import RESULTS, read_record, write_record

from d2s_ros.evaluation.metrics import rate_bound


def table(record: dict[str, Any]) -> list[str]:
    """Return a markdown table of a record of refusal.py."""
    figures = record['figures']

    def last_row(name: str) -> list[str]:
        return [cell.strip() for cell in record['tables'][name][-1].strip('|').split('|')]

    # Of all frames: name, frames, published; name, frames, solver right.
    asked, accepted = map(int, last_row('foreign')[1:3])
    right = int(last_row('own')[2])
    published, wrong = figures['published'], figures['wrong']
    kept = round(figures['published_of_right'] * right)
    covered = figures['quarters']['all']
    beyond = covered['beyond']
    return [
        '| an operator asks | measured | 95 % bound | source |',
        '|---|---|---|---|',
        f'| how often does it take another place for this one? | {accepted} of {asked} images | '
        f'at most {100 * rate_bound(accepted, asked):.1f} % | images of other places, by day, '
        'dark, blurred, saturated |',
        f'| how often is a published pose wrong, by 50 cm or 10 degrees? | {wrong} of {published} '
        f'poses | at most {100 * rate_bound(wrong, published):.1f} % | the place by day, at dusk, '
        'at night, with a third of the furniture moved |',
        f'| how often is it silent where it knows? (availability) | {kept} of {right} right poses '
        f'published | at least {100 * (1 - rate_bound(right - kept, right)):.1f} % | the same |',
        f'| how far off may a pose be? (protection level) | {beyond} of {covered["poses"]} poses '
        f'beyond theirs, which is {100 * covered["median_level"]:.1f} cm in the median | at most '
        f'{100 * rate_bound(beyond, covered["poses"]):.1f} % beyond | the same |',
        '| how soon does it say so? (time to alert) | next image | at most 1 s | '
        '`test/ros/test_time_to_alert.py`, over DDS |',
    ]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--of', default='integrity', help='record of refusal.py')
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    lines = table(read_record(RESULTS / f'{args.of}.json'))
    print('\n'.join(lines))
    if args.record:
        measures = (f'benchmarks/results/{args.of}.json',)
        write_record(args.record, {}, started, tables={'numbers': lines}, measures=measures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
