"""Camera images from raw or compressed bytes: plain values in, arrays out, no message types.

Images with more than 8 bits are scaled to 8 by a whole number of bits, chosen from the brightest
pixel: a 12-bit sensor in a 16-bit image (maximum below 4096) is shifted by 4, full 16 bit by 8.
The scaling is linear, so gradients and corners stay where they are.
"""

from __future__ import annotations

import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2s_ros.data.image_size import check_size, claimed_size
from d2s_ros.errors import UnsupportedImageError

Image = NDArray[np.uint8]

#: Encoding to (channels, bytes per channel, OpenCV conversion to grey or BGR or None).
_PACKED: dict[str, tuple[int, int, int | None]] = {
    'mono8': (1, 1, None),
    '8UC1': (1, 1, None),
    'mono16': (1, 2, None),
    '16UC1': (1, 2, None),
    'bgr8': (3, 1, None),
    '8UC3': (3, 1, None),
    'rgb8': (3, 1, cv2.COLOR_RGB2BGR),
    'bgra8': (4, 1, cv2.COLOR_BGRA2BGR),
    '8UC4': (4, 1, cv2.COLOR_BGRA2BGR),
    'rgba8': (4, 1, cv2.COLOR_RGBA2BGR),
    'bgr16': (3, 2, None),
    '16UC3': (3, 2, None),
    'rgb16': (3, 2, cv2.COLOR_RGB2BGR),
    'yuv422': (2, 1, cv2.COLOR_YUV2BGR_UYVY),
    'uyvy': (2, 1, cv2.COLOR_YUV2BGR_UYVY),
    'yuv422_yuy2': (2, 1, cv2.COLOR_YUV2BGR_YUY2),
    'yuyv': (2, 1, cv2.COLOR_YUV2BGR_YUY2),
}
# ROS names the pattern from the first pixel on, OpenCV from the second pixel of the second row.
_BAYER = {
    'rggb': cv2.COLOR_BayerBG2BGR,
    'bggr': cv2.COLOR_BayerRG2BGR,
    'gbrg': cv2.COLOR_BayerGR2BGR,
    'grbg': cv2.COLOR_BayerGB2BGR,
}
for _pattern, _code in _BAYER.items():
    _PACKED[f'bayer_{_pattern}8'] = (1, 1, _code)
    _PACKED[f'bayer_{_pattern}16'] = (1, 2, _code)
_PLANAR = {'nv12': cv2.COLOR_YUV2BGR_NV12, 'nv21': cv2.COLOR_YUV2BGR_NV21}

#: Encodings `decode_image` accepts.
SUPPORTED_ENCODINGS = tuple(sorted({*_PACKED, *_PLANAR}))


def decode_image(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool | int, data: Any
) -> Image:
    """Decode the fields of a sensor_msgs/Image.

    Args:
        encoding: One of SUPPORTED_ENCODINGS.
        height, width: Image size in px.
        step: Bytes per row including padding; 0 means no padding.
        is_bigendian: Byte order of channels of 16 bit.
        data: Buffer of bytes (bytes, array, memoryview or ndarray).

    Returns:
        (H, W) uint8 grey or (H, W, 3) uint8 BGR, a copy that does not share `data`.

    Raises:
        UnsupportedImageError: naming the encoding or the sizes that do not fit.
    """
    height, width, step = int(height), int(width), int(step)
    check_size(width, height)
    buffer = np.frombuffer(data, dtype=np.uint8)
    if encoding in _PLANAR:
        if height % 2 or width % 2:
            raise UnsupportedImageError(f'{encoding} needs even sizes, found {width}x{height}')
        rows = _rows(encoding, buffer, height * 3 // 2, width, step, (width, height))
        return _uint8(cv2.cvtColor(rows, _PLANAR[encoding]))
    if encoding not in _PACKED:
        raise UnsupportedImageError(
            f'image encoding {encoding!r} is not supported; supported: '
            f'{", ".join(SUPPORTED_ENCODINGS)}'
        )
    channels, channel_bytes, conversion = _PACKED[encoding]
    if channels == 2 and width % 2:
        raise UnsupportedImageError(f'{encoding} needs an even width, found {width}')
    row_bytes = width * channels * channel_bytes
    rows = _rows(encoding, buffer, height, row_bytes, step, (width, height))
    if channel_bytes == 2:
        values = rows.view('>u2' if is_bigendian else '<u2').astype(np.uint16)
        rows = _to_8_bit(values)
    image = rows.reshape(height, width) if channels == 1 else rows.reshape(height, width, channels)
    if conversion is None:
        return _uint8(image.copy())
    return _uint8(cv2.cvtColor(image, conversion))


def decode_compressed(data: Any, format: str = '') -> Image:
    """Decode the bytes of a JPEG, PNG, WebP, BMP or TIFF file.

    Args:
        data: Buffer of bytes (bytes, array, memoryview or ndarray).
        format: The `format` of a sensor_msgs/CompressedImage: refuses what is no picture, and tells
            that a grey file holds a colour mosaic ('bayer_rggb8; jpeg compressed bayer_rggb8').

    Returns:
        (H, W) uint8 grey or (H, W, 3) uint8 BGR, pixels as stored: a rotation noted in EXIF is not
        applied, because calibrations hold for the stored pixels.

    Raises:
        UnsupportedImageError: unreadable, truncated or damaged data, a depth image, or one that is
            too large.
    """
    if 'compresseddepth' in format.lower():
        raise UnsupportedImageError(
            'compressedDepth holds depth, not a picture; choose the colour image topic'
        )
    buffer = np.frombuffer(data, dtype=np.uint8)
    raw = buffer.tobytes()
    if not raw:
        raise UnsupportedImageError('the compressed image is empty (0 bytes)')
    # Before anything is decoded: the header may claim more than there is memory.
    check_size(*claimed_size(raw))
    if raw.startswith(b'\xff\xd8'):
        _check_jpeg(raw)
    elif raw.startswith(b'\x89PNG\r\n\x1a\n'):
        _check_png(raw)
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(buffer, flags)
    except cv2.error as error:
        raise UnsupportedImageError(
            f'the compressed image cannot be decoded: {error.err or error}'
        ) from error
    if image is None or image.size == 0:
        raise UnsupportedImageError(
            f'the compressed image ({len(raw)} bytes, format {format!r}) cannot be decoded'
        )
    if image.dtype == np.uint16:
        image = _to_8_bit(np.asarray(image, dtype=np.uint16))
    if image.dtype != np.uint8:
        raise UnsupportedImageError(f'images of type {image.dtype} are not supported')
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[:, :, :3]
    if image.ndim == 3 and image.shape[2] == 2:
        image = image[:, :, 0]
    conversion = _mosaic_conversion(format) if image.ndim == 2 else None
    if conversion is not None:
        image = cv2.cvtColor(image, conversion)
    return _uint8(np.ascontiguousarray(image))


def _mosaic_conversion(format: str) -> int | None:
    """Return how the grey file of a raw colour mosaic becomes BGR; None if it is a grey picture.

    image_transport writes "ENCODING; CODEC compressed STORED", where ENCODING is that of the raw
    topic and STORED that of the pixels in the file. It compresses a mosaic as it is, and leaves
    STORED empty or repeats ENCODING; a STORED of mono8 was made grey by the publisher.
    """
    encoding, _, rest = format.lower().partition(';')
    stored = rest.partition('compressed')[2].strip() or encoding.strip()
    pattern = stored.removeprefix('bayer_')
    return _BAYER.get(pattern[:4]) if pattern != stored else None


def _rows(
    encoding: str, buffer: Image, rows: int, row_bytes: int, step: int, size: tuple[int, int]
) -> Image:
    """Cut the padding off: (rows, row_bytes), contiguous."""
    step = step or row_bytes
    needed = step * (rows - 1) + row_bytes
    if step < row_bytes or len(buffer) < needed:
        raise UnsupportedImageError(
            f'{encoding} image of {size[0]}x{size[1]} needs rows of {row_bytes} bytes, found step '
            f'{step} and {len(buffer)} bytes in all (at least {max(needed, row_bytes * rows)} '
            f'needed)'
        )
    # The last row may come without its padding, so a plain reshape does not always fit.
    view = np.lib.stride_tricks.as_strided(buffer, (rows, row_bytes), (step, 1), writeable=False)
    return np.ascontiguousarray(view)


def _to_8_bit(values: NDArray[np.uint16]) -> Image:
    bits = max(8, int(values.max(initial=0)).bit_length())
    # Sensors have an even number of bits; 9 to 10 used bits mean a 10-bit sensor, and so on.
    shift = (bits + bits % 2) - 8
    return (values >> shift).astype(np.uint8)


def _uint8(image: Any) -> Image:
    return np.asarray(image, dtype=np.uint8)


def _check_jpeg(raw: bytes) -> None:
    """Walk the segments to the end marker; libjpeg would fill what is missing with grey."""
    truncated = UnsupportedImageError(
        f'the JPEG is truncated or damaged (no end marker in {len(raw)} bytes)'
    )
    position = 2
    while True:
        position = raw.find(b'\xff', position)
        if position < 0 or position + 1 >= len(raw):
            raise truncated
        marker = raw[position + 1]
        if marker == 0xD9:
            return
        if marker == 0xFF:
            position += 1
        elif marker == 0x00 or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            length = int.from_bytes(raw[position + 2 : position + 4], 'big')
            if length < 2 or position + 2 + length > len(raw):
                raise truncated
            position += 2 + length


def _check_png(raw: bytes) -> None:
    """Check every chunk's length and checksum up to the end chunk."""
    position = 8
    while True:
        length = int.from_bytes(raw[position : position + 4], 'big')
        end = position + 12 + length
        if position + 12 > len(raw) or end > len(raw):
            raise UnsupportedImageError(f'the PNG is truncated ({len(raw)} bytes)')
        if zlib.crc32(raw[position + 4 : end - 4]) != int.from_bytes(raw[end - 4 : end], 'big'):
            raise UnsupportedImageError('the PNG is damaged (a checksum does not fit)')
        if raw[position + 4 : position + 8] == b'IEND':
            return
        position = end
