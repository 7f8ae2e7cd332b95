"""Exact top K segments of every class, from a stream of probabilities.

A candidate is one unsigned 64-bit key: the inverted bits of its probability, then the segment's rank in a fixed order of
ties. Smaller keys rank first, keys are distinct, and a key encodes both its segment and its probability. Ranking is thus
sorting of integers, and its result does not depend on the order, the batches or the processes of the segments.
"""

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import ArrayLike, NDArray

from yt8m.errors import Yt8mError
from yt8m.prediction.segments import Segments

_WORST_KEY = np.uint64(2**64 - 1)
_ROWS_PER_COPY = 128
_HEADER = struct.Struct("<QI")
"""Header of a saved ranker: number of bytes that follow, and their CRC32C."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """The top segments of every class.

    Args:
        segments: All segments.
        keys: Sorted keys, uint64 (at most K,), one array per class.
    """

    segments: Segments
    keys: tuple[NDArray[np.uint64], ...]

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, class_index: int) -> NDArray[np.int32]:
        """Positions in `segments` of a class's top segments, int32, the most probable first."""
        return self.segments.order[self.keys[class_index].astype(np.uint32)]

    def probabilities(self, class_index: int) -> NDArray[np.float32]:
        """Probabilities of a class's top segments, float32, in the order of `positions`."""
        return _probabilities_of(self.keys[class_index])


class TopK:
    """Keeps the exact top K segments of every class, with ties in the order of `Segments.order`.

    Each class has a buffer of 1.25 K keys. A full buffer is truncated to the top K; after that, most probabilities cost
    only a comparison with the K-th. The buffers need 1 GB for 1,000 classes and K = 100,000, for any number of segments.

    Args:
        num_classes: C.
        k: Segments to keep per class.
        segments: All segments to rank.
        rows_per_block: Segments to collect before they are compared, class by class.
    """

    def __init__(self, num_classes: int, k: int, segments: Segments, rows_per_block: int = 8192) -> None:
        if num_classes < 1 or k < 1:
            raise ValueError(f"expected at least one class and k of at least 1, found {num_classes} and {k}.")
        self.k = k
        self.segments = segments
        rows_per_block = min(rows_per_block, len(segments))
        capacity = min(k + max(k // 4, rows_per_block), len(segments))
        self._keys = np.empty((num_classes, capacity), np.uint64)
        self._counts = [0] * num_classes
        self._worst_keys = np.full(num_classes, _WORST_KEY)
        self._worst_probabilities = np.zeros(num_classes, np.float32)
        self._seen = np.zeros(len(segments), np.bool_)
        self._block = np.empty((num_classes, rows_per_block), np.float32)
        self._block_positions = np.empty(rows_per_block, np.int64)
        self._block_rows = 0
        self._finished = False

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self._keys)

    def update(self, segment_positions: ArrayLike, probabilities: ArrayLike) -> None:
        """Add the probabilities of some segments; each segment is added once. An error leaves the ranker unchanged.

        Args:
            segment_positions: Positions in `segments`, integers (n,).
            probabilities: From 0 to 1, (n, C); compared as float32.

        Raises:
            Yt8mError: A probability is not a number from 0 to 1, or a segment was added before.
            ValueError: The shapes do not fit, or a position is out of range.
        """
        self._check_not_finished()
        positions, values = np.asarray(segment_positions), np.asarray(probabilities, np.float32)
        self._check(positions, values)
        self._seen[positions] = True
        done = 0
        while done < len(positions):
            start = self._block_rows
            # A few rows at a time, so that the transposition stays in the CPU's cache.
            num_rows = min(len(positions) - done, self._block.shape[1] - start, _ROWS_PER_COPY)
            rows = slice(done, done + num_rows)
            self._block_positions[start : start + num_rows] = positions[rows]
            # The absolute value, because the bits of -0.0 would rank it above 1.
            np.abs(values[rows].T, out=self._block[:, start : start + num_rows])
            self._block_rows += num_rows
            done += num_rows
            if self._block_rows == self._block.shape[1]:
                self._flush_block()

    def save(self, file: BinaryIO) -> None:
        """Write the state to a file, for `load`."""
        self._check_not_finished()
        self._flush_block()
        start = file.tell()
        file.write(_HEADER.pack(0, 0))
        shape = np.array([self.num_classes, self.k, len(self.segments)], np.int64)
        arrays: list[NDArray[Any]] = [shape, np.packbits(self._seen), np.array(self._counts, np.int64)]
        arrays += [self._keys[class_index, :count] for class_index, count in enumerate(self._counts)]
        checksum = 0
        for array in arrays:
            content = array.tobytes()
            checksum = google_crc32c.extend(checksum, content)
            file.write(content)
        end = file.tell()
        file.seek(start)
        file.write(_HEADER.pack(end - start - _HEADER.size, checksum))
        file.seek(end)

    def load(self, file: BinaryIO) -> None:
        """Add the state that another ranker of the same segments saved.

        Raises:
            Yt8mError: The file contains something else, or a segment that was added before.
        """
        self._check_not_finished()
        invalid = Yt8mError("The partial ranking is damaged, or of other segments.")
        _verify_checksum(file, invalid)

        def read(dtype: type[np.generic], count: int) -> NDArray[Any]:
            return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)

        if read(np.int64, 3).tolist() != [self.num_classes, self.k, len(self.segments)]:
            raise invalid
        seen = np.unpackbits(read(np.uint8, -(-len(self.segments) // 8)), count=len(self.segments)).astype(np.bool_)
        self._check_distinct(np.flatnonzero(self._seen & seen))
        self._seen |= seen
        for class_index, count in enumerate(read(np.int64, self.num_classes).tolist()):
            self._add(class_index, read(np.uint64, count))

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which segments were added, bool (S,)."""
        return self._seen.copy()

    def result(self) -> Ranking:
        """Sort the top segments. The ranking shares the ranker's memory, so the ranker cannot be used afterwards.

        Raises:
            Yt8mError: Some segments were never added.
        """
        missing = np.flatnonzero(~self._seen)
        if len(missing):
            raise Yt8mError(
                f"{len(missing):,} of {len(self._seen):,} segments have no probabilities "
                f"(the first is {self.segments.name(missing[0])}), so they cannot be ranked."
            )
        self._flush_block()
        self._finished = True
        for class_index in range(self.num_classes):
            self._truncate(class_index)
            self._keys[class_index, : self._counts[class_index]].sort()
        return Ranking(self.segments, tuple(keys[:count] for keys, count in zip(self._keys, self._counts, strict=True)))

    def _check(self, positions: NDArray[np.integer], values: NDArray[np.float32]) -> None:
        if values.shape != (*positions.shape, self.num_classes) or positions.ndim != 1:
            raise ValueError(
                f"expected positions (n,) and probabilities (n, {self.num_classes}), "
                f"found {positions.shape} and {values.shape}."
            )
        if not len(positions):
            return
        if not np.issubdtype(positions.dtype, np.integer):
            raise ValueError(f"expected integers as positions, found {positions.dtype}.")
        if positions.min() < 0 or positions.max() >= len(self.segments):
            raise ValueError(f"a position is outside the {len(self.segments)} segments.")
        if not _are_probabilities(values):
            row, class_index = np.argwhere(~((values >= 0) & (values <= 1)))[0]
            raise _range_error(self.segments, positions[row], class_index, values[row, class_index])
        self._check_distinct(positions[self._seen[positions]])
        self._check_distinct(np.delete(positions, np.unique(positions, return_index=True)[1]))

    def _check_distinct(self, repeated: NDArray[np.integer]) -> None:
        if len(repeated):
            name = self.segments.name(repeated[0])
            raise Yt8mError(f"The segment {name} has probabilities twice; each segment can be ranked only once.")

    def _check_not_finished(self) -> None:
        if self._finished:
            raise ValueError("this ranker has returned its result; make a new one.")

    def _flush_block(self) -> None:
        """Move the candidates of the block to the keys, class by class."""
        num_rows, self._block_rows = self._block_rows, 0
        ranks = self.segments.ranks[self._block_positions[:num_rows]].astype(np.uint64)
        for class_index, column in enumerate(self._block[:, :num_rows]):  # (num_rows,)
            chosen = np.flatnonzero(column >= self._worst_probabilities[class_index])
            if len(chosen):
                self._add(class_index, _keys_of(~column[chosen].view(np.uint32), ranks[chosen]))

    def _add(self, class_index: int, keys: NDArray[np.uint64]) -> None:
        """Add the keys that precede the K-th known so far."""
        while len(keys):
            keys = keys[keys < self._worst_keys[class_index]]
            start = self._counts[class_index]
            free = self._keys[class_index, start : start + len(keys)]
            free[:] = keys[: len(free)]
            self._counts[class_index] += len(free)
            keys = keys[len(free) :]
            if len(keys):
                self._truncate(class_index)

    def _truncate(self, class_index: int) -> None:
        """Truncate a class to its top K keys; later keys must precede the K-th."""
        if self._counts[class_index] <= self.k:
            return
        keys = self._keys[class_index, : self._counts[class_index]]
        keys.partition(self.k - 1)
        self._counts[class_index] = self.k
        worst = keys[self.k - 1 : self.k]
        self._worst_keys[class_index : class_index + 1] = worst
        self._worst_probabilities[class_index : class_index + 1] = _probabilities_of(worst)


def _verify_checksum(file: BinaryIO, error: Yt8mError) -> None:
    """Compare a saved ranker with the checksum in its header; leaves the file after the header."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise error
    remaining, expected = _HEADER.unpack(header)
    start, checksum = file.tell(), 0
    while remaining and (content := file.read(min(remaining, 1 << 24))):
        checksum = google_crc32c.extend(checksum, content)
        remaining -= len(content)
    if remaining or checksum != expected:
        raise error
    file.seek(start)


def top_of_class(
    segments: Segments, probabilities: NDArray[np.float32], k: int, class_index: int
) -> NDArray[np.uint64]:
    """Sorted keys of the top K segments of a class, equal to those of `TopK`, from the probabilities of all segments.

    Args:
        segments: The segments.
        probabilities: From 0 to 1, float32 (S,).
        k: Segments to keep.
        class_index: The class, for messages.

    Raises:
        Yt8mError: A probability is not a number from 0 to 1.
    """
    if not _are_probabilities(probabilities):
        position = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))[0]
        raise _range_error(segments, position, class_index, probabilities[position])
    bits = ~np.abs(probabilities).view(np.uint32)
    if k < len(bits):
        # The K-th smallest upper half excludes most segments before any key is made.
        worst = np.partition(bits, k - 1)[k - 1]
        chosen = np.flatnonzero(bits <= worst)
        keys = _keys_of(bits[chosen], segments.ranks[chosen])
        if len(keys) > k:
            keys.partition(k - 1)
            keys = keys[:k]
    else:
        keys = _keys_of(bits, segments.ranks)
    keys.sort()
    return keys


def _are_probabilities(values: NDArray[np.float32]) -> bool:
    # A minimum or maximum with NaN is NaN, and fails the comparison.
    return not values.size or bool(values.min() >= 0 and values.max() <= 1)


def _range_error(segments: Segments, position: np.integer, class_index: int, value: np.float32) -> Yt8mError:
    return Yt8mError(
        f"The probability of segment {segments.name(position)} for class position {class_index} is {value}; "
        "expected a number from 0 to 1."
    )


def _keys_of(bits: NDArray[np.uint32], ranks: NDArray[np.unsignedinteger]) -> NDArray[np.uint64]:
    """Keys of inverted bits of probabilities and ranks of segments."""
    keys: NDArray[np.uint64] = (bits.astype(np.uint64) << np.uint64(32)) | ranks
    return keys


def _probabilities_of(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    return (~(keys >> np.uint64(32)).astype(np.uint32)).view(np.float32)
