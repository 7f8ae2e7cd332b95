"""Damage files as disks do: flipped bits and zeroed sectors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

SECTOR = 512


def flipped_bits(path: Path, number: int, seed: int = 0) -> Iterator[str]:
    """Flip a random bit of a file, yield where, and flip it back; as often as asked."""
    content = path.read_bytes()
    generator = random.Random(seed)
    for _ in range(number):
        position, bit = generator.randrange(len(content)), generator.randrange(8)
        _overwrite(path, position, bytes([content[position] ^ 1 << bit]))
        yield f"byte {position}, bit {bit}"
        _overwrite(path, position, content[position : position + 1])


def zeroed_sectors(path: Path, step: int = 1) -> Iterator[str]:
    """Zero every `step`-th sector that is not zero already, yield where, and restore it."""
    content = path.read_bytes()
    for start in range(0, len(content), step * SECTOR):
        sector = content[start : start + SECTOR]
        if any(sector):
            _overwrite(path, start, bytes(len(sector)))
            yield f"sector from byte {start}"
            _overwrite(path, start, sector)


def _overwrite(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)
