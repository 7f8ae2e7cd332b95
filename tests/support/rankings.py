"""Vocabularies, segments, rankings of random probabilities, and rankings by a full sort."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from yt8m.prediction.segments import Segments
from yt8m.ranking.topk import Ranking, TopK
from yt8m.vocabulary import Vocabulary


def make_vocabulary(*label_ids: int) -> Vocabulary:
    """A vocabulary of these ids."""
    return Vocabulary(np.array(label_ids, np.int64), tuple(f"name {label_id}" for label_id in label_ids))


def make_segments(video_ids: Sequence[str], per_video: int, first_start: int = 0) -> Segments:
    """Consecutive segments of videos."""
    rows = np.repeat(np.arange(len(video_ids), dtype=np.int32), per_video)
    starts = np.arange(first_start, first_start + 5 * per_video, 5, dtype=np.int32)
    return Segments(list(video_ids), rows, np.tile(starts, len(video_ids)))


def make_ranking(segments: Segments, num_classes: int, k: int) -> tuple[Ranking, NDArray[np.float32]]:
    """A ranking of random probabilities, and the probabilities, (S, C)."""
    ranker = TopK(num_classes, k, segments)
    probabilities = np.random.default_rng(0).random((len(segments), num_classes), np.float32)
    ranker.update(np.arange(len(segments)), probabilities)
    return ranker.result(), probabilities


GOLDEN_GAMMA = 0x9E3779B97F4A7C15
ALL_ONES = 2**64 - 1


def splitmix64(state: int) -> int:
    """The next output of the published generator, with Python's integers."""
    state = (state + GOLDEN_GAMMA) & ALL_ONES
    value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ALL_ONES
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & ALL_ONES
    return value ^ (value >> 31)


def slow_hash(video_id: str, start: int) -> int:
    """Hash of a segment, which breaks ties."""
    of_video = int.from_bytes(hashlib.blake2b(video_id.encode("utf-8"), digest_size=8).digest(), "little")
    return splitmix64((of_video + start * GOLDEN_GAMMA) & ALL_ONES)


def slow_ranking(segments: Segments, probabilities: NDArray[np.floating], k: int) -> list[list[int]]:
    """Positions of each class by (probability, hash, id, start), with Python's sort; probabilities are (S, C)."""
    candidates = []
    for position in range(len(segments)):
        video_id, start = segments.video_ids[segments.rows[position]], int(segments.start_seconds[position])
        candidates.append((slow_hash(video_id, start), video_id, start, position))
    return [
        [c[3] for c in sorted(candidates, key=lambda c, column=column: (-float(column[c[3]]), *c))][:k]  # type: ignore[misc]
        for column in probabilities.T
    ]
