"""Raw encodings against pixels packed by hand, compressed files against truncation."""

from __future__ import annotations

import array
import struct

import cv2
import numpy as np
import pytest

from d2s_ros.data.image_codec import SUPPORTED_ENCODINGS, decode_compressed, decode_image
from d2s_ros.data.image_size import claimed_size
from d2s_ros.errors import UnsupportedImageError

HEIGHT, WIDTH = 6, 8


@pytest.fixture
def bgr(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def grey(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def padded(rows: np.ndarray, step: int, last_row_padded: bool = True) -> bytes:
    """Lay the rows out with `step` bytes each, the padding filled with a wrong value."""
    data = np.full((len(rows), step), 0xAB, dtype=np.uint8)
    data[:, : rows.shape[1]] = rows
    raw = data.tobytes()
    return raw if last_row_padded else raw[: len(raw) - (step - rows.shape[1])]


def as_rows(image: np.ndarray) -> np.ndarray:
    return np.frombuffer(image.tobytes(), np.uint8).reshape(len(image), -1)


def decode(encoding, image, step=0, big=0, size=(HEIGHT, WIDTH), **layout):
    rows = as_rows(image)
    data = padded(rows, step, **layout) if step else rows.tobytes()
    return decode_image(encoding, size[0], size[1], step, big, data)


@pytest.mark.parametrize('step', [0, 40])
@pytest.mark.parametrize(
    ('encoding', 'order'),
    [
        ('bgr8', [0, 1, 2]),
        ('8UC3', [0, 1, 2]),
        ('rgb8', [2, 1, 0]),
        ('bgra8', [0, 1, 2, 0]),
        ('8UC4', [0, 1, 2, 0]),
        ('rgba8', [2, 1, 0, 1]),
    ],
)
def test_colour(bgr, encoding, order, step):
    np.testing.assert_array_equal(decode(encoding, bgr[:, :, order], step), bgr)


@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
@pytest.mark.parametrize('step', [0, WIDTH, 13])
def test_grey(grey, encoding, step):
    image = decode(encoding, grey, step)
    assert image.ndim == 2
    np.testing.assert_array_equal(image, grey)


def test_the_last_row_may_lack_its_padding(grey):
    np.testing.assert_array_equal(decode('mono8', grey, 13, last_row_padded=False), grey)


@pytest.mark.parametrize('container', [bytes, bytearray, memoryview, lambda d: array.array('B', d)])
def test_every_kind_of_buffer(grey, container):
    image = decode_image('mono8', HEIGHT, WIDTH, WIDTH, 0, container(grey.tobytes()))
    np.testing.assert_array_equal(image, grey)


def test_the_result_does_not_share_the_buffer(grey):
    data = bytearray(grey.tobytes())
    image = decode_image('mono8', HEIGHT, WIDTH, WIDTH, 0, data)
    data[:] = bytes(len(data))
    np.testing.assert_array_equal(image, grey)


@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('step', [0, 2 * WIDTH + 3])
def test_16_bit_is_scaled_by_the_bits_in_use(rng, encoding, bits, order, step):
    values = rng.integers(0, 2**bits, (HEIGHT, WIDTH))
    values[0, 0] = 2**bits - 1
    stored = values.astype(f'{order}u2')
    image = decode(encoding, stored, step, big=int(order == '>'))
    np.testing.assert_array_equal(image, values >> (bits - 8))


def test_16_bit_colour(bgr):
    wide = (bgr.astype('<u2') << 8) | 0xFF
    np.testing.assert_array_equal(decode('bgr16', wide), bgr)
    np.testing.assert_array_equal(decode('rgb16', wide[:, :, ::-1]), bgr)


def packed_yuv(order: str, luma: int, blue: int, red: int) -> np.ndarray:
    pair = {'uyvy': [blue, luma, red, luma], 'yuyv': [luma, blue, luma, red]}[order]
    return np.tile(np.array(pair, np.uint8), (HEIGHT, WIDTH // 2))


@pytest.mark.parametrize(
    ('encoding', 'order'),
    [('yuv422', 'uyvy'), ('uyvy', 'uyvy'), ('yuv422_yuy2', 'yuyv'), ('yuyv', 'yuyv')],
)
@pytest.mark.parametrize('step', [0, 20])
def test_packed_yuv(encoding, order, step):
    # BT.601 of limited range: a luma of 81, 90, 240 is pure red.
    image = decode(encoding, packed_yuv(order, 81, 90, 240), step)
    assert image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(image, np.broadcast_to([0, 0, 255], image.shape), atol=3)


@pytest.mark.parametrize(('encoding', 'chroma'), [('nv12', [90, 240]), ('nv21', [240, 90])])
@pytest.mark.parametrize('step', [0, 11])
def test_planar_yuv(encoding, chroma, step):
    luma = np.full((HEIGHT, WIDTH), 81, np.uint8)
    both = np.vstack([luma, np.tile(np.array(chroma, np.uint8), (HEIGHT // 2, WIDTH // 2))])
    image = decode(encoding, both, step)
    assert image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(image, np.broadcast_to([0, 0, 255], image.shape), atol=3)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('bits', [8, 16])
def test_bayer(pattern, bits):
    colour = {'b': 40, 'g': 120, 'r': 220}
    mosaic = np.empty((HEIGHT, WIDTH), np.uint16)
    for index, channel in enumerate(pattern):
        mosaic[index // 2 :: 2, index % 2 :: 2] = colour[channel]
    stored = mosaic.astype(np.uint8) if bits == 8 else ((mosaic << 8) | 255).astype('<u2')
    image = decode(f'bayer_{pattern}{bits}', stored)
    # A flat colour keeps its value everywhere, whatever the interpolation.
    np.testing.assert_array_equal(image[1:-1, 1:-1], np.broadcast_to([40, 120, 220], (4, 6, 3)))


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('bits', [8, 16])
def test_bayer_in_a_file(rng, pattern, bits):
    """image_transport compresses a mosaic as it is: its pixels are those of the raw topic."""
    mosaic = rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
    if bits == 16:
        mosaic = (mosaic.astype(np.uint16) << 8) | 255
    encoding = f'bayer_{pattern}{bits}'
    expected = decode(encoding, mosaic)
    for suffix in ('.png', '.tiff'):
        data = encode(suffix, mosaic)
        for stored in (encoding, '', f' {encoding.upper()} '):
            image = decode_compressed(data, f'{encoding}; {suffix[1:]} compressed {stored}')
            np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(decode_compressed(data, encoding), expected)


def test_a_flat_colour_survives_a_mosaic_in_a_jpeg():
    mosaic = np.full((64, 64), 120, np.uint8)
    mosaic[::2, ::2], mosaic[1::2, 1::2] = 130, 110
    data = encode('.jpg', mosaic, cv2.IMWRITE_JPEG_QUALITY, 98)
    image = decode_compressed(data, 'bayer_rggb8; jpeg compressed ')
    np.testing.assert_allclose(image[4:-4, 4:-4].mean(axis=(0, 1)), [110, 120, 130], atol=2)


@pytest.mark.parametrize(
    'form',
    [
        '',
        'jpeg',
        'mono8; png compressed mono8',
        'mono8; png compressed ',
        'bayer_rggb8; png compressed mono8',
        'bayer_xxxx8; png compressed bayer_xxxx8',
        ';;',
        'bayer_',
    ],
)
def test_other_grey_files_stay_grey(grey, form):
    np.testing.assert_array_equal(decode_compressed(encode('.png', grey), form), grey)


def test_a_mosaic_that_the_publisher_made_colour_stays_so(bgr):
    data = encode('.png', bgr)
    for form in ('bayer_rggb8; png compressed bgr8', 'bayer_rggb8; png compressed '):
        np.testing.assert_array_equal(decode_compressed(data, form), bgr)


def test_every_listed_encoding_decodes():
    for encoding in SUPPORTED_ENCODINGS:
        image = decode_image(encoding, HEIGHT, WIDTH, 0, 0, bytes(HEIGHT * WIDTH * 8))
        assert image.dtype == np.uint8
        assert image.shape[:2] == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('32FC1', 6, 8, 32, 0, bytes(192)), r"'32FC1'.*mono8"),
        (('mono8', 6, 8, 8, 0, bytes(47)), '8x6.*47 bytes'),
        (('mono8', 6, 8, 7, 0, bytes(48)), 'step 7'),
        (('bgr8', 6, 8, 8, 0, bytes(200)), 'rows of 24 bytes'),
        (('mono8', 0, 8, 8, 0, b''), '8x0'),
        (('mono8', 6, 10**9, 0, 0, b''), '1000000000x6'),
        (('yuv422', 6, 7, 14, 0, bytes(84)), 'even width'),
        (('nv12', 5, 8, 8, 0, bytes(64)), 'even sizes'),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UnsupportedImageError, match=message):
        decode_image(*arguments)


def encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


@pytest.fixture
def large(rng):
    return cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (160, 120))


@pytest.mark.parametrize('suffix', ['.png', '.bmp'])
def test_lossless_files(large, suffix):
    np.testing.assert_array_equal(decode_compressed(encode(suffix, large), suffix[1:]), large)
    grey = large[:, :, 0]
    np.testing.assert_array_equal(decode_compressed(encode(suffix, grey)), grey)


@pytest.mark.parametrize('progressive', [0, 1])
def test_jpeg(large, progressive):
    data = encode('.jpg', large, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decode_compressed(data, 'jpeg'), expected)
    # Some cameras pad what they send.
    np.testing.assert_array_equal(decode_compressed(data + bytes(100)), expected)
    assert decode_compressed(encode('.jpg', large[:, :, 0])).ndim == 2


def test_jpeg_with_restart_markers(large):
    data = encode('.jpg', large, cv2.IMWRITE_JPEG_RST_INTERVAL, 4)
    assert decode_compressed(data).shape == large.shape


@pytest.mark.parametrize('progressive', [0, 1])
@pytest.mark.parametrize('share', [0.02, 0.3, 0.7, 0.99])
def test_truncated_jpeg(large, share, progressive):
    data = encode('.jpg', large, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    with pytest.raises(UnsupportedImageError, match='truncated'):
        decode_compressed(data[: int(share * len(data))])


@pytest.mark.parametrize('share', [0.1, 0.5, 0.99])
def test_truncated_png(large, share):
    data = encode('.png', large)
    with pytest.raises(UnsupportedImageError, match='truncated'):
        decode_compressed(data[: int(share * len(data))])


def test_damaged_png(large):
    data = bytearray(encode('.png', large))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(UnsupportedImageError, match='damaged'):
        decode_compressed(bytes(data))


def test_16_bit_and_alpha_png(rng):
    values = rng.integers(0, 4096, (20, 30), dtype=np.uint16)
    values[0, 0] = 4095
    np.testing.assert_array_equal(decode_compressed(encode('.png', values)), values >> 4)
    bgra = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decode_compressed(encode('.png', bgra)), bgra[:, :, :3])


@pytest.mark.parametrize('data', [b'', b'not a picture', b'\xff\xd8\xff\xd9', bytes(1000)])
def test_no_picture(data):
    with pytest.raises(UnsupportedImageError):
        decode_compressed(data, 'jpeg')


def test_compressed_depth_is_refused():
    with pytest.raises(UnsupportedImageError, match='depth'):
        decode_compressed(b'\x00' * 12, '16UC1; compressedDepth')


def test_rotation_in_exif_is_not_applied(large):
    data = encode('.jpg', large)
    tiff = (
        b'II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00'
        + bytes(4)
    )
    exif = b'Exif\x00\x00' + tiff
    segment = b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif
    rotated = data[:2] + segment + data[2:]
    assert cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (160, 120)
    assert decode_compressed(rotated).shape == large.shape


def header_of(kind, width, height):
    """Return the start of a file that claims a size, without pixels."""
    big = struct.pack('>HH', height, width)
    if kind == 'jpeg':
        return b'\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08' + big + b'\x03' * 9 + b'\xff\xd9'
    if kind == 'png':
        return (
            b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR' + struct.pack('>II', width, height) + b'\x08\x02'
        )
    if kind == 'bmp':
        return b'BM' + bytes(12) + struct.pack('<Iii', 40, width, -height) + bytes(40)
    if kind == 'webp':
        sizes = (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
        return b'RIFF....WEBPVP8X' + bytes(8) + sizes
    entries = struct.pack('<HHII', 256, 4, 1, width) + struct.pack('<HHII', 257, 4, 1, height)
    return b'II*\x00' + struct.pack('<IH', 8, 2) + entries


@pytest.mark.parametrize('kind', ['jpeg', 'png', 'bmp', 'webp', 'tiff'])
def test_what_claims_gigabytes_is_not_decoded(kind, monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    for size in ((32000, 32000), (8193, 8192)):
        with pytest.raises(UnsupportedImageError, match=r'million pixels|not usable'):
            decode_compressed(header_of(kind, *size))
    if kind != 'webp':  # It keeps the size less one.
        with pytest.raises(UnsupportedImageError):
            decode_compressed(header_of(kind, 0, 100))
    with pytest.raises(UnsupportedImageError):
        decode_compressed(header_of(kind, 100, 100)[:14])


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.webp', '.tiff'])
def test_claimed_sizes_are_those_of_files(suffix):
    image = np.zeros((37, 53, 3), np.uint8)
    assert claimed_size(cv2.imencode(suffix, image)[1].tobytes()) == (53, 37)


def test_raw_images_have_the_same_limit():
    with pytest.raises(UnsupportedImageError, match='million pixels'):
        decode_image('mono8', 8193, 8192, 0, False, b'')


def test_other_formats_are_refused():
    with pytest.raises(UnsupportedImageError, match='no JPEG'):
        decode_compressed(b'GIF89a' + bytes(100))
