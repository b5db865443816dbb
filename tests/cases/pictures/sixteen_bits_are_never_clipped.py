"""PIL clips 16-bit grey to white on its way to RGB; of 16-bit colour PNG it takes the upper byte."""

import struct
import zlib

import numpy as np
import pytest
from case_bench import Bench

from pefttool import DataError


def check(bench: Bench) -> None:
    from pefttool_vision.pictures import complaint, open_rgb

    for path in bench.input().rglob("*.png"):
        with pytest.raises(DataError, match="8 bits a channel"):
            open_rgb(str(path))
    values = np.arange(48).reshape(4, 4, 3) * 1300
    path = bench.folder / "colour.png"
    path.write_bytes(_png(values))
    assert complaint(str(path)) is None
    assert np.array_equal(np.asarray(open_rgb(str(path))), values >> 8)


def _png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB `[H, W, 3]`, written by hand: PIL writes none."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)),
             (b"IEND", b""))  # fmt: skip
    chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
