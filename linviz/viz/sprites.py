"""Sprite sheets: all matrices of a panel side by side in one palette PNG.

The pixels are the numbers of colours. The page puts the palette of its theme between the two ends
of the file, or one of greys, from which it reads the value under the pointer.
"""

import struct
import zlib
from base64 import b64encode
from math import ceil

import matplotlib as mpl
import numpy as np

from linviz.viz.ink import INK, MAPS, style

LEVELS = 254  # colours; after them come NaN and "not applicable"


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def sprite_sheet(levels: np.ndarray) -> tuple[bytes, bytes]:
    """The two ends of a palette PNG; between them goes `palette`.

    Each piece is a multiple of three bytes long up to the end, so that their base64 texts can be
    joined too.

    Args:
        levels: [row, column] numbers of colours; LEVELS + 1 is see-through.
    """
    height, width = levels.shape
    size = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits a pixel, with a palette
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels.astype(np.uint8)], 1)
    see_through = chunk(b"tRNS", b"\xff" * (LEVELS + 1) + b"\0")
    tail = see_through + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return head, tail


def palette(kind: str, theme: str) -> bytes:
    """The colours of a scale, then NaN's, as a PNG's palette; kind "level" is a ramp of greys."""
    if kind == "level":
        return chunk(b"PLTE", bytes(level for level in range(256) for _ in "rgb"))
    with style(theme):
        ramp = mpl.colormaps[MAPS[kind]](np.linspace(0, 1, LEVELS), bytes=True)[:, :3]
        nan = bytes.fromhex(INK["nan"][1:])
    return chunk(b"PLTE", ramp.tobytes() + nan + b"\0\0\0")


def text64(data: bytes) -> str:
    """Base64 as text."""
    return b64encode(data).decode()


def tile(levels: np.ndarray, across: int) -> np.ndarray:
    """All frames [t, i, j] on one sheet, `across` of them side by side; one matrix as it is."""
    if levels.ndim == 2:
        return levels
    T, height, width = levels.shape
    down = ceil(T / across)
    sheet = np.full((down * across, height, width), LEVELS + 1, np.uint8)
    sheet[:T] = levels
    return sheet.reshape(down, across, height, width).swapaxes(1, 2).reshape(down * height, -1)
