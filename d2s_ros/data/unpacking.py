"""Compressed bytes of logs, unpacked with limits: a few bytes may claim to be gigabytes."""

from __future__ import annotations

import importlib
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

from d2s_ros.errors import BagError, InputError

#: Most bytes that one chunk or message may have once it is unpacked.
MAX_UNPACKED_BYTES = 2**28
#: How every zstd frame begins; no serialized message begins like this.
ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
#: A whole file may grow to this many times its size, or to MAX_UNPACKED_BYTES if that is more.
_MAX_FILE_RATIO = 200
_BLOCK_BYTES = 2**20
#: Left free on the disk that a file is unpacked on.
_FREE_BYTES = 2**28


class UnpackingError(Exception):
    """Data that cannot be unpacked, or that unpacks to more than it may."""


def unpack(data: Any, compression: str, size: int | None = None) -> bytes:
    """Return the bytes of one chunk or message.

    Args:
        data: Compressed bytes.
        compression: '' (as they are), 'zstd' or 'lz4'.
        size: What they must unpack to; None if that is not known.

    Raises:
        UnpackingError: an unknown compression, damaged data, or another size than `size`.
    """
    limit = MAX_UNPACKED_BYTES if size is None else size
    if limit > MAX_UNPACKED_BYTES:
        raise UnpackingError(f'{limit} bytes unpacked; at most {MAX_UNPACKED_BYTES} are read')
    if compression == '':
        unpacked = bytes(data)
    elif compression == 'zstd':
        try:
            with _zstd().open(BytesIO(data), 'rb') as stream:
                unpacked = stream.read(limit + 1)
        except UnpackingError:
            raise
        except Exception as error:  # each package has its own errors
            raise UnpackingError(f'damaged zstd data ({error})') from error
    elif compression == 'lz4':
        import lz4.frame

        try:
            decompressor = lz4.frame.LZ4FrameDecompressor()
            unpacked = decompressor.decompress(bytes(data), max_length=limit + 1)
        except Exception as error:
            raise UnpackingError(f'damaged lz4 data ({error})') from error
    else:
        raise UnpackingError(f'unknown compression {compression!r}')
    if len(unpacked) > limit or (size is not None and len(unpacked) != size):
        more = 'more than ' if len(unpacked) > limit else ''
        found = limit if more else len(unpacked)
        raise UnpackingError(f'{more}{found} bytes unpacked where {limit} may be')
    return unpacked


def unpack_file(source: Path, target: Path, partial: bool) -> str:
    """Unpack a zstd file into another file.

    Args:
        source: File to read.
        target: File to write.
        partial: Keep what can be unpacked of a file that is damaged or cut off.

    Returns:
        What went wrong where only a part could be unpacked; empty if nothing did.

    Raises:
        BagError: damage (unless partial), or too much data.
        InputError: the disk of `target` is full.
    """
    limit = max(MAX_UNPACKED_BYTES, _MAX_FILE_RATIO * source.stat().st_size)
    space = shutil.disk_usage(target.parent).free - _FREE_BYTES
    written = 0
    try:
        with (
            source.open('rb') as packed,
            target.open('wb') as output,
            _zstd().open(packed, 'rb') as stream,
        ):
            while block := stream.read(_BLOCK_BYTES):
                written += len(block)
                if written > limit:
                    raise BagError(
                        f'{source} unpacks to more than {limit / 1e6:.0f} MB, which no log of its '
                        'size does; unpack it with zstd if it is right'
                    )
                if written > space:
                    raise InputError(
                        f'the disk of {target.parent} is too full to unpack {source}; free space '
                        'or set TMPDIR to another disk'
                    )
                output.write(block)
    except InputError:
        raise
    except Exception as error:
        if partial and written:
            return f'unpacking stops after {written} bytes: {error}'
        raise BagError(
            f'{source} is damaged or cut off: it cannot be unpacked ({error}); record it again, or '
            'read only what is left of it with --partial'
        ) from error
    return ''


def _zstd() -> Any:
    # Part of Python since 3.14; before that, rosbags brings one of the others.
    for name in ('compression.zstd', 'backports.zstd', 'zstandard'):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnpackingError('zstd data, but no package that unpacks it; pip install backports.zstd')
