"""Files of every kind with some of their bytes changed, for the tests of how damage is met."""

import io

import numpy as np

from tests.engine.data import image_kinds, measured

EXTREMES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xff\xff", b"\1\0\0\0"]


def whole():
    """Return a small file of every kind that is accepted or refused, measured data too, as bytes."""
    files = [*image_kinds.accepted().values(), *image_kinds.uncommon().values()]
    files += [content for content, _ in image_kinds.refused().values()]
    files += [kind.content for kind in measured.kinds().values()]
    for dtype in (np.uint8, np.uint16, np.float32):
        stream = io.BytesIO()
        np.save(stream, np.arange(12 * 14 * 5).reshape(12, 14, 5).astype(dtype))
        files.append(stream.getvalue())
    return files


def mutated(content, rng):
    """Return a file's bytes with one to four changes, half of them within the first 100 bytes."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not content:
            break
        start = int(rng.integers(len(content) if rng.random() < 0.5 else min(100, len(content))))
        match int(rng.integers(7)):
            case 0 | 1:
                content[start] ^= 1 << int(rng.integers(8))
            case 2:
                content[start] = int(rng.integers(256))
            case 3:
                content[start : start + 4] = EXTREMES[rng.integers(len(EXTREMES))]
            case 4:
                del content[start : start + int(rng.choice([1, 4, 30, len(content)]))]
            case 5:
                content[start:start] = rng.bytes(int(rng.integers(1, 30)))
            case 6:
                content[start : start + 30] = bytes(30)
    return bytes(content)
