"""Atomic writes: complete files and folders, and no leftovers after failures."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.files import opened_pipe
from tests.support.full_disk import FullDisk
from yt8m.errors import UsageError, Yt8mError
from yt8m.files import clear_all_leftovers, clear_leftovers, file_checksum, read_names, written_atomically


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_to_write(path: Path, error: BaseException, is_folder: bool = False) -> None:
    """Start writing a file, or a folder with a file, and raise."""
    with written_atomically(path) as temporary:
        if is_folder:
            temporary.mkdir()
        (temporary / "new.yaml" if is_folder else temporary).write_text("half")
        raise error


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "list.csv"
    with written_atomically(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, ".csv")
        assert temporary.name.startswith(".")
        temporary.write_text("complete")
    assert path.read_text() == "complete"
    assert names_in(path.parent) == ["list.csv"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), Yt8mError("A sentence.")])
def test_a_failed_write_keeps_the_previous_file_and_leaves_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "list.csv"
    path.write_text("previous")
    with pytest.raises(type(error)) as raised:
        fail_to_write(path, error)
    assert raised.value is error
    assert path.read_text() == "previous"
    assert names_in(tmp_path) == ["list.csv"]


def test_two_writers_of_one_file_do_not_interfere(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    with written_atomically(path) as first, written_atomically(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert names_in(tmp_path) == ["list.csv"]


@pytest.mark.parametrize("existing", ["nothing", "file", "folder"])
def test_a_folder_replaces_an_existing_file_or_folder(tmp_path: Path, existing: str) -> None:
    path = tmp_path / "model"
    if existing == "file":
        path.write_text("previous")
    elif existing == "folder":
        path.mkdir()
        (path / "old.yaml").write_text("previous")
    with written_atomically(path) as temporary:
        temporary.mkdir()
        (temporary / "new.yaml").write_text("complete")
        assert path.exists() == (existing != "nothing")
    assert names_in(path) == ["new.yaml"]
    assert names_in(tmp_path) == ["model"]


def test_a_failed_write_keeps_the_previous_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.yaml").write_text("previous")
    with pytest.raises(ValueError, match="broken"):
        fail_to_write(path, ValueError("broken"), is_folder=True)
    assert names_in(tmp_path) == ["model"]
    assert names_in(path) == ["old.yaml"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EACCES, "cannot be written (Permission denied)"),
        (errno.EROFS, "cannot be written (Read-only file system)"),
        (errno.EFBIG, "cannot be written (File too large)"),
    ],
)
def test_errors_of_the_operating_system_become_messages(tmp_path: Path, number: int, expected: str) -> None:
    path = tmp_path / "list.csv"
    with pytest.raises(Yt8mError) as raised:
        fail_to_write(path, OSError(number, os.strerror(number)))
    assert str(raised.value).startswith(f"{path}: {expected}")
    assert names_in(tmp_path) == []


def test_read_errors_are_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_atomically(tmp_path / "copy") as temporary:
        temporary.write_bytes((tmp_path / "absent").read_bytes())


def test_a_file_in_place_of_the_parent_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Yt8mError, match="cannot be written"), written_atomically(tmp_path / "file" / "list.csv"):
        pass


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.mkdir()
    with pytest.raises(Yt8mError, match="cannot be written"), written_atomically(path) as temporary:
        temporary.write_text("complete")
    assert names_in(tmp_path) == ["submission.csv"]


def test_a_full_disk_leaves_no_partial_file(full_disk: FullDisk) -> None:
    path = full_disk.folder / "list.csv"
    full_disk.fill()
    with pytest.raises(Yt8mError, match="no space left on the disk"), written_atomically(path) as temporary:
        temporary.write_bytes(bytes(100_000))
    full_disk.free()
    assert names_in(full_disk.folder) == []


def leftover(path: Path, old: bool = False) -> Path:
    """Name of a leftover of writing `path`."""
    with written_atomically(path) as temporary:
        temporary.touch()
        name = temporary.name
    path.unlink()
    return path.with_name(name + ".old" * old)


@pytest.mark.parametrize("clear", [clear_leftovers, lambda path: clear_all_leftovers(path.parents[1])])
@pytest.mark.parametrize("name", ["list.csv", "model", "v1.0", "a[b]*.parquet", "x.tar.gz"])
def test_leftovers_are_removed(tmp_path: Path, name: str, clear: Callable[[Path], None]) -> None:
    path = tmp_path / "folder" / name
    leftover(path).write_text("half")
    leftover(path).mkdir()
    (leftover(path, old=True) / "content").mkdir(parents=True)
    path.write_text("complete")
    kept = [".hidden", ".list.csv", f".{name}.lock", f"{name}.12345678", ".12345678"]
    for other in kept:
        (path.parent / other).touch()
    clear(path)
    assert names_in(path.parent) == sorted([*kept, name])


@pytest.mark.parametrize("clear", [clear_leftovers, lambda path: clear_all_leftovers(path.parent)])
@pytest.mark.parametrize("name", ["model", "v1.0"])
def test_a_folder_that_was_being_replaced_is_restored(tmp_path: Path, name: str, clear: Callable[[Path], None]) -> None:
    path = tmp_path / name
    old = leftover(path, old=True)
    old.mkdir()
    (old / "content").write_text("previous")
    clear(path)
    assert names_in(tmp_path) == [name]
    assert (path / "content").read_text() == "previous"


def test_leftovers_of_other_files_are_kept(tmp_path: Path) -> None:
    for name in ("list.txt", "list", "lists.csv", "a.list.csv"):
        leftover(tmp_path / name).touch()
    before = names_in(tmp_path)
    clear_leftovers(tmp_path / "list.csv")
    assert names_in(tmp_path) == before


def test_lists_of_names_may_contain_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# a comment\n a.tfrecord \n\nb#1.tfrecord # another\n\tc.tfrecord\r\n")
    assert read_names(path, "shards") == ["a.tfrecord", "b#1.tfrecord", "c.tfrecord"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"# nothing\n\n", "contains no names; expected a list of shards, one per line."),
        (b"\xff\xfe", "cannot be read as a list of shards (not UTF-8)."),
        (None, "cannot be read as a list of shards (No such file or directory)."),
    ],
)
def test_lists_without_names_are_refused(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_names(path, "shards")
    assert str(raised.value) == f"{path}: {expected}"


# --- Checksums -------------------------------------------------------------------------------------------------------


def test_the_checksum_of_a_file_is_its_crc32c(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"123456789 and more")
    assert file_checksum(path, 9) == 0xE3069283  # the check value of CRC-32C
    path.write_bytes(bytes(32))
    assert file_checksum(path) == 0x8A9136AA  # RFC 3720, B.4
    path.write_bytes(b"")
    assert file_checksum(path) == 0
    # More bytes than are read at a time.
    path.write_bytes(bytes(range(256)) * 10_000)
    expected = file_checksum(path)
    path.write_bytes(bytes(range(256)) * 10_000 + b"more")
    assert file_checksum(path, 2_560_000) == expected != file_checksum(path)
    with pytest.raises(Yt8mError, match=r"absent: cannot be read \(No such file or directory\)\."):
        file_checksum(tmp_path / "absent")


# --- links, pipes and devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["other/list.csv", "missing/list.csv"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path, target: str, is_folder: bool) -> None:
    (tmp_path / "other").mkdir()
    if is_folder:
        (tmp_path / "other/list.csv").mkdir()
    else:
        (tmp_path / "other/list.csv").write_text("previous")
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(target)
    with written_atomically(tmp_path / "first") as temporary:
        if is_folder:
            temporary.mkdir()
        (temporary / "new.yaml" if is_folder else temporary).write_text("complete")
    assert (tmp_path / "first").readlink() == Path("second")
    assert (tmp_path / "second").readlink() == Path(target)
    assert (tmp_path / target / "new.yaml" if is_folder else tmp_path / target).read_text() == "complete"
    assert names_in((tmp_path / target).parent) == ["list.csv"]


def test_a_dangling_link_to_the_parent_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("elsewhere/runs")
    with written_atomically(tmp_path / "out" / "list.csv") as temporary:
        temporary.write_text("complete")
    assert (tmp_path / "elsewhere/runs/list.csv").read_text() == "complete"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Yt8mError, match=r"/a: cannot be written \(Too many levels"), written_atomically(tmp_path / "a"):
        pass


@pytest.mark.parametrize("through_link", [False, True])
def test_a_pipe_receives_the_file(tmp_path: Path, through_link: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    pipe = tmp_path / "pipe.csv"
    (tmp_path / "link").symlink_to("pipe.csv")
    with opened_pipe(pipe) as received:
        with written_atomically(tmp_path / "link" if through_link else pipe) as temporary:
            assert temporary.suffix == ".csv"
            # A writer may seek, as those of Parquet and PNG files do.
            with temporary.open("w+b") as file:
                file.write(b"completed")
                file.seek(0)
                file.write(b"C")
        assert received() == b"Completed"
    assert pipe.is_fifo()
    assert names_in(tmp_path) == ["link", "pipe.csv", "temporary"]
    assert names_in(tmp_path / "temporary") == []


def test_a_pipe_receives_nothing_of_a_failed_write(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="broken"):
        fail_to_write(pipe, ValueError("broken"))
    assert pipe.is_fifo()
    assert names_in(tmp_path) == ["pipe"]


def test_a_folder_does_not_replace_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "model"
    os.mkfifo(pipe)
    with (
        pytest.raises(Yt8mError, match=r"/model: is a device, a pipe or an open file; "),
        written_atomically(pipe) as new,
    ):
        new.mkdir()
    assert pipe.is_fifo()


def test_a_device_is_written_into(tmp_path: Path) -> None:
    device = tmp_path / "device"
    try:
        os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # the null device
        with device.open("wb"):
            pass
    except OSError:
        pytest.skip("making and opening devices is not permitted")
    with written_atomically(device) as temporary:
        temporary.write_text("complete")
    assert device.is_char_device()
    assert names_in(tmp_path) == ["device"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc")
def test_an_open_file_of_the_process_is_appended_to(tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w") as file:
        file.write("printed before\n")
        file.flush()
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{file.fileno()}")
        with written_atomically(tmp_path / "stdout") as temporary:
            temporary.write_text("complete")
    assert (tmp_path / "list.csv").read_text() == "printed before\ncomplete"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize("path", ["/proc/yt8m/list.csv", "/proc/yt8m.csv", "/proc/self/fd/9999", "/proc/version"])
def test_a_file_system_that_takes_no_files_is_reported(path: str) -> None:
    with pytest.raises(Yt8mError, match=rf"^{path}: cannot be written \("), written_atomically(Path(path)) as temporary:
        temporary.write_text("complete")


def test_a_name_that_is_too_long_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Yt8mError, match="cannot be written"), written_atomically(tmp_path / ("a" * 300)) as temporary:
        temporary.write_text("complete")
