"""The vocabulary of segment classes, and files that are no vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from yt8m.errors import UsageError, printable, reason_of
from yt8m.vocabulary import Vocabulary


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "segment_vocabulary.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_vocabulary_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, start: bytes, end: bytes) -> None:
    lines = [b"Index,Name", b"30,Surfing", '7,"Ski, Alpine — 日本"'.encode()]
    vocabulary = Vocabulary.load(written(tmp_path, start + end.join(lines) + end))
    assert vocabulary.label_ids.tolist() == [30, 7]
    assert vocabulary.names == ("Surfing", "Ski, Alpine — 日本")
    assert vocabulary.class_indices([7, 30, 8, -1, 10**12]).tolist() == [1, 0, -1, -1, -1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Index,Name\n1000000,Surfing\n", "line 2: expected an Index of at most 999,999, found 1000000."),
        ("Index,Name\n3,a\n500000000,b\n", "line 3: expected an Index of at most 999,999, found 500000000."),
        (f"Index,Name\n{'9' * 5000},b\n", f"line 2: expected an Index of at most 999,999, found {'9' * 30}."),
        ("Index,Name\n-1,b\n", "line 2: expected a whole number as Index, found '-1'."),
        ("Index,Name\n3,a\n5,b\n3,c\n", "the class 3 occurs more than once."),
        (f"Index,Name\n3,{'a' * 200_000}\n", "cannot be read as a CSV file (field larger than field limit (131072))."),
        ("Index,Name\n", "expected a header with the columns Index and Name, and one row per class."),
    ],
)
def test_invalid_vocabularies_are_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError) as raised:
        Vocabulary.load(path)
    assert str(raised.value).startswith(str(path))
    assert str(raised.value).endswith(expected)


def test_control_characters_of_names_are_replaced(tmp_path: Path) -> None:
    name = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e\ufffe\x7f"
    vocabulary = Vocabulary.load(written(tmp_path, f'Index,Name\n3,"{name}"\n4,"two\nlines"\n'))
    assert vocabulary.names == ("\ufffd[31mred\ufffd]0;title\ufffd\ufffd2J\ufffd\ufffd\ufffd", "two\ufffdlines")


def test_printable_keeps_text() -> None:
    text = "naïve 日本語 👩\u200d👩\u200d👧 a\u00a0b \u05e9\u05dc\u05d5\u05dd"
    assert printable(text) == text
    assert printable("a\nb\tc\r", kept="\n\t") == "a\nb\tc\ufffd"


def test_an_error_without_words_is_named_by_its_type() -> None:
    assert reason_of(EOFError()) == "EOFError"
    assert reason_of(ValueError("two\n  lines")) == "two lines"
