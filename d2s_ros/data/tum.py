"""Trajectories in TUM format: `stamp tx ty tz qx qy qz qw`, map_from_camera, stamps in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2s_ros.errors import InputError
from d2s_ros.geometry.transforms import RigidTransform, interpolate

#: Stamps closer than this are the same moment: files round to 4 to 9 decimals.
SAME_STAMP_NS = 100_000
#: Text files of poses, names and cameras are read whole; one with 10^6 images has 200 MB.
_MAX_TEXT_BYTES = 500_000_000
#: A pose is interpolated only between neighbours that are nearer to the image than this.
MAX_POSE_DISTANCE_NS = 200_000_000


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Poses over time.

    Attributes:
        stamps_ns: (N,) int64, strictly increasing.
        poses: N transforms with the same frames, usually map_from_camera.
    """

    stamps_ns: NDArray[np.int64]
    poses: tuple[RigidTransform, ...]

    def __post_init__(self) -> None:
        if len(self.stamps_ns) != len(self.poses):
            raise InputError(f'{len(self.stamps_ns)} stamps do not fit {len(self.poses)} poses')
        if (np.diff(self.stamps_ns) <= 0).any():
            raise InputError('stamps of a trajectory must increase')

    def __len__(self) -> int:
        return len(self.poses)

    def at(self, stamp_ns: int, max_gap_ns: int | None = None) -> RigidTransform | None:
        """Return the pose at a time, interpolated; None if a neighbour is too far away.

        A stamp of the trajectory that equals `stamp_ns` (within SAME_STAMP_NS) always counts.

        Args:
            stamp_ns: The time.
            max_gap_ns: Longest time between two poses to interpolate over; if None, each of them
                must be nearer to `stamp_ns` than MAX_POSE_DISTANCE_NS.
        """
        if not self.poses:
            return None
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        nearest = min(
            (index for index in (after - 1, after) if 0 <= index < len(self.poses)),
            key=lambda index: abs(int(self.stamps_ns[index]) - stamp_ns),
        )
        if abs(int(self.stamps_ns[nearest]) - stamp_ns) <= SAME_STAMP_NS:
            return self.poses[nearest]
        if after == 0 or after == len(self.poses):
            return None
        start, end = int(self.stamps_ns[after - 1]), int(self.stamps_ns[after])
        if max_gap_ns is None:
            too_far = max(stamp_ns - start, end - stamp_ns) >= MAX_POSE_DISTANCE_NS
        else:
            too_far = end - start > max_gap_ns
        if too_far:
            return None
        fraction = (stamp_ns - start) / (end - start)
        return interpolate(self.poses[after - 1], self.poses[after], fraction)


def read_tum(path: str | os.PathLike[str]) -> Trajectory:
    """Read a TUM trajectory.

    Raises:
        InputError: a missing file, a malformed line (with its number), stamps that do not
            increase, no poses at all.
    """
    stamps: list[int] = []
    poses: list[RigidTransform] = []
    for number, line in data_lines(path):
        fields = line.split()
        where = f'{path}:{number}'
        if len(fields) != 8:
            raise InputError(
                f'{where}: expected 8 values (stamp tx ty tz qx qy qz qw), found {len(fields)}'
            )
        stamp = parse_stamp_ns(fields[0], where)
        if stamps and stamp <= stamps[-1]:
            kind = 'repeats that of' if stamp == stamps[-1] else 'is before that of'
            raise InputError(f'{where}: stamp {fields[0]} {kind} the line before; sort it')
        stamps.append(stamp)
        poses.append(parse_pose(fields[1:], where))
    if not poses:
        raise InputError(f'{path} holds no poses')
    return Trajectory(np.array(stamps, dtype=np.int64), tuple(poses))


def write_tum(
    path: str | os.PathLike[str], stamps_ns: Iterable[int], poses: Iterable[RigidTransform]
) -> None:
    """Write a TUM trajectory; an existing file is replaced only when the new one is complete."""
    target = Path(path)
    lines = [
        f'{format_stamp(int(stamp))} {" ".join(f"{value:.9f}" for value in pose.to_tum())}\n'
        for stamp, pose in zip(stamps_ns, poses, strict=True)
    ]
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        temporary.write_text(''.join(lines), encoding='utf-8')
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f'cannot write {target}: {error.strerror}') from error


def associate(
    stamps_ns: Sequence[int] | ArrayLike, trajectory: Trajectory, max_difference_s: float
) -> list[int | None]:
    """Return for each stamp the index of the nearest pose, None if further than the maximum."""
    result: list[int | None] = []
    limit = round(max_difference_s * 1e9)
    known = trajectory.stamps_ns
    for stamp in np.asarray(stamps_ns, dtype=np.int64):
        after = int(np.searchsorted(known, stamp))
        candidates = [index for index in (after - 1, after) if 0 <= index < len(known)]
        best = min(candidates, key=lambda index: abs(int(known[index] - stamp)), default=None)
        if best is not None and abs(int(known[best] - stamp)) > limit:
            best = None
        result.append(best)
    return result


def format_stamp(stamp_ns: int) -> str:
    """Return nanoseconds as seconds with nine decimals, exactly."""
    sign = '-' if stamp_ns < 0 else ''
    return f'{sign}{abs(stamp_ns) // 10**9}.{abs(stamp_ns) % 10**9:09d}'


def parse_stamp_ns(text: str, where: str) -> int:
    """Parse seconds into nanoseconds without going through a float.

    Raises:
        InputError: beginning with `where` if the text is not a finite number.
    """
    try:
        value = Decimal(text)
        if not value.is_finite():
            raise InvalidOperation
        nanoseconds = int((value * 10**9).to_integral_value())
        if abs(nanoseconds) >= 2**63:
            raise InvalidOperation
    except (ArithmeticError, ValueError) as error:
        raise InputError(f'{where}: {text[:80]!r} is not a time in seconds') from error
    return nanoseconds


def parse_pose(fields: Sequence[str], where: str) -> RigidTransform:
    """Parse `tx ty tz qx qy qz qw`.

    Raises:
        InputError: beginning with `where`.
    """
    try:
        return RigidTransform.from_tum([float(field) for field in fields])
    except (ValueError, InputError) as error:
        raise InputError(f'{where}: not a pose (tx ty tz qx qy qz qw): {error}') from error


def data_lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Return (line number, text) of a text file without comments (#) and blank lines.

    Raises:
        InputError: if the file cannot be read as text.
    """
    return [
        (number, line.strip())
        for number, line in enumerate(read_text(path).splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith('#')
    ]


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text file.

    Raises:
        InputError: if it is missing, not text, or too large.
    """
    try:
        file = Path(path).expanduser()
        if file.exists() and not file.is_file():
            raise InputError(f'cannot read {path}: it is not a regular file')
        if file.is_file() and file.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(f'{path} is larger than {_MAX_TEXT_BYTES / 1e6:.0f} MB')
        return file.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise InputError(f'cannot read {path}: it is not a text file') from error
