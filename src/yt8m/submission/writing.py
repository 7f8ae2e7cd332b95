"""Write a ranking as a submission (see `yt8m.submission.format`)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yt8m.files import written_atomically
from yt8m.prediction.segments import Segments
from yt8m.ranking import MAX_SEGMENTS
from yt8m.ranking.topk import Ranking
from yt8m.submission.format import HEADER
from yt8m.vocabulary import Vocabulary


def segment_names(segments: Segments) -> NDArray[np.bytes_]:
    """The bytes `video:start` of every segment, (S,), padded with NULs to the longest."""
    if not len(segments):
        return np.empty(0, "S1")
    video_ids = np.array([video_id.encode() for video_id in segments.video_ids], np.bytes_)
    starts, start_indices = np.unique(segments.start_seconds, return_inverse=True)  # distinct starts, (S,)
    suffixes = np.array([b":%d" % start for start in starts], np.bytes_)
    return np.strings.add(video_ids[segments.rows], suffixes[start_indices])


def ranked_segments(ranking: Ranking, vocabulary: Vocabulary) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (label_id, segments best first) of each class, as `read_submission` does for the written file."""
    names = segment_names(ranking.segments)
    for class_index, label_id in enumerate(label_ids_of(ranking, vocabulary)):
        yield label_id, names[ranking.positions(class_index)].tolist()


def write_submission(path: Path, ranking: Ranking, vocabulary: Vocabulary) -> None:
    """Write a ranking as a submission, one line per class in the vocabulary's row order; the write is atomic.

    Args:
        path: The file to write.
        ranking: One class for each row of the vocabulary, with at most 100,000 segments each.
        vocabulary: The classes.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
        ValueError: The number of classes is not that of the vocabulary, or a class has too many segments.
    """
    label_ids = label_ids_of(ranking, vocabulary)
    if any(len(keys) > MAX_SEGMENTS for keys in ranking.keys):
        raise ValueError(f"a submission lists at most {MAX_SEGMENTS} segments per class.")
    names = segment_names(ranking.segments)
    names = np.strings.add(names, b" ") if len(names) else names
    # As void items, indexing copies complete rows with their NULs, which one `translate` per class removes.
    table = names.view(f"V{names.itemsize}")  # (S,)
    with written_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(HEADER + b"\n")
        for class_index, label_id in enumerate(label_ids):
            listed = table[ranking.positions(class_index)].tobytes().translate(None, b"\0")
            file.write(b"%d," % label_id + listed[:-1] + b"\n")


def label_ids_of(ranking: Ranking, vocabulary: Vocabulary) -> list[int]:
    """Ids of a ranking's classes.

    Raises:
        ValueError: The number of classes is not that of the vocabulary.
    """
    if len(ranking) != len(vocabulary):
        raise ValueError(f"the ranking has {len(ranking)} classes, the vocabulary {len(vocabulary)}.")
    label_ids: list[int] = vocabulary.label_ids.tolist()
    return label_ids
