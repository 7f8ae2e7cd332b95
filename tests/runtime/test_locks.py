"""Locks on outputs: held by one process, free after any end of it, and no trace afterwards."""

import errno
import fcntl
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.processes import python_process
from yt8m.errors import Yt8mError
from yt8m.runtime.locks import locked

HOLD = "import sys; from pathlib import Path; from yt8m.runtime.locks import locked\nwith locked(Path(sys.argv[1])): {}"


def test_a_lock_leaves_nothing(tmp_path: Path) -> None:
    out, table = tmp_path / "new" / "out", tmp_path / "table.csv"
    with locked(out, table):
        assert [path.name for path in out.parent.iterdir()] == [".out.lock"]
        assert not out.exists()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "new"]


def test_a_second_process_names_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with python_process("-c", HOLD.format("print('held', flush=True); sys.stdin.read()"), out) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Yt8mError) as raised, locked(out):
            pass
        assert str(raised.value) == (
            f"{out}: another command is writing there (process {holder.pid} on {socket.gethostname()}); wait for it, "
            "stop it, or give another output."
        )
        with locked(tmp_path / "other"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / ".out.lock").is_file()
        with locked(out):
            assert f"process {os.getpid()} " in (tmp_path / ".out.lock").read_text()
    assert not list(tmp_path.iterdir())


def test_names_of_one_output_share_a_lock(tmp_path: Path) -> None:
    out, link = tmp_path / "out", tmp_path / "link"
    out.mkdir()
    link.symlink_to(out)
    with (
        locked(out),
        pytest.raises(Yt8mError, match=f"{link}: another command is writing there"),
        locked(link),
    ):
        pass
    with locked(out, link):
        pass


def test_a_lock_that_was_replaced_while_it_was_opened_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous holder removes its file between the opening and the locking of the next one."""
    original, replaced = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not replaced:
            replaced.append((tmp_path / ".out.lock").unlink())
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        locked(tmp_path / "out"),
        pytest.raises(Yt8mError, match="another command is writing there"),
        locked(tmp_path / "out"),
    ):
        pass
    assert replaced


def test_file_systems_without_locks_are_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with locked(tmp_path / "out"), locked(tmp_path / "out"):
        pass


def test_pipes_are_not_locked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with locked(tmp_path / "pipe"):
        assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Yt8mError, match=r"out: cannot be written \(.*\)\."), locked(tmp_path / "file" / "out"):
        pass
