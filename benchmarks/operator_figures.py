"""The numbers that an operator asks for, with their bounds, from records of other benchmarks.

    python benchmarks/operator_figures.py --record operator

Of images of other places: the record of false_accepts.py. Of wrong and refused poses: those of
refusal.py (a simulated building) and availability.py (real scenes). Of protection levels: those of
covariance.py. Bounds are Clopper and Pearson's, one-sided, 95 %: of faults from above, of
availability from below.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from records import RESULTS, read_record, write_record

from d2s_ros.evaluation.metrics import rate_bound

FOREIGN, SIMULATED, REAL = 'false_accepts', 'integrity', 'availability'
#: Images of places that look like the mapped one.
ALIKE = 'tower, in the map of another floor'
COVERED = ('covariance', 'covariance_others')


def table(records: dict[str, dict[str, Any]]) -> list[str]:
    """Return a markdown table of records, by name."""
    sources = records[FOREIGN]['figures']['sources']
    alike = sources[ALIKE]
    asked, accepted = (sources['all'][key] - alike[key] for key in ('asked', 'published'))
    simulated, real = records[SIMULATED], records[REAL]['figures']['all']
    # Of the last row, all frames: name, frames, solver right.
    last = [cell.strip() for cell in simulated['tables']['own'][-1].strip('|').split('|')]
    of_building = simulated['figures']
    right = int(last[2]) + real['solver_right']
    kept = round(of_building['published_of_right'] * int(last[2])) + real['published_of_right']
    others = records[COVERED[-1]]['figures']['quarters']['all but real scenes']
    wrong = of_building['wrong'] + real['published_wrong'] + others['wrong']
    published = of_building['published'] + real['published_of_right'] + real['published_wrong']
    published += others['poses']
    levels = [
        group
        for name in COVERED
        for title, group in records[name]['figures']['quarters'].items()
        if title == 'real scenes' or title.startswith('all')
    ]
    beyond, poses = (sum(group[key] for group in levels) for key in ('beyond', 'poses'))
    median = max(levels, key=lambda group: group['poses'])['median_level']
    return [
        '| an operator asks | measured | 95 % bound | source |',
        '|---|---|---|---|',
        f'| how often does it take another place for this one? | {accepted} of {asked} images | '
        f'at most {100 * rate_bound(accepted, asked):.2f} % | real images of other places, as '
        'taken, dark and blurred |',
        f'| and another floor that looks alike? | {alike["published"]} of {alike["asked"]} images '
        f'| at most {100 * alike["bound"]:.1f} % | floors of a tower in small maps of two others |',
        f'| how often is a published pose wrong? | {wrong} of {published} poses | at most '
        f'{100 * rate_bound(wrong, published):.1f} % | three buildings by day, at dusk, at night, '
        'with a third of the furniture moved (50 cm); left-out images of six real scenes (5 % of '
        'depth) |',
        f'| how often is it silent where it knows? (availability) | {kept} of {right} right poses '
        f'published | at least {100 * (1 - rate_bound(right - kept, right)):.1f} % | one of these '
        'buildings, and the real scenes |',
        f'| how far off may a pose be? (protection level) | {beyond} of {poses} poses beyond '
        f'theirs, which in buildings is {100 * median:.1f} cm in the median | at most '
        f'{100 * rate_bound(beyond, poses):.1f} % beyond | four buildings in all light, and the '
        'real scenes |',
        '| how soon does it say so? (time to alert) | next image | at most 1 s | '
        '`test/ros/test_time_to_alert.py`, over DDS |',
    ]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args()
    started = time.time()
    names = (FOREIGN, SIMULATED, REAL, *COVERED)
    lines = table({name: read_record(RESULTS / f'{name}.json') for name in names})
    print('\n'.join(lines))
    if args.record:
        measures = tuple(f'benchmarks/results/{name}.json' for name in names)
        write_record(args.record, {}, started, tables={'numbers': lines}, measures=measures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
