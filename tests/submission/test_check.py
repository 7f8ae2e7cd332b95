"""What is wrong with a submission: each kind of fault named and counted, and accepted just when it can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.tiny_shards import TinyVideo, write_shard
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError, Yt8mError
from yt8m.submission.check import MAX_LISTED, Checked, Kind, check_submission
from yt8m.submission.submission import read_submission
from yt8m.vocabulary import Vocabulary

HEADER = b"Class,Segments\n"
LENGTHS = {"ab": 96, "cd": 45, "SjJ3": 100, "日本": 300, "x": 1}
"""Frames of some videos. Evaluated: ab from 30 to 85, cd at 30 only, SjJ3 to 85, 日本 to 285, x nowhere."""


def make_vocabulary(*label_ids: int) -> Vocabulary:
    return Vocabulary(np.array(label_ids, np.int64), tuple(f"name {label_id}" for label_id in label_ids))


def make_catalog(folder: Path, lengths: dict[str, int]) -> Catalog:
    videos = [TinyVideo(video_id, np.zeros((length, 1152), np.uint8)) for video_id, length in lengths.items()]
    write_shard(folder / "tiny.tfrecord", videos)
    return index_folder(folder)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return make_catalog(tmp_path_factory.mktemp("shards"), LENGTHS)


@pytest.fixture(scope="module")
def catalog_of_long_ids(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Ids of more than 8 bytes, which are not compared as numbers."""
    return make_catalog(
        tmp_path_factory.mktemp("long"), LENGTHS | {"longer-id-1": 60, "longer-id-2": 70, "longer-": 80}
    )


def checked(path: Path, content: bytes, *args: object) -> Checked:
    path.write_bytes(content)
    return check_submission(path, *args)


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"class,segments\n3,ab:30\n", Kind.HEADER, "1: expected the header 'Class,Segments', found 'class,segments'"),
        (b"3,ab:30\n4,ab:30\n", Kind.HEADER, "1: expected the header 'Class,Segments', found '3,ab:30'"),
        (HEADER + b"3;ab:30\n4,ab:30\n", Kind.LINE, "2: expected a class id, a comma and segments, found '3;ab:30'"),
        (HEADER + b"3,ab:30\n\n12,ab:30\n", Kind.CLASS_UNKNOWN, "4: 12 is not a class of the vocabulary; "),
        (HEADER + b"3,ab:30\n3,cd:30\n", Kind.CLASS_REPEATED, "3: class 3 occurs a second time, after line 2"),
        (HEADER + b"3,ab:30  cd:30\n", Kind.SPACES, "2: segment 2 of class 3 is ''; expected single spaces"),
        (HEADER + b"3,ab:30 \n", Kind.SPACES, "2: segment 2 of class 3 is ''; expected single spaces"),
        (HEADER + b"3,ab:30 cd:-5\n", Kind.NEGATIVE, "2: segment 2 of class 3 is 'cd:-5'; expected a start of 0 or"),
        (HEADER + b"3,ab:30 cd:33\n", Kind.OFF_GRID, "2: segment 2 of class 3 is 'cd:33'; expected a start that is a"),
        (HEADER + b"3,ab:30 cd\n", Kind.MALFORMED, "2: segment 2 of class 3 is 'cd'; expected 'video:start'"),
        (HEADER + b"3,ab:030\n", Kind.MALFORMED, "2: segment 1 of class 3 is 'ab:030'; expected 'video:start'"),
        (HEADER + b"3,a:b:5\n", Kind.MALFORMED, "2: segment 1 of class 3 is 'a:b:5'; expected 'video:start'"),
        (HEADER + b"3,ab:30,cd:30\n", Kind.MALFORMED, "2: segment 1 of class 3 is 'ab:30,cd:30'; expected"),
        (HEADER + b"3,ab:30 c\xff:5\n", Kind.ENCODING, "2: byte 9 of the line is not UTF-8 text"),
        (HEADER + b"3,ab:30 cd:30 ab:30\n", Kind.REPEATED, "2: segment 3 of class 3 is 'ab:30', which it lists before"),
        (HEADER + b"3,ab:30 AB:30\n", Kind.VIDEO_UNKNOWN, "2: segment 2 of class 3 is 'AB:30'; there is no such video in"),
        (HEADER + b"3,ab:30 cd:45\n", Kind.BEYOND_END, "2: segment 2 of class 3 is 'cd:45'; the video has 45 seconds."),
        (HEADER + b"3,ab:30 cd:1" + b"0" * 5000, Kind.BEYOND_END, "2: segment 2 of class 3 is 'cd:1000"),
    ],
)  # fmt: skip
def test_each_kind_alone(tmp_path: Path, catalog: Catalog, content: bytes, kind: Kind, sentence: str) -> None:
    path = tmp_path / "submission.csv"
    found = checked(path, content, make_vocabulary(3, 4), catalog)
    if kind is Kind.ENCODING:
        # The broken id is that of no video, either.
        assert found.problems == {kind: 1, Kind.VIDEO_UNKNOWN: 1}
    else:
        assert found.problems == {kind: 1}
        assert len(found.listed) == 1
    assert found.listed[0].startswith(f"{path}, line {sentence}")
    assert found.listed[0].endswith(".")
    assert not found.is_accepted
    assert found.not_looked_at == ()


@pytest.mark.parametrize("content", [b"", b"\n", b"a photo\xff\x00"])
def test_files_that_are_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "submission.csv"
    found = checked(path, content)
    assert found.problems == {Kind.HEADER: 1, Kind.NO_CLASS: 1}
    assert found.listed[1] == f"{path}: holds no class; expected a line a class below the header."


def test_too_many_segments(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    listed = [f"v{row}:{5 * place}" for row in range(1000) for place in range(100)]
    found = checked(path, HEADER + b"3," + " ".join(listed).encode() + b"\n")
    assert (found.is_accepted, found.num_classes, found.num_segments) == (True, 1, 100_000)
    found = checked(path, HEADER + b"3," + " ".join([*listed, "more:0"]).encode() + b"\n")
    assert found.problems == {Kind.TOO_MANY: 1}
    assert found.listed == (f"{path}, line 2: class 3 lists 100,001 segments; at most 100,000 are allowed.",)


def test_a_file_without_header_is_checked_from_its_first_line_on(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    found = checked(path, b"3,ab:30 cd:30\n3,ab:30\n")
    assert found.problems == {Kind.HEADER: 1, Kind.CLASS_REPEATED: 1}
    assert found.listed[1] == f"{path}, line 2: class 3 occurs a second time, after line 1."
    assert (found.num_classes, found.num_segments) == (2, 3)


def test_everything_wrong_is_found_at_once(tmp_path: Path, catalog: Catalog) -> None:
    content = b"Classes\n3,ab:30 ab:30 no:30 cd:33 cd:500\n3,\n77,x:0 x:0 x:0\nnothing\n"
    found = checked(tmp_path / "s.csv", content, make_vocabulary(3, 4, 5), catalog)
    assert found.problems == {
        Kind.HEADER: 1,
        Kind.REPEATED: 3,
        Kind.OFF_GRID: 1,
        Kind.VIDEO_UNKNOWN: 1,
        Kind.BEYOND_END: 1,
        Kind.CLASS_REPEATED: 1,
        Kind.CLASS_UNKNOWN: 1,
        Kind.LINE: 1,
    }
    assert found.num_problems == len(found.listed) == 10
    assert (found.num_classes, found.num_segments) == (3, 8)
    # Numbers are places in the line, of what is looked up after a malformed item, too.
    assert "segment 5 of class 3 is 'cd:500'; the video has 45 seconds" in "\n".join(found.listed)
    assert [remark.split(":")[0] for remark in found.remarks] == [
        "2 of the 3 classes are missing (4, 5)",
        "1 classes list no segment",
        "3 segments are among the first six or last two of their video, which are never rated",
    ]


@pytest.mark.parametrize("item", [b"nowhere:%d", b"ab:%d1", b"ab:-%d"])
def test_the_first_twenty_are_listed_and_all_are_counted(tmp_path: Path, catalog: Catalog, item: bytes) -> None:
    content = HEADER + b"3," + b" ".join(item % start for start in range(5, 5005, 5)) + b"\n4," + item % 10 + b"\n"
    found = checked(tmp_path / "s.csv", content, None, catalog)
    assert found.num_problems == 1001
    assert len(found.problems) == 1
    assert len(found.listed) == MAX_LISTED == 20
    assert all("line 2: segment " in sentence for sentence in found.listed)


def test_what_is_allowed_is_remarked(tmp_path: Path, catalog: Catalog) -> None:
    # cd has 45 frames, 9 segments: the last two start at 35 and 40.
    content = HEADER + b"3,cd:25 cd:30 cd:35 cd:40 ab:30 ab:85 ab:90 \xe6\x97\xa5\xe6\x9c\xac:290 x:0\r\n4,\n"
    found = checked(tmp_path / "s.csv", content, make_vocabulary(3, 4, *range(10, 17)), catalog)
    assert found.is_accepted
    assert [remark.split(":")[0] for remark in found.remarks] == [
        "7 of the 9 classes are missing (10, 11, 12, 13, 14, ...)",
        "1 classes list no segment",
        "6 segments are among the first six or last two of their video, which are never rated",
    ]
    assert found.listed == found.not_looked_at == ()


def test_what_could_not_be_looked_at(tmp_path: Path) -> None:
    found = checked(tmp_path / "s.csv", HEADER + b"3,nowhere:100000\n")
    assert found.is_accepted
    assert ["--shards" in what for what in found.not_looked_at] == [True, False]
    assert ["--vocabulary" in what for what in found.not_looked_at] == [False, True]


def test_progress_ends_where_the_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yt8m.submission.check._BYTES_PER_REPORT", 10)
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER + b"3,a:0\n4,a:0\n5,a:0 b:0\n")
    told: list[tuple[int, int]] = []
    check_submission(path, progress=lambda *given: told.append(given))
    assert told == [(15, 37), (27, 37), (37, 37)]


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        check_submission(tmp_path / "nothing.csv")
    with pytest.raises(UsageError, match="cannot be read as a submission"):
        check_submission(tmp_path)


# ------------------------------------------------------------------------------------------------- against other code

SYNTAX = [b",", b",", b" ", b" ", b"\n", b"\n", b"\r\n", b":", b"\t", b"\x00", b"\xff", b"\xc2\xa0", HEADER]
ITEMS = [b"3", b"4", b"12", b"03", b"-3", b"ab:5", b"ab:10", b"cd:5", b"x:0", b"x:00", b"x:7", b"x:-5", b"\xc3\xa9:5"]
PIECES = st.sampled_from([*SYNTAX, *ITEMS])


@settings(max_examples=1500, deadline=None)
@given(
    header=st.sampled_from([HEADER, HEADER, HEADER, b"", b"Class,Segments\r\n"]), pieces=st.lists(PIECES, max_size=25)
)
@example(header=HEADER, pieces=[b"3", b",", b"ab:5", b" ", b"cd:5", b"\n", b"4", b",", b"ab:5"])
@example(header=HEADER, pieces=[b"3", b",", b"ab:5", b" ", b"ab:5"])
def test_accepted_is_what_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    found = checked(path, header + b"".join(pieces), make_vocabulary(3, 4))
    try:
        read = list(read_submission(path, make_vocabulary(3, 4)))
    except Yt8mError:
        assert not found.is_accepted
        assert found.listed
    else:
        assert found.is_accepted
        assert found.listed == ()
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
def test_looking_up_is_what_a_slow_loop_does(
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
    path = tmp_path_factory.getbasetemp() / "looked_up.csv"
    found = checked(path, HEADER + f"3,{listed}\n".encode(), None, catalog)
    assert found.problems.get(Kind.VIDEO_UNKNOWN, 0) == unknown
    assert found.problems.get(Kind.BEYOND_END, 0) == beyond
    assert found.num_problems == unknown + beyond
    remarked = [remark.split(" ")[0] for remark in found.remarks]
    assert remarked == ([str(never_rated)] if never_rated else [])
