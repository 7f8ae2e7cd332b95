"""Check submissions: every problem is reported and counted, and a file is accepted exactly if it can be read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.progress import RecordedProgress
from tests.support.rankings import make_vocabulary
from tests.support.tiny_shards import TinyVideo, write_shard
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError, Yt8mError
from yt8m.submission import check
from yt8m.submission.check import MAX_MESSAGES, Checked, check_submission
from yt8m.submission.format import ProblemKind, read_submission

HEADER = b"Class,Segments\n"
LENGTHS = {"ab": 96, "cd": 45, "SjJ3": 100, "日本": 300, "x": 1}
"""Frames of some videos. Evaluated starts: 30 to 85 (ab), 30 (cd), 30 to 85 (SjJ3), 30 to 285 (日本), none (x)."""


def make_catalog(folder: Path, lengths: dict[str, int]) -> Catalog:
    videos = [TinyVideo(video_id, np.zeros((length, 1152), np.uint8)) for video_id, length in lengths.items()]
    write_shard(folder / "tiny.tfrecord", videos)
    return index_folder(folder)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return make_catalog(tmp_path_factory.mktemp("shards"), LENGTHS)


@pytest.fixture(scope="module")
def catalog_of_long_ids(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalog with ids of more than 8 bytes, which are not compared as numbers."""
    return make_catalog(
        tmp_path_factory.mktemp("long"), LENGTHS | {"longer-id-1": 60, "longer-id-2": 70, "longer-": 80}
    )


def checked(path: Path, content: bytes, *args: object) -> Checked:
    path.write_bytes(content)
    return check_submission(path, *args)


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"class,segments\n3,ab:30\n", ProblemKind.HEADER, "1: expected the header 'Class,Segments', found 'class,segments'"),
        (b"3,ab:30\n4,ab:30\n", ProblemKind.HEADER, "1: expected the header 'Class,Segments', found '3,ab:30'"),
        (HEADER + b"3;ab:30\n4,ab:30\n", ProblemKind.LINE, "2: expected a class id, a comma and segments, found '3;ab:30'"),
        (HEADER + b"3,ab:30\n\n12,ab:30\n", ProblemKind.CLASS_UNKNOWN, "4: 12 is not a class of the vocabulary; "),
        (HEADER + b"3,ab:30\n3,cd:30\n", ProblemKind.CLASS_REPEATED, "3: class 3 occurs a second time, after line 2"),
        (HEADER + b"3,ab:30  cd:30\n", ProblemKind.SPACES, "2: segment 2 of class 3 is ''; expected single spaces"),
        (HEADER + b"3,ab:30 \n", ProblemKind.SPACES, "2: segment 2 of class 3 is ''; expected single spaces"),
        (HEADER + b"3,ab:30 cd:-5\n", ProblemKind.NEGATIVE, "2: segment 2 of class 3 is 'cd:-5'; expected a start of 0 or"),
        (HEADER + b"3,ab:30 cd:33\n", ProblemKind.OFF_GRID, "2: segment 2 of class 3 is 'cd:33'; expected a start that is a"),
        (HEADER + b"3,ab:30 cd\n", ProblemKind.MALFORMED, "2: segment 2 of class 3 is 'cd'; expected 'video:start'"),
        (HEADER + b"3,ab:030\n", ProblemKind.MALFORMED, "2: segment 1 of class 3 is 'ab:030'; expected 'video:start'"),
        (HEADER + b"3,a:b:5\n", ProblemKind.MALFORMED, "2: segment 1 of class 3 is 'a:b:5'; expected 'video:start'"),
        (HEADER + b"3,ab:30,cd:30\n", ProblemKind.MALFORMED, "2: segment 1 of class 3 is 'ab:30,cd:30'; expected"),
        (HEADER + b"3,ab:30 c\xff:5\n", ProblemKind.ENCODING, "2: byte 9 of the line is not UTF-8 text"),
        (HEADER + b"3,ab:30 cd:30 ab:30\n", ProblemKind.REPEATED, "2: segment 3 of class 3 is 'ab:30'; the class lists it"),
        (HEADER + b"3,ab:30 AB:30\n", ProblemKind.VIDEO_UNKNOWN, "2: segment 2 of class 3 is 'AB:30'; there is no such video in"),
        (HEADER + b"3,ab:30 cd:45\n", ProblemKind.BEYOND_END, "2: segment 2 of class 3 is 'cd:45'; the video has 45 seconds."),
        (HEADER + b"3,ab:30 cd:1" + b"0" * 5000, ProblemKind.BEYOND_END, "2: segment 2 of class 3 is 'cd:1000"),
    ],
)  # fmt: skip
def test_each_kind_of_problem_is_reported(
    tmp_path: Path, catalog: Catalog, content: bytes, kind: ProblemKind, sentence: str
) -> None:
    path = tmp_path / "submission.csv"
    found = checked(path, content, make_vocabulary(3, 4), catalog)
    if kind is ProblemKind.ENCODING:
        # The invalid id is also an unknown video.
        assert found.problems == {kind: 1, ProblemKind.VIDEO_UNKNOWN: 1}
    else:
        assert found.problems == {kind: 1}
        assert len(found.messages) == 1
    assert found.messages[0].startswith(f"{path}, line {sentence}")
    assert found.messages[0].endswith(".")
    assert not found.is_accepted
    assert found.not_checked == ()


@pytest.mark.parametrize("content", [b"", b"\n", b"a photo\xff\x00"])
def test_other_files_have_no_header_and_no_class(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "submission.csv"
    found = checked(path, content)
    assert found.problems == {ProblemKind.HEADER: 1, ProblemKind.NO_CLASS: 1}
    assert found.messages[1] == f"{path}: contains no class; expected one line per class below the header."


def test_more_than_100_000_segments_per_class_are_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    listed = [f"v{row}:{5 * place}" for row in range(1000) for place in range(100)]
    found = checked(path, HEADER + b"3," + " ".join(listed).encode() + b"\n")
    assert (found.is_accepted, found.num_classes, found.num_segments) == (True, 1, 100_000)
    found = checked(path, HEADER + b"3," + " ".join([*listed, "more:0"]).encode() + b"\n")
    assert found.problems == {ProblemKind.TOO_MANY: 1}
    assert found.messages == (f"{path}, line 2: class 3 lists 100,001 segments; at most 100,000 are allowed.",)


def test_a_file_without_header_is_checked_from_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    found = checked(path, b"3,ab:30 cd:30\n3,ab:30\n")
    assert found.problems == {ProblemKind.HEADER: 1, ProblemKind.CLASS_REPEATED: 1}
    assert (
        found.messages[1] == f"{path}, line 2: class 3 occurs a second time, after line 1; expected one line per class."
    )
    assert (found.num_classes, found.num_segments) == (2, 3)


def test_all_problems_are_reported_at_once(tmp_path: Path, catalog: Catalog) -> None:
    content = b"Classes\n3,ab:30 ab:30 no:30 cd:33 cd:500\n3,\n77,x:0 x:0 x:0\nnothing\n"
    found = checked(tmp_path / "s.csv", content, make_vocabulary(3, 4, 5), catalog)
    assert found.problems == {
        ProblemKind.HEADER: 1,
        ProblemKind.REPEATED: 3,
        ProblemKind.OFF_GRID: 1,
        ProblemKind.VIDEO_UNKNOWN: 1,
        ProblemKind.BEYOND_END: 1,
        ProblemKind.CLASS_REPEATED: 1,
        ProblemKind.CLASS_UNKNOWN: 1,
        ProblemKind.LINE: 1,
    }
    assert found.num_problems == len(found.messages) == 10
    assert (found.num_classes, found.num_segments) == (3, 8)
    # Segments are numbered by their position in the line, also after a malformed item.
    assert "segment 5 of class 3 is 'cd:500'; the video has 45 seconds" in "\n".join(found.messages)
    assert [remark.split(":")[0] for remark in found.remarks] == [
        "the file omits 2 of the 3 classes (4, 5)",
        "1 empty list",
        "3 segments among the first six or last two of a video, which are never rated",
    ]


@pytest.mark.parametrize("item", [b"nowhere:%d", b"ab:%d1", b"ab:-%d"])
def test_the_first_twenty_problems_have_messages_and_all_are_counted(
    tmp_path: Path, catalog: Catalog, item: bytes
) -> None:
    content = HEADER + b"3," + b" ".join(item % start for start in range(5, 5005, 5)) + b"\n4," + item % 10 + b"\n"
    found = checked(tmp_path / "s.csv", content, None, catalog)
    assert found.num_problems == 1001
    assert len(found.problems) == 1
    assert len(found.messages) == MAX_MESSAGES == 20
    assert all("line 2: segment " in sentence for sentence in found.messages)


def test_remarks_list_what_is_valid_but_lowers_the_score(tmp_path: Path, catalog: Catalog) -> None:
    # cd has 45 frames, 9 segments: the last two start at 35 and 40.
    content = HEADER + b"3,cd:25 cd:30 cd:35 cd:40 ab:30 ab:85 ab:90 \xe6\x97\xa5\xe6\x9c\xac:290 x:0\r\n4,\n"
    found = checked(tmp_path / "s.csv", content, make_vocabulary(3, 4, *range(10, 17)), catalog)
    assert found.is_accepted
    assert [remark.split(":")[0] for remark in found.remarks] == [
        "the file omits 7 of the 9 classes (10, 11, 12, 13, 14, ...)",
        "1 empty list",
        "6 segments among the first six or last two of a video, which are never rated",
    ]
    assert found.messages == found.not_checked == ()


def test_checks_that_need_missing_options_are_listed(tmp_path: Path) -> None:
    found = checked(tmp_path / "s.csv", HEADER + b"3,nowhere:100000\n")
    assert found.is_accepted
    assert ["--shards" in what for what in found.not_checked] == [True, False]
    assert ["--vocabulary" in what for what in found.not_checked] == [False, True]


def test_progress_is_reported_in_bytes_to_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "BYTES_PER_REPORT", 10)
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER + b"3,a:0\n4,a:0\n5,a:0 b:0\n")
    progress = RecordedProgress()
    check_submission(path, progress=progress)
    assert progress.reports == {f"check {path}": [(15, 37, ""), (27, 37, ""), (37, 37, "")]}
    assert progress.units == {f"check {path}": "bytes"}


def test_the_result_can_be_written_as_json(tmp_path: Path, catalog: Catalog) -> None:
    found = checked(tmp_path / "s.csv", HEADER + b"3,ab:30 no:5 ab:7 x:0\n", make_vocabulary(3, 4), catalog)
    as_json = json.loads(json.dumps(asdict(found) | {"path": str(found.path)}))
    assert as_json == {
        "path": str(tmp_path / "s.csv"),
        "num_classes": 1,
        "num_segments": 4,
        "problems": {"off_grid": 1, "video_unknown": 1},
        "messages": list(found.messages),
        "remarks": list(found.remarks),
        "not_checked": [],
    }
    assert [kind.description for kind in found.problems] == [
        "segments with a start that is not a multiple of 5 seconds",
        "segments of videos that the shards do not contain",
    ]


def test_messages_use_singular_and_plural(tmp_path: Path, catalog: Catalog) -> None:
    found = checked(tmp_path / "s.csv", HEADER + b"3,ab:0 x:5\n", make_vocabulary(3, 4), catalog)
    assert found.messages[0].endswith("segment 2 of class 3 is 'x:5'; the video has 1 second.")
    assert [remark.split(":")[0] for remark in found.remarks] == [
        "the file omits 1 of the 2 classes (4)",
        "1 segment among the first six or last two of a video, which are never rated",
    ]


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        check_submission(tmp_path / "nothing.csv")
    with pytest.raises(UsageError, match="cannot be read as a submission"):
        check_submission(tmp_path)


SYNTAX = [b",", b",", b" ", b" ", b"\n", b"\n", b"\r\n", b":", b"\t", b"\x00", b"\xff", b"\xc2\xa0", HEADER]
ITEMS = [b"3", b"4", b"12", b"03", b"-3", b"ab:5", b"ab:10", b"cd:5", b"x:0", b"x:00", b"x:7", b"x:-5", b"\xc3\xa9:5"]
PIECES = st.sampled_from([*SYNTAX, *ITEMS])


@settings(max_examples=1500, deadline=None)
@given(
    header=st.sampled_from([HEADER, HEADER, HEADER, b"", b"Class,Segments\r\n"]), pieces=st.lists(PIECES, max_size=25)
)
@example(header=HEADER, pieces=[b"3", b",", b"ab:5", b" ", b"cd:5", b"\n", b"4", b",", b"ab:5"])
@example(header=HEADER, pieces=[b"3", b",", b"ab:5", b" ", b"ab:5"])
def test_a_file_is_accepted_exactly_if_it_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    found = checked(path, header + b"".join(pieces), make_vocabulary(3, 4))
    try:
        read = list(read_submission(path, make_vocabulary(3, 4)))
    except Yt8mError:
        assert not found.is_accepted
        assert found.messages
    else:
        assert found.is_accepted
        assert found.messages == ()
        assert (found.num_classes, found.num_segments) == (len(read), sum(len(segments) for _, segments in read))


IDS = [
    *LENGTHS,
    "a",
    "abc",
    "SjJ",
    "SjJ33",
    "日",
    "longer-id-1",
    "longer-id-2",
    "longer-id-12",
    "longer-",
    "zzzzzzzz",
    "語",
]
STARTS = [0, 5, 25, 30, 35, 40, 45, 60, 65, 85, 90, 95, 100, 285, 290, 295, 300, 1000, 99_995, 10**30]


@settings(max_examples=300, deadline=None)
@given(segments=st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(STARTS)), unique=True, min_size=1))
@pytest.mark.parametrize("name", ["catalog", "catalog_of_long_ids"])
def test_the_lookup_equals_a_plain_loop(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    segments: list[tuple[str, int]],
) -> None:
    catalog: Catalog = request.getfixturevalue(name)
    lengths = {catalog.id_of(row): catalog.num_frames[row].item() for row in range(len(catalog))}
    unknown = beyond = never_rated = 0
    for video_id, start in segments:
        if video_id not in lengths:
            unknown += 1
        elif start >= lengths[video_id]:
            beyond += 1
        else:
            of_video = list(range(0, lengths[video_id], 5))
            never_rated += start in of_video[:6] or start in of_video[-2:]
    listed = " ".join(f"{video_id}:{start}" for video_id, start in segments)
    path = tmp_path_factory.getbasetemp() / "lookup.csv"
    found = checked(path, HEADER + f"3,{listed}\n".encode(), None, catalog)
    assert found.problems.get(ProblemKind.VIDEO_UNKNOWN, 0) == unknown
    assert found.problems.get(ProblemKind.BEYOND_END, 0) == beyond
    assert found.num_problems == unknown + beyond
    remarked = [remark.split(" ")[0] for remark in found.remarks]
    assert remarked == ([str(never_rated)] if never_rated else [])
