"""Where to search: the table of a ranking, or a store of probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from yt8m.errors import UsageError
from yt8m.files import write_csv
from yt8m.prediction.segments import ListedSegments
from yt8m.ranking import value_name
from yt8m.search.moments import SearchResult, find_moments
from yt8m.submission.table import TABLE_FILE, RankingTable
from yt8m.vocabulary import Vocabulary


class Source(Protocol):
    """What is searched."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes."""

    @property
    def is_calibrated(self) -> bool:
        """Whether the values of segments are calibrated probabilities."""

    def segments(self, class_index: int) -> ListedSegments:
        """Segments of a class with their probabilities."""


def table_of_run(run: Path) -> RankingTable:
    """The table that a run wrote.

    Raises:
        UsageError: The folder contains none.
    """
    if not (run / TABLE_FILE).is_file():
        what = "it is not finished" if run.is_dir() else "there is no such folder"
        raise UsageError(f"{run}: expected the folder of a run with {TABLE_FILE}; {what}; `yt8m run` makes one.")
    return RankingTable.open(run / TABLE_FILE)


def search(
    source: Source, class_indices: Sequence[int], threshold: float, limit: int, video_id: str | None = None
) -> list[SearchResult]:
    """The best moments of some concepts, one result per concept.

    Args:
        source: Where to search.
        class_indices: The concepts.
        threshold: Lowest probability of a segment.
        limit: Most moments to list of each concept; 0 for all.
        video_id: Only moments of this video.

    Raises:
        Yt8mError: The source is damaged.
    """
    label_ids: list[int] = source.vocabulary.label_ids.tolist()
    return [
        find_moments(
            source.segments(index),
            label_ids[index],
            source.vocabulary.names[index] or str(label_ids[index]),
            threshold,
            limit,
            video_id,
            source.is_calibrated,
        )
        for index in class_indices
    ]


def write_moments(path: Path, results: Sequence[SearchResult]) -> None:
    """Write moments as CSV, one line each: class, name, video, start and end in seconds, probability, segments.

    The column of probabilities is `score` where they are not calibrated.
    """
    value = value_name(all(result.is_calibrated for result in results))
    write_csv(
        path,
        ("class", "name", "video", "start", "end", value, "segments"),
        (
            (r.label_id, r.name, m.video_id, m.start, m.end, round(m.probability, 6), m.num_segments)
            for r in results
            for m in r.moments
        ),
    )
