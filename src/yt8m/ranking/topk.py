"""The best K segments of every class, exactly, while the probabilities of all segments stream by.

A candidate is one unsigned 64-bit key: the inverted bits of its probability above the segment's rank in a
fixed order of ties. A smaller key is better, no two are equal, and a key alone gives back its segment and
probability. So ranking is sorting integers, and the answer does not depend on the order, the batches or the
process the segments came in.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import ArrayLike, NDArray

from yt8m.errors import Yt8mError
from yt8m.prediction.segments import Segments

MAX_SEGMENTS = 100_000
"""Segments that a submission may list for a class, and the K of MAP@K (SPEC: the task)."""
_WORST_KEY = np.uint64(2**64 - 1)
_ROWS_PER_BLOCK = 8192
_ROWS_PER_COPY = 128


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best segments of every class, best first.

    Args:
        segments: What the positions mean.
        keys: A class's sorted keys, uint64 (at most K,), one array a class.
    """

    segments: Segments
    keys: tuple[NDArray[np.uint64], ...]

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, class_index: int) -> NDArray[np.int32]:
        """Positions in `segments` of a class's segments, best first, int32."""
        return self.segments.order[self.keys[class_index].astype(np.uint32)]

    def probabilities(self, class_index: int) -> NDArray[np.float32]:
        """Probabilities of a class's segments, in the order of `positions`, float32."""
        return _probabilities_of(self.keys[class_index])


class TopK:
    """Keeps the K best segments of every class; exact, with ties broken as `Segments.order` says.

    A class has room for K keys and a quarter more. When that is full it is cut back to the best K, and from
    then on most probabilities fail one comparison with the K-th best and cost nothing else. Memory is 8 bytes
    for each place, about 1 GB for 1,000 classes and K = 100,000, whatever the number of segments.

    Args:
        num_classes: Classes C.
        k: Segments to keep for each class.
        segments: All segments that will come.
    """

    def __init__(self, num_classes: int, k: int, segments: Segments) -> None:
        if num_classes < 1 or k < 1:
            raise ValueError(f"expected at least one class and k of at least 1, found {num_classes} and {k}.")
        self.k = k
        self.segments = segments
        rows_per_block = min(_ROWS_PER_BLOCK, len(segments))
        room = min(k + max(k // 4, rows_per_block), len(segments))
        self._keys = np.empty((num_classes, room), np.uint64)
        self._counts = [0] * num_classes
        self._worst_keys = np.full(num_classes, _WORST_KEY)
        self._worst_probabilities = np.zeros(num_classes, np.float32)
        self._seen = np.zeros(len(segments), np.bool_)
        self._block = np.empty((num_classes, rows_per_block), np.float32)
        self._block_positions = np.empty(rows_per_block, np.int64)
        self._num_waiting = 0
        self._finished = False

    @property
    def num_classes(self) -> int:
        """Classes C."""
        return len(self._keys)

    def update(self, segment_positions: ArrayLike, probabilities: ArrayLike) -> None:
        """Take the probabilities of some segments.

        Args:
            segment_positions: Positions in `segments`, integers (n,), each given once in the life of the
                ranker.
            probabilities: From 0 to 1, (n, C); compared as float32.

        Raises:
            Yt8mError: A probability is not a number from 0 to 1, or a segment was given before. Nothing was
                taken.
            ValueError: The shapes do not fit, or a position is not one of `segments`.
        """
        self._refuse_if_finished()
        positions, values = np.asarray(segment_positions), np.asarray(probabilities, np.float32)
        self._check(positions, values)
        self._seen[positions] = True
        taken = 0
        while taken < len(positions):
            start = self._num_waiting
            # A few rows at a time, or the transposition falls out of the processor's cache.
            num_rows = min(len(positions) - taken, self._block.shape[1] - start, _ROWS_PER_COPY)
            rows = slice(taken, taken + num_rows)
            self._block_positions[start : start + num_rows] = positions[rows]
            # The absolute value, for the bits of -0.0 would rank it above 1.
            np.abs(values[rows].T, out=self._block[:, start : start + num_rows])
            self._num_waiting += num_rows
            taken += num_rows
            if self._num_waiting == self._block.shape[1]:
                self._take_block()

    def merge(self, other: TopK) -> None:
        """Take what another ranker of the same segments kept, as if its updates had been made here.

        Args:
            other: A ranker of other segments of the same `segments`, with the same classes and K.

        Raises:
            Yt8mError: A segment was given to both.
            ValueError: The other one ranks other segments or classes, or has another K.
        """
        self._refuse_if_finished()
        other._refuse_if_finished()
        same_shape = (self.num_classes, self.k) == (other.num_classes, other.k)
        if not (same_shape and self.segments.same_as(other.segments)):
            raise ValueError("only rankers of the same segments, classes and k can be merged.")
        twice = np.flatnonzero(self._seen & other._seen)
        if len(twice):
            raise Yt8mError(self._given_twice(twice[0]))
        self._seen |= other._seen
        other._take_block()
        for class_index, count in enumerate(other._counts):
            self._keep(class_index, other._keys[class_index, :count])

    def save(self, file: BinaryIO) -> None:
        """Write what was taken so far, for `load`: what a ranking that was interrupted goes on from."""
        self._refuse_if_finished()
        self._take_block()
        start = file.tell()
        file.write(_SAVED.pack(0, 0))
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
        file.write(_SAVED.pack(end - start - _SAVED.size, checksum))
        file.seek(end)

    def load(self, file: BinaryIO) -> None:
        """Take what another ranker of the same segments had saved, as if its updates had been made here.

        Raises:
            Yt8mError: The file holds something else, or a segment that was given already.
        """
        self._refuse_if_finished()
        wrong = Yt8mError("What was kept of a ranking is damaged, or is one of other segments.")

        def taken(dtype: type[np.generic], count: int) -> NDArray[Any]:
            content = file.read(count * np.dtype(dtype).itemsize)
            return np.frombuffer(content, dtype)

        _check_saved(file, wrong)
        if taken(np.int64, 3).tolist() != [self.num_classes, self.k, len(self.segments)]:
            raise wrong
        seen = np.unpackbits(taken(np.uint8, -(-len(self.segments) // 8)), count=len(self.segments)).astype(np.bool_)
        twice = np.flatnonzero(self._seen & seen)
        if len(twice):
            raise Yt8mError(self._given_twice(twice[0]))
        self._seen |= seen
        for class_index, count in enumerate(taken(np.int64, self.num_classes).tolist()):
            self._keep(class_index, taken(np.uint64, count))

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which segments were given, bool (S,)."""
        return self._seen.copy()

    def result(self, *, allow_missing: bool = False) -> Ranking:
        """Finish: sort what was kept. The ranking lives in the ranker's memory, so no update may follow.

        Args:
            allow_missing: Accept that some segments never came; they are in no class's list.

        Raises:
            Yt8mError: Some segments never came.
        """
        missing = np.flatnonzero(~self._seen)
        if len(missing) and not allow_missing:
            raise Yt8mError(
                f"{len(missing):,} of {len(self._seen):,} segments were given no probabilities "
                f"(the first is {self.segments.name(missing[0])}), so they cannot be ranked."
            )
        self._take_block()
        self._finished = True
        for class_index in range(self.num_classes):
            self._cut(class_index)
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
            raise ValueError(f"expected whole numbers as positions, found {positions.dtype}.")
        if positions.min() < 0 or positions.max() >= len(self.segments):
            raise ValueError(f"a position is outside the {len(self.segments)} segments.")
        if not (values.min() >= 0 and values.max() <= 1):
            row, class_index = np.argwhere(~((values >= 0) & (values <= 1)))[0]
            raise Yt8mError(
                f"The probability of segment {self.segments.name(positions[row])} for class position "
                f"{class_index} is {values[row, class_index]}; expected a number from 0 to 1."
            )
        before = np.flatnonzero(self._seen[positions])
        if len(before):
            raise Yt8mError(self._given_twice(positions[before[0]]))
        unique, first = np.unique(positions, return_index=True)
        if len(unique) != len(positions):
            raise Yt8mError(self._given_twice(np.delete(positions, first)[0]))

    def _given_twice(self, position: np.integer) -> str:
        name = self.segments.name(position)
        return f"The segment {name} was given probabilities twice; each can be ranked only once."

    def _refuse_if_finished(self) -> None:
        if self._finished:
            raise ValueError("this ranker has given its result: make a new one.")

    def _take_block(self) -> None:
        """Move what may be among the best from the waiting block to the keys, class by class."""
        num_rows, self._num_waiting = self._num_waiting, 0
        ranks = self.segments.ranks[self._block_positions[:num_rows]].astype(np.uint64)
        for class_index, column in enumerate(self._block[:, :num_rows]):
            chosen = np.flatnonzero(column >= self._worst_probabilities[class_index])
            if len(chosen):
                bits = ~column[chosen].view(np.uint32)
                keys = (bits.astype(np.uint64) << np.uint64(32)) | ranks[chosen]
                self._keep(class_index, keys)

    def _keep(self, class_index: int, keys: NDArray[np.uint64]) -> None:
        """Store the keys that are better than the K-th best known so far."""
        while len(keys):
            keys = keys[keys < self._worst_keys[class_index]]
            start = self._counts[class_index]
            stored = self._keys[class_index, start : start + len(keys)]
            stored[:] = keys[: len(stored)]
            self._counts[class_index] += len(stored)
            keys = keys[len(stored) :]
            if len(keys):
                self._cut(class_index)

    def _cut(self, class_index: int) -> None:
        """Cut a class back to its best K keys; the K-th is then the one to beat."""
        if self._counts[class_index] <= self.k:
            return
        keys = self._keys[class_index, : self._counts[class_index]]
        keys.partition(self.k - 1)
        self._counts[class_index] = self.k
        worst = keys[self.k - 1 : self.k]
        self._worst_keys[class_index : class_index + 1] = worst
        self._worst_probabilities[class_index : class_index + 1] = _probabilities_of(worst)


_SAVED = struct.Struct("<QI")
"""Before what `TopK.save` writes: its bytes, and their CRC32C."""


def _check_saved(file: BinaryIO, wrong: Yt8mError) -> None:
    """Compare what follows with its checksum, and go back to where it begins."""
    header = file.read(_SAVED.size)
    if len(header) < _SAVED.size:
        raise wrong
    size, expected = _SAVED.unpack(header)
    start, checksum = file.tell(), 0
    remaining = size
    while remaining and (content := file.read(min(remaining, 1 << 24))):
        checksum = google_crc32c.extend(checksum, content)
        remaining -= len(content)
    if remaining or checksum != expected:
        raise wrong
    file.seek(start)


def best_of_class(
    segments: Segments, probabilities: NDArray[np.float32], k: int, where: str = ""
) -> NDArray[np.uint64]:
    """The sorted keys of a class's best K segments, from its probabilities for all of them: what `TopK` comes to.

    Args:
        segments: The segments.
        probabilities: From 0 to 1, float32 (S,).
        k: Segments to keep.
        where: Which class, for an error.

    Raises:
        Yt8mError: A probability is not a number from 0 to 1.
    """
    if not (len(probabilities) == 0 or (probabilities.min() >= 0 and probabilities.max() <= 1)):
        position = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))[0]
        raise Yt8mError(
            f"The probability of segment {segments.name(position)}{where} is {probabilities[position]}; "
            "expected a number from 0 to 1."
        )
    bits = ~np.abs(probabilities).view(np.uint32)
    keys: NDArray[np.uint64]
    if k < len(bits):
        # The K-th smallest of the upper halves rules out most segments before any key is made.
        worst = np.partition(bits, k - 1)[k - 1]
        chosen = np.flatnonzero(bits <= worst)
        keys = (bits[chosen].astype(np.uint64) << np.uint64(32)) | segments.ranks[chosen]
        if len(keys) > k:
            keys.partition(k - 1)
            keys = keys[:k]
    else:
        keys = (bits.astype(np.uint64) << np.uint64(32)) | segments.ranks
    keys.sort()
    return keys


def _probabilities_of(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    return (~(keys >> np.uint64(32)).astype(np.uint32)).view(np.float32)
