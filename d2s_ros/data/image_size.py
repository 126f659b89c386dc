"""The size that an encoded image claims to have, read from its header before it is decoded.

A file of some hundred bytes may claim gigabytes of pixels.
"""

from __future__ import annotations

import struct

from d2s_ros.errors import UnsupportedImageError

#: Most pixels of an image that is decoded, raw or compressed.
MAX_PIXELS = 2**26
#: Longest side.
MAX_SIDE_PX = 32768

#: JPEG markers of frames, which have the size; the others of their range are tables.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def check_size(width: int, height: int) -> None:
    """Refuse sizes that no camera has.

    Raises:
        UnsupportedImageError: nothing to decode, or too much.
    """
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise UnsupportedImageError(f'image size {width}x{height} is not usable')
    if width * height > MAX_PIXELS:
        raise UnsupportedImageError(
            f'an image of {width}x{height} has more than {MAX_PIXELS / 1e6:.0f} million pixels'
        )


def claimed_size(raw: bytes) -> tuple[int, int]:
    """Return width and height that a JPEG, PNG, WebP, BMP or TIFF file says it has.

    Raises:
        UnsupportedImageError: another format, or a header that is damaged.
    """
    for start, read in (
        (b'\xff\xd8', _jpeg),
        (b'\x89PNG\r\n\x1a\n', _png),
        (b'BM', _bmp),
        (b'RIFF', _webp),
        (b'II*\x00', _tiff),
        (b'MM\x00*', _tiff),
    ):
        if raw.startswith(start):
            try:
                return read(raw)
            except (struct.error, KeyError) as error:
                raise UnsupportedImageError('the header of the image is damaged') from error
    raise UnsupportedImageError(
        f'the compressed image ({len(raw)} bytes) cannot be decoded: it is no JPEG, PNG, WebP, BMP '
        'or TIFF'
    )


def _jpeg(raw: bytes) -> tuple[int, int]:
    position = 2
    while True:
        position = raw.find(b'\xff', position)
        if position < 0:
            raise UnsupportedImageError('the JPEG is truncated or damaged (it has no size)')
        (marker,) = struct.unpack_from('B', raw, position + 1)
        if marker in _FRAMES:
            height, width = struct.unpack_from('>HH', raw, position + 5)
            return width, height
        if marker == 0xFF:
            position += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9:
            position += 2
        else:
            (length,) = struct.unpack_from('>H', raw, position + 2)
            position += 2 + max(2, length)


def _png(raw: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from('>II', raw, 16)
    return width, height


def _bmp(raw: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from('<I', raw, 14)
    width, height = struct.unpack_from('<HH' if header_bytes == 12 else '<ii', raw, 18)
    # A negative height says that rows come from the top.
    return width, abs(height)


def _webp(raw: bytes) -> tuple[int, int]:
    kind = raw[12:16]
    if kind == b'VP8X':
        parts = struct.unpack_from('<6B', raw, 24)
        width = parts[0] | parts[1] << 8 | parts[2] << 16
        height = parts[3] | parts[4] << 8 | parts[5] << 16
        return width + 1, height + 1
    if kind == b'VP8L':
        (bits,) = struct.unpack_from('<I', raw, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from('<HH', raw, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(raw: bytes) -> tuple[int, int]:
    order = '<' if raw.startswith(b'II') else '>'
    (offset,) = struct.unpack_from(f'{order}I', raw, 4)
    (entries,) = struct.unpack_from(f'{order}H', raw, offset)
    sizes: dict[int, int] = {}
    for index in range(entries):
        place = offset + 2 + 12 * index
        tag, kind = struct.unpack_from(f'{order}HH', raw, place)
        if tag in (256, 257):
            (sizes[tag],) = struct.unpack_from(
                f'{order}{"H" if kind == 3 else "I"}', raw, place + 8
            )
    return sizes[256], sizes[257]
