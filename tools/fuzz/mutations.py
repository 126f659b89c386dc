"""Small changes of bytes and texts that parsers tend to fall over."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable

_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_LONG_NUMBERS = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TOKENS = (
    '', '0', '-1', '1e308', '1e309', '-1e400', 'nan', '.nan', 'inf', '.inf', '-inf', 'null', '~',
    'true', '[]', '{}', '[[[[', '{a: 1}', '"', "'", '\x00', '\ufeff', '\ud7ff', '9' * 30,
    '9' * 5000, '0x7fffffff', '1_000', '1:2:3', '2020-13-45', '2020-01-01', '!!binary aGk=',
    '!!python/object:os.system x', '*a', '&a x', '<<', '- ', '? ', '%', '#', '\t', '\r\n',
    '../../etc/passwd', '/dev/zero', '1e-999999999', '1e999999999', '\u0660', '½', '٣',
)  # fmt: skip


#: Larger texts take longer to change than to read; those of YAML are refused before.
_ENOUGH_TEXT = 8_000_000


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return data with a few bytes flipped, set, moved, cut or repeated."""
    result = bytearray(data)
    for _change in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not result:
            result += rng.randbytes(rng.randint(1, 64))
        rng.choice(_BYTE_CHANGES)(result, rng)
    return bytes(result)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Return a text with a few words replaced, removed, repeated or nested; sometimes as bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    text = data.decode('utf-8', 'replace')
    for _change in range(rng.choice((1, 1, 2, 4))):
        if len(text) > _ENOUGH_TEXT:
            break
        words = list(re.finditer(r'[^\s,:\[\]{}"\']+|[,:\[\]{}"\'\n]', text))
        if not words:
            return rng.choice(_TOKENS).encode('utf-8', 'replace')
        word = rng.choice(words)
        start, end = word.span()
        kind = rng.randrange(7)
        if kind <= 2:
            text = text[:start] + rng.choice(_TOKENS) + text[end:]
        elif kind == 3:
            other = rng.choice(words).group()
            text = text[:start] + other + text[end:]
        elif kind == 4:
            text = text[:start] + text[end:]
        elif kind == 5:
            lines = text.splitlines(keepends=True)
            place = rng.randrange(len(lines))
            lines[place:place] = [lines[place]] * rng.choice((1, 2, 100))
            text = ''.join(lines)
        else:
            depth = rng.choice((2, 30, 3000, 50_000))
            opening = rng.choice('[{(')
            text = text[:start] + opening * depth + text[start:]
    return text.encode('utf-8', 'surrogatepass')


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))


def _number(data: bytearray, rng: random.Random) -> None:
    form = rng.choice(('<H', '>H', '<I', '>I', '<Q', '>Q', '<d'))
    size = struct.calcsize(form)
    if len(data) < size:
        return
    # Headers and footers hold the structure.
    limit = rng.choice((64, 512, len(data)))
    place = rng.randrange(min(limit, len(data) - size + 1) or 1)
    if rng.random() < 0.3:
        place = len(data) - size - place if place <= len(data) - size else 0
    value: float = rng.choice((*_NUMBERS, *_LONG_NUMBERS)) % 2 ** (8 * min(size, 8))
    if form == '<d':
        value = rng.choice((0.0, -1.0, 1e308, float('inf'), float('nan'), 1e-320))
    data[place : place + size] = struct.pack(form, value)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 8, 100, 5000))]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = rng.choice(
        (bytes(8), b'\xff' * 8, rng.randbytes(16), data[start : start + 200])
    )


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((16, 256, 4096))]
    data[start:start] = part * rng.choice((1, 10, 100))


def _move(data: bytearray, rng: random.Random) -> None:
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    part = data[source : source + rng.choice((4, 32, 512))]
    data[target : target + len(part)] = part


_BYTE_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _set, _set, _number, _number, _number, _cut, _remove, _insert, _repeat, _move,
)  # fmt: skip
