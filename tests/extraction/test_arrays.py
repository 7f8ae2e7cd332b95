"""NumPy's files and archives: what is read, and what damaged and hostile files cause."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.extraction_weights import npy, write_tgz
from tests.support.hostile_pickle import HostilePickle
from tests.support.mutations import mutations
from yt8m.errors import UsageError, Yt8mError
from yt8m.extraction import arrays
from yt8m.extraction.arrays import parse_npy, read_npz, read_tgz

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
MAX_BYTES = 2**20


def problem_of(read: Callable[[], object]) -> str:
    """The message of the error of reading a file; empty where there is none."""
    try:
        read()
    except Yt8mError as error:
        return str(error)
    return ""


def with_header(text: str, content: bytes = b"") -> bytes:
    """A .npy file with this header."""
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "values",
    [
        VALUES,
        np.asfortranarray(VALUES),
        VALUES.astype(np.float64),
        VALUES.astype(">f4"),
        VALUES.astype(np.uint8),
        VALUES[:0],
    ],
)
def test_arrays_are_read_as_numpy_reads_them(values: np.ndarray[Any, Any]) -> None:
    found = parse_npy(npy(values), "a.npy")
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is no array of NumPy"),
        (b"<html></html>", "is no array of NumPy"),
        (npy(VALUES)[:-1], "needs 48 bytes, and it has 47"),
        (npy(VALUES) + b"x", "needs 48 bytes, and it has 49"),
        (npy(np.array([1, 2])), "contains int64; expected floating-point numbers or bytes"),
        (npy(np.array([1j])), "contains complex128"),
        (npy(np.array(["text"])), "contains <U4"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"), "needs 4,398,046,511,104"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}", bytes(16)), "is damaged"),
        (with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8)), "pickled objects"),
        (with_header("(" * 5000), "is no array of NumPy"),
        (with_header("[" * 60_000), "is no array of NumPy"),
        (with_header("__import__('os').mkdir('ran')"), "is no array of NumPy"),
    ],
)
def test_other_arrays_are_refused(
    content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Yt8mError) as caught:
        parse_npy(content, "a.npy")
    assert str(caught.value).startswith("a.npy: ")
    assert str(caught.value).endswith(".")
    assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = np.empty(1, object)
    hostile[0] = HostilePickle()
    np.savez("hostile.npz", pca=hostile)
    with pytest.raises(Yt8mError, match="contains pickled objects, which are not read"):
        read_npz(Path("hostile.npz"))
    assert not Path("ran").exists()
    np.load("hostile.npz", allow_pickle=True)["pca"]
    assert Path("ran").is_dir(), "the pickle must be hostile"


def test_damaged_arrays_are_refused_or_read() -> None:
    for content in mutations(npy(VALUES), 400):
        with suppress(Yt8mError):
            parse_npy(content, "a.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_by_name(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", first=VALUES, second=VALUES[0])
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == {"first", "second"}
    np.testing.assert_array_equal(found["first"], VALUES)
    np.testing.assert_array_equal(found["second"], VALUES[0])


def test_damaged_npz_files_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, first=VALUES, second=np.arange(500.0))
        complete = path.read_bytes()
        refused = 0
        for content in mutations(complete, 300):
            path.write_bytes(content)
            problem = problem_of(partial(read_npz, path))
            refused += bool(problem)
            assert not problem or problem.startswith(str(path))
        assert refused > 100


def test_an_archive_that_expands_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(5 * MAX_BYTES))
    with pytest.raises(Yt8mError, match="expands to more than"):
        read_npz(path, MAX_BYTES)
    # The announced size is not believed.
    content = path.read_bytes().replace((5 * MAX_BYTES).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(Yt8mError):
        read_npz(path, MAX_BYTES)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(Yt8mError, match="is an archive of 1,001 files"):
        read_npz(path, MAX_BYTES)


def test_files_are_read_from_a_tar_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    for level in (0, 9):
        write_tgz(path, {"LICENSE": b"text", "./deep/mean.npy": b"mean", "x.npy": b"x"}, level)
        assert read_tgz(path, MAX_BYTES, ("mean.npy", "x.npy")) == {"mean.npy": b"mean", "x.npy": b"x"}
    with pytest.raises(Yt8mError, match=r"a\.tgz: does not contain y\.npy; it is another archive\.$"):
        read_tgz(path, MAX_BYTES, ("x.npy", "y.npy"))
    with pytest.raises(UsageError, match=r"absent\.tgz: cannot be read \(No such file or directory\)\.$"):
        read_tgz(tmp_path / "absent.tgz", MAX_BYTES, ("x.npy",))


def test_damaged_tar_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    generator = np.random.default_rng(0)
    for level in (0, 9):
        write_tgz(path, {"x": generator.bytes(3000), "y": bytes(5000)}, level)
        complete = path.read_bytes()
        expected = read_tgz(path, MAX_BYTES, ("x", "y"))
        refused = 0
        for content in mutations(complete, 300):
            path.write_bytes(content)
            problem = problem_of(partial(read_tgz, path, MAX_BYTES, ("x", "y")))
            refused += bool(problem)
            # Damage of the header, which gzip's checksum does not cover, may leave the content intact.
            assert problem.startswith(str(path)) or read_tgz(path, MAX_BYTES, ("x", "y")) == expected
        assert refused > 250


def test_damaged_tar_headers_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    write_tgz(path, {"x": b"content", "y": bytes(700)})
    complete = gzip.decompress(path.read_bytes())
    for content in mutations(complete, 300):
        path.write_bytes(gzip.compress(content, 1))
        with suppress(Yt8mError):
            read_tgz(path, MAX_BYTES, ("x",))


def test_hostile_tar_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tgz"
    monkeypatch.setattr(arrays, "MAX_ARCHIVE_BYTES", 2**24)
    path.write_bytes(gzip.compress(bytes(2**25)))
    with pytest.raises(Yt8mError, match="expands to more than 16,777,216 bytes"):
        read_tgz(path, MAX_BYTES, ("x",))
    write_tgz(path, {str(number): b"" for number in range(1001)}, 9)
    with pytest.raises(Yt8mError, match="is an archive of more than 1,000 files"):
        read_tgz(path, MAX_BYTES, ("x",))
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("x")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(Yt8mError, match="does not contain x"):
        read_tgz(path, MAX_BYTES, ("x",))
    # A sparse file of 10 GB, in a header of the POSIX format.
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        sparse = tarfile.TarInfo("x")
        sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**10)}
        sparse.size = 1
        archive.addfile(sparse, io.BytesIO(b"x"))
    with pytest.raises(Yt8mError, match="does not contain x"):
        read_tgz(path, MAX_BYTES, ("x",))
    # A header whose size is negative makes readers return to it for ever.
    member = tarfile.TarInfo("x")
    header = bytearray(member.tobuf())
    header[124:136] = (-1024 % 2**96).to_bytes(12, "big")
    header[124] = 0xFF
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    path.write_bytes(gzip.compress(bytes(header) * 2 + bytes(1024)))
    with pytest.raises(Yt8mError):
        read_tgz(path, MAX_BYTES, ("y",))


def test_files_that_are_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    path.write_bytes(bytes(MAX_BYTES + 1))
    for read in (lambda: read_npz(path, MAX_BYTES), lambda: read_tgz(path, MAX_BYTES, ("x",))):
        with pytest.raises(Yt8mError, match="has more than 1,048,576 bytes, which no file of this kind has"):
            read()
