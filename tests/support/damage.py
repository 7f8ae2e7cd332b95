"""Damage files as disks do: flipped bits and zeroed sectors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

SECTOR = 512


def flipped_bits(path: Path, number: int, seed: int = 0) -> Iterator[str]:
    """Flip a random bit of a file, yield where, and restore the file; as often as asked."""
    content = path.read_bytes()
    generator = random.Random(seed)
    for _ in range(number):
        position, bit = generator.randrange(len(content)), generator.randrange(8)
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        yield f"byte {position}, bit {bit}"
    path.write_bytes(content)


def zeroed_sectors(path: Path, step: int = 1) -> Iterator[str]:
    """Zero every `step`-th sector that is not zero already, yield where, and restore the file."""
    content = path.read_bytes()
    for start in range(0, len(content), step * SECTOR):
        sector = content[start : start + SECTOR]
        if any(sector):
            path.write_bytes(content[:start] + bytes(len(sector)) + content[start + SECTOR :])
            yield f"sector from byte {start}"
    path.write_bytes(content)
