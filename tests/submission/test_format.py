"""Read submissions: the message of each kind of invalid file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.rankings import make_vocabulary
from yt8m.errors import UsageError, Yt8mError
from yt8m.submission.format import read_submission

HEADER = b"Class,Segments\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"line 1: expected the header 'Class,Segments', found ''"),
        (b"3,ab:5\n", r"line 1: expected the header .* found '3,ab:5'"),
        (b"\xff" * 5000, r"line 1: expected the header .* found '\ufffd{40}\.\.\."),
        (HEADER, r"contains no class; expected one line per class below the header"),
        (
            HEADER + b"3,ab:5\n4,ab:5\n3,cd:5\n",
            r"line 4: class 3 occurs a second time, after line 2; expected one line per class",
        ),
        (HEADER + b"3,ab:5\n12,ab:5\n", r"line 3: 12 is not a class of the vocabulary"),
        (
            HEADER + b"3,ab:5\n\n4,ab:5 cd:10 ab:5\n",
            r"line 4: segment 3 of class 4 is 'ab:5'; the class lists it more than once",
        ),
        (HEADER + b"ab:5 cd:5\n", r"line 2: expected a class id, a comma and segments, found 'ab:5 cd:5'"),
        (HEADER + b"-3,ab:5\n", r"line 2: expected a class id"),
        (HEADER + "٣,ab:5\n".encode(), r"line 2: expected a class id"),
        (HEADER + b"9" * 5000 + b",ab:5\n", r"line 2: expected a class id"),
        (HEADER + b"3,ab:5 cd\n", r"line 2: segment 2 of class 3 is 'cd'; expected 'video:start'"),
        (HEADER + b"3,ab:5 cd:7\n", r"segment 2 of class 3 is 'cd:7'; expected a start that is a multiple of 5"),
        (HEADER + b"3,ab:-5\n", r"segment 1 of class 3 is 'ab:-5'"),
        (HEADER + b"3,ab:5.0\n", r"segment 1 of class 3 is 'ab:5.0'"),
        (HEADER + b"3,ab:05\n", r"segment 1 of class 3 is 'ab:05'"),
        (HEADER + b"3,ab:\n", r"segment 1 of class 3 is 'ab:'"),
        (HEADER + b"3,:5\n", r"segment 1 of class 3 is ':5'"),
        (HEADER + b"3,a:b:5\n", r"segment 1 of class 3 is 'a:b:5'"),
        (HEADER + b"3,ab:5,cd:5\n", r"segment 1 of class 3 is 'ab:5,cd:5'"),
        (HEADER + b"3,ab:5  cd:5\n", r"segment 2 of class 3 is ''; .*single spaces"),
        (HEADER + b"3,ab:5 \n", r"segment 2 of class 3 is ''"),
        (HEADER + b"3,ab:5 " + b"x" * 100 + b"\n", r"segment 2 of class 3 is 'x{40}\.\.\.'"),
        (HEADER + b"3,ab:5 c\xff:10\n", r"line 2: byte 8 of the line is not UTF-8"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    with pytest.raises(Yt8mError, match=rf"^{path}.*{sentence}"):
        list(read_submission(path, make_vocabulary(3, 4)))


def test_a_class_may_list_100_000_segments_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    listed = [f"v{row}:{5 * place}" for row in range(1000) for place in range(100)]
    path.write_text("Class,Segments\n3," + " ".join(listed) + "\n")
    ((_, read),) = read_submission(path)
    assert [segment.decode() for segment in read] == listed
    path.write_text("Class,Segments\n3," + " ".join([*listed, "more:0"]) + "\n")
    with pytest.raises(Yt8mError, match=r"line 2: class 3 lists 100,001 segments; at most 100,000"):
        list(read_submission(path))


def test_any_line_ends_are_read_and_any_class_without_a_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(b"Class,Segments\r\n99,a:0 a:5 a:10 a:15 a:100 a:3605\r\n\r\n7,a:0")
    starts = [0, 5, 10, 15, 100, 3605]
    assert list(read_submission(path)) == [(99, [b"a:%d" % start for start in starts]), (7, [b"a:0"])]


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        list(read_submission(tmp_path / "nothing.csv"))
    with pytest.raises(UsageError, match="cannot be read as a submission"):
        list(read_submission(tmp_path))
