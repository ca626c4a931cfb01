"""Renders pictures of the Mandelbrot set and writes them as PNG. Burns CPU as a miner does.

arguments: PICTURES WIDTH
variants: 10 160 | 3 300
"""

import struct
import sys
import zlib
from pathlib import Path

pictures, width = int(sys.argv[1]), int(sys.argv[2])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


for picture in range(pictures):
    rows = bytearray()
    for y in range(width):
        rows.append(0)
        for x in range(width):
            c = complex(3 * x / width - 2, 2 * y / width - 1) / (1 + picture / 5)
            z, n = 0j, 0
            while abs(z) < 2 and n < 60:
                z, n = z * z + c, n + 1
            rows.append(n * 4)
    header = struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    Path(f"picture{picture}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
