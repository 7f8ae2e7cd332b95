"""Moments equal those of a plain loop over videos and times."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from yt8m.prediction.segments import ListedSegments
from yt8m.search.moments import Moment, SearchResult, find_moments

VIDEOS = ("a", "b", "c")


def listed(rows: list[tuple[str, int, float]]) -> ListedSegments:
    return ListedSegments(
        VIDEOS,
        np.array([VIDEOS.index(video) for video, _, _ in rows], np.int32),
        np.array([start for _, start, _ in rows], np.int32),
        np.array([probability for _, _, probability in rows], np.float32),
    )


def find(
    rows: list[tuple[str, int, float]], threshold: float, limit: int = 0, video: str | None = None
) -> SearchResult:
    return find_moments(listed(rows), 11, "Food", threshold, limit, video)


ROWS = [
    ("a", 60, 0.9375),
    ("b", 30, 0.875),
    ("a", 55, 0.75),
    ("b", 40, 0.75),
    ("a", 70, 0.625),
    ("c", 30, 0.625),
    ("a", 65, 0.5),
    ("b", 35, 0.25),
]


def test_neighbouring_segments_are_one_moment() -> None:
    found = find(ROWS, 0.5)
    assert found.moments == [
        Moment("a", 55, 75, 0.9375, 4),
        Moment("b", 30, 35, 0.875, 1),
        Moment("b", 40, 45, 0.75, 1),
        Moment("c", 30, 35, 0.625, 1),
    ]
    assert (found.label_id, found.name, found.num_moments, found.num_videos, found.highest) == (
        11,
        "Food",
        4,
        3,
        0.9375,
    )
    assert found.moments[0].time == "0:55-1:15"


def test_threshold_limit_and_video_choose_moments() -> None:
    assert [(m.video_id, m.start, m.end) for m in find(ROWS, 0.25).moments] == [
        ("a", 55, 75),
        ("b", 30, 45),
        ("c", 30, 35),
    ]
    limited = find(ROWS, 0.5, limit=2)
    assert [m.probability for m in limited.moments] == [0.9375, 0.875]
    assert (limited.num_moments, limited.num_videos) == (4, 3)
    of_video = find(ROWS, 0.5, video="b")
    assert [(m.start, m.num_segments) for m in of_video.moments] == [(30, 1), (40, 1)]
    assert (of_video.num_moments, of_video.num_videos, of_video.highest) == (2, 1, 0.875)
    nothing = find(ROWS, 0.95, video="c")
    assert (nothing.moments, nothing.num_moments, nothing.num_videos, nothing.highest) == ([], 0, 0, 0.625)
    assert find(ROWS, 0.5, video="unknown").highest is None
    assert find([], 0.5).highest is None


def test_a_threshold_that_is_not_a_binary_fraction_includes_equal_probabilities() -> None:
    assert find([("a", 30, 0.9)], 0.9).num_moments == 1


def test_moments_of_equal_probability_are_in_the_order_of_the_list() -> None:
    rows = [("c", 30, 0.5), ("a", 90, 0.5), ("b", 30, 0.5)]
    assert [moment.video_id for moment in find(rows, 0.5).moments] == ["c", "a", "b"]


def plain_moments(rows: list[tuple[str, int, float]], threshold: float) -> set[Moment]:
    """Moments by walking along each video."""
    of_segment = {(video, start): probability for video, start, probability in rows if probability >= threshold}
    found = set()
    for video, start in of_segment:
        if (video, start - 5) in of_segment:
            continue
        end, values = start, []
        while (video, end) in of_segment:
            values.append(of_segment[video, end])
            end += 5
        found.add(Moment(video, start, end, max(values), len(values)))
    return found


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(VIDEOS), st.integers(0, 12).map(lambda n: 5 * n)),
        st.integers(0, 8).map(lambda n: n / 8),
        max_size=30,
    ),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_moments_equal_those_of_a_loop(of_segment: dict[tuple[str, int], float], threshold: float) -> None:
    rows = [(video, start, probability) for (video, start), probability in of_segment.items()]
    found = find(rows, threshold)
    expected = plain_moments(rows, threshold)
    assert set(found.moments) == expected
    assert len(found.moments) == len(expected) == found.num_moments
    assert found.num_videos == len({moment.video_id for moment in expected})
    assert [m.probability for m in found.moments] == sorted((m.probability for m in expected), reverse=True)
