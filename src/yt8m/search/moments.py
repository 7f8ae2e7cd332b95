"""Moments: neighbouring segments of a video that are probable enough, as one span of time."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from yt8m.locate.timeline import clock
from yt8m.prediction.segments import ListedSegments
from yt8m.ranking import value_name
from yt8m.shards.ids import SEGMENT_SECONDS


@dataclass(frozen=True)
class Moment:
    """A span of time in a video at which a concept appears.

    Args:
        video_id: The video.
        start: Its start in seconds.
        end: Its end in seconds.
        probability: The highest probability of its segments, or the highest score.
        num_segments: Number of its segments.
    """

    video_id: str
    start: int
    end: int
    probability: float
    num_segments: int

    @property
    def time(self) -> str:
        """The span as 1:05-1:20."""
        return f"{clock(self.start)}-{clock(self.end)}"


@dataclass(frozen=True)
class SearchResult:
    """The moments of a concept.

    Args:
        label_id: Dataset id of the class.
        name: Its name.
        moments: The best moments, the most probable first.
        num_moments: Number of all moments.
        num_videos: Number of videos that they are in.
        highest: The highest probability of any segment searched; None where there is no segment.
        is_calibrated: Whether the probabilities are calibrated; otherwise they are called scores.
    """

    label_id: int
    name: str
    moments: list[Moment]
    num_moments: int
    num_videos: int
    highest: float | None
    is_calibrated: bool

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON, times in seconds, probabilities (or scores) rounded to 4 digits."""
        return {
            "label_id": self.label_id,
            "name": self.name,
            "num_moments": self.num_moments,
            "num_videos": self.num_videos,
            "moments": [
                {
                    "video_id": moment.video_id,
                    "start": moment.start,
                    "end": moment.end,
                    value_name(self.is_calibrated): round(moment.probability, 4),
                    "num_segments": moment.num_segments,
                }
                for moment in self.moments
            ],
        }


def find_moments(
    segments: ListedSegments,
    label_id: int,
    name: str,
    threshold: float,
    limit: int,
    video_id: str | None = None,
    is_calibrated: bool = False,
) -> SearchResult:
    """Merge neighbouring segments of at least some probability into moments, the most probable first.

    Args:
        segments: The segments of a concept, without repeats. Of moments with equal probabilities, the one with the
            first of these segments comes first.
        label_id: Dataset id of the concept.
        name: Its name.
        threshold: Lowest probability of a segment.
        limit: Most moments to list; 0 for all.
        video_id: Only moments of this video.
        is_calibrated: Whether the probabilities are calibrated.
    """
    rows, starts, probabilities = segments.rows, segments.start_seconds, segments.probabilities
    searched = np.ones(len(segments), np.bool_)
    if video_id is not None:
        of_video = [row for row, known in enumerate(segments.video_ids) if known == video_id]
        searched = np.isin(rows, of_video)
    highest = float(probabilities[searched].max()) if searched.any() else None
    chosen = np.flatnonzero(searched & (probabilities >= np.float32(threshold)))  # (n,)
    if not len(chosen):
        return SearchResult(label_id, name, [], 0, 0, highest, is_calibrated)
    chosen = chosen[np.lexsort((starts[chosen], rows[chosen]))]
    continues = (np.diff(rows[chosen]) == 0) & (np.diff(starts[chosen]) == SEGMENT_SECONDS)  # (n - 1,)
    first = np.flatnonzero(np.concatenate([[True], ~continues]))  # (m,) first segment of each moment
    last = np.append(first[1:], len(chosen)) - 1
    peaks = np.maximum.reduceat(probabilities[chosen], first)
    order = np.lexsort((np.minimum.reduceat(chosen, first), -peaks))
    moments = [
        Moment(
            segments.video_ids[rows[chosen[first[m]]]],
            int(starts[chosen[first[m]]]),
            int(starts[chosen[last[m]]]) + SEGMENT_SECONDS,
            float(peaks[m]),
            int(last[m] - first[m] + 1),
        )
        for m in (order[:limit] if limit else order).tolist()
    ]
    num_videos = int(np.count_nonzero(np.diff(rows[chosen]))) + 1
    return SearchResult(label_id, name, moments, len(first), num_videos, highest, is_calibrated)
