"""Submissions in archives, and files that would take too much time or memory."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds, yt8m
from yt8m.errors import Yt8mError
from yt8m.submission import check, opening
from yt8m.submission import format as submission_format
from yt8m.submission.check import check_submission
from yt8m.submission.format import ProblemKind, read_submission

HEADER = b"Class,Segments\n"
SUBMISSION = HEADER + b"3,ab:30 cd:35\n4,\n" + b"5," + b" ".join(b"v%d:5" % row for row in range(50_000)) + b"\n"


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def in_members(content: bytes, size: int) -> bytes:
    return b"".join(gzip.compress(content[start : start + size]) for start in range(0, len(content), size))


ARCHIVES = {
    "gzip": gzip.compress(SUBMISSION),
    "gzip with a name": b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 100_000 + b"\0" + gzip.compress(SUBMISSION)[10:],
    "gzip members": in_members(SUBMISSION, 10_000) + bytes(100),
    "zip": zipped({"submission.csv": SUBMISSION}),
    "stored zip": zipped({"submission.csv": SUBMISSION}, zipfile.ZIP_STORED),
    "zip of macOS": zipped({"run/": b"", "run/s.csv": SUBMISSION, "__MACOSX/run/._s.csv": b"x", "run/.DS_Store": b"x"}),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_are_read_like_the_file_in_them(tmp_path: Path, kind: str) -> None:
    (tmp_path / "plain").write_bytes(SUBMISSION)
    (tmp_path / "packed").write_bytes(ARCHIVES[kind])
    assert list(read_submission(tmp_path / "packed")) == list(read_submission(tmp_path / "plain"))
    plain, packed = (check_submission(tmp_path / name) for name in ("plain", "packed"))
    assert packed.is_accepted
    assert (packed.num_classes, packed.num_segments) == (plain.num_classes, plain.num_segments) == (3, 50_002)


def test_other_programs_archives_are_read(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(SUBMISSION)
    with (tmp_path / "packed").open("wb") as file:
        subprocess.run(["gzip", "-c", tmp_path / "plain"], stdout=file, check=True)
    assert len(list(read_submission(tmp_path / "packed"))) == 3


def test_gzip_data_is_read_from_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, gzip.compress(HEADER + b"3,ab:30\n"))
    os.close(writer)
    try:
        assert list(read_submission(Path(f"/dev/fd/{reader}"))) == [(3, [b"ab:30"])]
    finally:
        os.close(reader)


def test_commands_read_archives(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("video,label,start,score\nab,3,30,1\n")
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(HEADER + b"3,ab:30\n"))
    (tmp_path / "s.zip").write_bytes(zipped({"s.csv": HEADER + b"3,ab:30\n"}))
    for name in ("s.csv.gz", "s.zip"):
        assert "would be accepted: 1 classes, 1 segments" in succeeds("check", tmp_path / name).out
        assert succeeds("evaluate", tmp_path / name, "--truth", tmp_path / "truth.csv").out.startswith("1.000000")


def encrypted() -> bytes:
    content = bytearray(zipped({"s.csv": SUBMISSION}))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def broken(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut gzip": (lambda: ARCHIVES["gzip"][:-9], "is a damaged, incomplete or encrypted archive (its end is missing)"),
    "damaged gzip": (lambda: broken(ARCHIVES["gzip"], 5000), "is a damaged, incomplete or encrypted archive ("),
    "wrong checksum": (lambda: broken(ARCHIVES["gzip"], -6), "is a damaged, incomplete or encrypted archive ("),
    "no gzip": (lambda: b"\x1f\x8b\x01\x02\x03", "is a damaged, incomplete or encrypted archive ("),
    "cut zip": (lambda: ARCHIVES["zip"][:-30], "is a damaged, incomplete or encrypted archive ("),
    "damaged zip": (lambda: broken(ARCHIVES["zip"], 5000), "is a damaged, incomplete or encrypted archive ("),
    "encrypted zip": (encrypted, "is a damaged, incomplete or encrypted archive ("),
    "no submission": (lambda: zipped({"run/": b"", "__MACOSX/x": b"x"}), "is an archive of 0 files; expected one"),
    "two submissions": (lambda: zipped({"a.csv": b"", "b.csv": b""}), "is an archive of 2 files; expected one"),
    "many files": (lambda: zipped({f"{number}.csv": b"" for number in range(20_000)}), "it contains too many files"),
    "bzip2 in zip": (
        lambda: zipped({"a.csv": SUBMISSION}, zipfile.ZIP_BZIP2),
        "is a ZIP archive compressed in an unus",
    ),
    "gzip bomb": (lambda: gzip.compress(bytes(40_000_000)), "unpacks to more than 20,"),
    "zip bomb": (lambda: zipped({"s.csv": HEADER + b"\n" * 40_000_000}), "unpacks to more than 20,"),
    "empty members": (lambda: gzip.compress(b"") * 100_001, "it has more than 100,000 members"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_archives_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission_format, "MAX_LINES", 100_000_000)
    monkeypatch.setattr(submission_format, "MAX_LINE_BYTES", 100_000_000)
    monkeypatch.setattr(opening, "MAX_LINE_BYTES", 100_000_000)
    make, expected = UNUSABLE[kind]
    path = tmp_path / "packed"
    path.write_bytes(make())
    for read in (check_submission, lambda path: list(read_submission(path))):
        with pytest.raises(Yt8mError) as raised:
            read(path)
        assert str(raised.value).startswith(f"{path}: ")
        assert expected in str(raised.value)
    assert expected in refused(1, "check", path)


def test_an_archive_unpacks_to_no_more_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_UNPACKED_BYTES", len(SUBMISSION) - 1)
    (tmp_path / "s.gz").write_bytes(ARCHIVES["gzip"])
    with pytest.raises(Yt8mError, match=f"more than {len(SUBMISSION) - 1:,} bytes"):
        check_submission(tmp_path / "s.gz")


def test_a_zip_archive_in_a_pipe_is_refused() -> None:
    reader, writer = os.pipe()
    os.write(writer, zipped({"s.csv": HEADER}))
    os.close(writer)
    try:
        assert "is a ZIP archive in a pipe" in refused(2, "check", f"/dev/fd/{reader}")
    finally:
        os.close(reader)


# --- files that would take too much time or memory -------------------------------------------------------------------


@pytest.mark.parametrize("content", [b" " * 2**25, b"\0" * 2**26, b"ab12:0 " * 5_000_000])
@pytest.mark.parametrize("start", [b"", HEADER, HEADER + b"3,"])
def test_parsing_ends_at_a_line_that_is_too_long(tmp_path: Path, start: bytes, content: bytes) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(start + content + b"\n4,ab:30\n")
    found = check_submission(path)
    assert found.problems.pop(ProblemKind.TOO_LONG) == 1
    assert set(found.problems) <= {ProblemKind.HEADER}
    assert found.num_classes == 0
    assert "the line has more than 33,554,432 bytes; at most 100,000 segments are allowed; the rest" in str(
        found.messages
    )


@pytest.mark.parametrize("line", [b"\n", b"%d,\n", b"x\n"])
def test_parsing_ends_after_the_highest_number_of_lines(
    tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission_format, "MAX_LINES", 30)
    path = tmp_path / "s.csv"
    lines = [line % number if b"%" in line else line for number in range(50)]
    path.write_bytes(HEADER + b"".join(lines[:29]))
    assert ProblemKind.TOO_LONG not in check_submission(path).problems
    path.write_bytes(HEADER + b"".join(lines))
    found = check_submission(path)
    assert found.problems[ProblemKind.TOO_LONG] == 1
    if line != b"x\n":
        assert found.messages[0] == (
            f"{path}, line 31: expected one line per class, and no more lines; the rest of the file is not read."
        )
        with pytest.raises(Yt8mError, match="line 31: expected one line per class"):
            list(read_submission(path))


def test_only_the_first_segments_of_a_list_that_is_too_long_are_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER + b"3," + b"ab:30 " * 60_000 + b" " * 90_000 + b"\n4,ab:30\n")
    monkeypatch.setattr(check, "MAX_PROBLEMS", 200_000)
    found = check_submission(path)
    assert (found.num_classes, found.num_segments) == (2, 150_002)
    assert found.messages[0].endswith("line 2: class 3 lists 150,001 segments; at most 100,000 are allowed.")
    expected = {ProblemKind.TOO_MANY: 1, ProblemKind.REPEATED: 59_999, ProblemKind.SPACES: 40_000}
    assert found.problems == expected


def test_a_check_ends_after_the_highest_number_of_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER + b"3," + b" " * 50 + b"\n4,ab:30\n")
    assert check_submission(path).problems == {ProblemKind.SPACES: 51}
    monkeypatch.setattr(check, "MAX_PROBLEMS", 40)
    found = check_submission(path)
    assert found.problems == {ProblemKind.SPACES: 40}
    assert found.not_checked[0] == "the rest of the file, after 40 problems"
    assert "not checked: the rest of the file, after 40 problems." in yt8m("check", path).out


def test_zlib_streams_of_one_byte_at_a_time_are_unpacked(tmp_path: Path) -> None:
    """Blocks without content yield nothing, which is not the end."""
    packer = zlib.compressobj(wbits=31)
    packed = b"".join(packer.compress(HEADER[i : i + 1]) + packer.flush(zlib.Z_FULL_FLUSH) for i in range(len(HEADER)))
    (tmp_path / "s.gz").write_bytes(packed + packer.compress(b"3,ab:30\n") + packer.flush())
    assert list(read_submission(tmp_path / "s.gz")) == [(3, [b"ab:30"])]
