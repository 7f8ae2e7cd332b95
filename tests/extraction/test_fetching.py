"""Fetching the weights from a server that misbehaves, with small files in place of the official ones."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.command import refused, succeeds
from tests.support.downloads import QUICK
from tests.support.extraction_weights import matrix_data, write_tgz
from tests.support.hostile_server import Fault, HostileServer
from yt8m.download.partial import part_path
from yt8m.errors import Yt8mError
from yt8m.extraction import weights
from yt8m.extraction.arrays import read_bounded, read_tgz
from yt8m.extraction.fetching import FileReport, fetch_weights
from yt8m.extraction.graph import read_matrix
from yt8m.extraction.weights import DIGESTS_NAME, Alternative, Networks, WeightFile
from yt8m.runtime.locks import locked
from yt8m.torch_files import read_state_dict

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
ARCHIVE, PCA, MATRIX_NAME = "graph.tgz", "pca.tgz", "matrix.pb"
MAX_BYTES = 300_000


def _archive_files() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    return {"inner": generator.bytes(100_000)}


@pytest.fixture
def contents(tmp_path: Path) -> dict[str, bytes]:
    """The files of the server by name."""
    for name in (ARCHIVE, PCA):
        write_tgz(tmp_path / name, _archive_files())
    file = io.BytesIO()
    torch.save({"weight": torch.arange(20_000.0)}, file)
    prefix = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    contents = {name: (tmp_path / name).read_bytes() for name in (ARCHIVE, PCA)}
    return contents | {f"net-{prefix}.pth": file.getvalue(), MATRIX_NAME: matrix_data(MATRIX)}


@pytest.fixture
def server(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    """A server with the files, which are the weights of this test."""

    def read_archive(path: Path) -> Any:
        return read_tgz(path, MAX_BYTES, ("inner",))

    def read_small_matrix(path: Path) -> Any:
        return read_matrix(read_bounded(path, MAX_BYTES), str(path), (2, 3))

    readers = dict(zip(contents, (read_archive, read_archive, read_state_dict, read_small_matrix), strict=True))
    files = {
        name: WeightFile(name, "a part", len(content), MAX_BYTES, readers[name]) for name, content in contents.items()
    }
    by_hand = WeightFile("by_hand.pb", "a part", 50, MAX_BYTES, read_small_matrix)
    parts = dict(zip(("frames", "frames_pca", "audio", "audio_pca"), files.values(), strict=True))
    choices = {part: (Alternative((file,)),) for part, file in parts.items()}
    choices["audio_pca"] += (Alternative((by_hand,)),)
    monkeypatch.setattr(weights, "PARTS", choices)
    monkeypatch.setattr(weights, "FETCHED", tuple(files.values()))
    with HostileServer() as running:
        running.state.files |= {f"/{name}": content for name, content in contents.items()}
        yield running


def fetch(server: HostileServer, folder: Path) -> tuple[Networks, dict[str, FileReport]]:
    networks, reports = fetch_weights(folder, server=server.url, policy=QUICK)
    return networks, {report.file.name: report for report in reports}


def failed(server: HostileServer, folder: Path) -> str:
    with pytest.raises(Yt8mError) as caught:
        fetch(server, folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert message.endswith(".")
    return message


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != DIGESTS_NAME}


def test_missing_files_are_fetched_once_and_their_digests_recorded(
    server: HostileServer, contents: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "cache/weights"
    networks, reports = fetch(server, folder)
    assert networks.frames == _archive_files()
    np.testing.assert_array_equal(networks.audio_pca, MATRIX)  # type: ignore[arg-type]
    assert kept(folder) == contents
    assert {name: report.num_bytes for name, report in reports.items()} == {k: len(v) for k, v in contents.items()}
    assert all(report.was_fetched for report in reports.values())
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", DIGESTS_NAME], cwd=folder, capture_output=True, text=True, check=True
    )
    assert checked.stdout.count(": OK") == 4
    before = (folder / DIGESTS_NAME).read_bytes(), len(server.state.requests)
    again, reports = fetch(server, folder)
    assert not any(report.was_fetched for report in reports.values())
    assert again.extractor == networks.extractor
    assert ((folder / DIGESTS_NAME).read_bytes(), len(server.state.requests)) == before


FAULTS = (
    Fault.STALL,
    Fault.TRUNCATE,
    Fault.CORRUPT,
    Fault.DROP,
    Fault.IGNORE_RANGE,
    Fault.WRONG_RANGE,
    Fault.UNSATISFIABLE,
    Fault.BUSY,
    Fault.TOO_MANY,
    Fault.CHUNKED,
    Fault.SURPLUS,
    Fault.REDIRECT,
)


# A matrix has no checksum, so one wrong bit in its values cannot be seen.
@pytest.mark.parametrize(
    ("name_number", "fault"),
    [(number, fault) for number in (0, 2, 3) for fault in FAULTS if (number, fault) != (3, Fault.CORRUPT)],
)
def test_faults_cost_attempts_and_nothing_else(
    server: HostileServer, contents: dict[str, bytes], tmp_path: Path, fault: Fault, name_number: int
) -> None:
    name = list(contents)[name_number]
    server.state.faults[f"/{name}"] = deque([Fault.TRUNCATE, fault])
    fetch(server, tmp_path / "weights")
    assert kept(tmp_path / "weights") == contents


def test_a_partial_file_is_completed(server: HostileServer, contents: dict[str, bytes], tmp_path: Path) -> None:
    content = contents[ARCHIVE]
    part_path(tmp_path / "weights" / ARCHIVE).parent.mkdir()
    part_path(tmp_path / "weights" / ARCHIVE).write_bytes(content[:60_000])
    fetch(server, tmp_path / "weights")
    assert kept(tmp_path / "weights") == contents
    assert server.state.bytes_sent[f"/{ARCHIVE}"] == len(content) - 60_000
    # A complete part, left by a kill before the rename, is used without a request.
    (tmp_path / "weights" / ARCHIVE).rename(part_path(tmp_path / "weights" / ARCHIVE))
    server.state.requests.clear()
    fetch(server, tmp_path / "weights")
    assert kept(tmp_path / "weights") == contents
    assert server.state.requests == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.MISSING, "the server answered 404"),
        (Fault.CORRUPT, "is damaged"),
        (Fault.HUGE_LENGTH, "more than"),
        (Fault.DROP, "in a row"),
    ],
)
def test_a_file_that_cannot_be_fetched_is_named_and_the_others_are_kept(
    server: HostileServer, contents: dict[str, bytes], tmp_path: Path, fault: Fault, expected: str
) -> None:
    server.state.always[f"/{ARCHIVE}"] = fault
    message = failed(server, tmp_path / "weights")
    assert "1 of 4 files could not be fetched, " in message
    assert f"{server.url}/{ARCHIVE} (" in message
    assert expected in message
    assert "the same command continues, or put the files there yourself." in message
    others = {name: content for name, content in contents.items() if name != ARCHIVE}
    found = kept(tmp_path / "weights")
    assert {name: content for name, content in found.items() if not name.startswith(".")} == others
    del server.state.always[f"/{ARCHIVE}"]
    _, reports = fetch(server, tmp_path / "weights")
    assert [name for name, report in reports.items() if report.was_fetched] == [ARCHIVE]
    assert kept(tmp_path / "weights") == contents


def test_another_file_under_the_name_is_not_used(server: HostileServer, tmp_path: Path) -> None:
    server.state.files[f"/{MATRIX_NAME}"] = b"<html>Please log in</html>"
    assert "is no matrix of MediaPipe" in failed(server, tmp_path / "weights")
    assert MATRIX_NAME not in kept(tmp_path / "weights")


def test_a_server_cannot_fill_the_disk(server: HostileServer, tmp_path: Path) -> None:
    server.state.files[f"/{ARCHIVE}"] = bytes(4 * MAX_BYTES)
    assert "the server sends more than 300.00 kB" in failed(server, tmp_path / "weights")
    assert part_path(tmp_path / "weights" / ARCHIVE).stat().st_size <= MAX_BYTES


def test_a_file_that_is_fetched_again_must_be_the_one_that_was_recorded(
    server: HostileServer, contents: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    fetch(server, folder)
    (folder / MATRIX_NAME).unlink()
    server.state.files[f"/{MATRIX_NAME}"] = matrix_data(MATRIX + 1)
    assert f"delete its line in {DIGESTS_NAME} to accept the change" in failed(server, folder)
    digests = folder / DIGESTS_NAME
    digests.write_text("".join(line for line in digests.read_text().splitlines(True) if MATRIX_NAME not in line))
    networks, _ = fetch(server, folder)
    np.testing.assert_array_equal(networks.audio_pca, MATRIX + 1)  # type: ignore[arg-type]


def test_files_put_there_by_hand_are_used_and_recorded(
    server: HostileServer, contents: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(contents[ARCHIVE])
    (folder / "by_hand.pb").write_bytes(matrix_data(MATRIX, row_major=True))
    networks, reports = fetch(server, folder)
    np.testing.assert_array_equal(networks.audio_pca, MATRIX)  # type: ignore[arg-type]
    assert {name for name, report in reports.items() if not report.was_fetched} == {ARCHIVE, "by_hand.pb"}
    assert not server.state.find_requests(among=MATRIX_NAME)
    assert not server.state.find_requests(among=ARCHIVE)
    assert (folder / DIGESTS_NAME).read_text().count("\n") == 4


def test_a_damaged_file_is_refused_before_its_digest_is_recorded(
    server: HostileServer, contents: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(contents[ARCHIVE][:-9])
    assert f"{folder / ARCHIVE}: is incomplete" in failed(server, folder)
    assert (folder / DIGESTS_NAME).read_text() == ""


def test_only_one_process_fetches(server: HostileServer, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    with locked(folder):
        assert "another command is writing there" in failed(server, folder)
    fetch(server, folder)


def test_the_command_fetches_and_lists(
    server: HostileServer, contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    monkeypatch.setenv("YT8M_WEIGHTS", str(folder))
    shown = succeeds("weights", "--list")
    assert shown.out.count(": missing, about ") == 4
    assert not folder.exists()
    shown = succeeds("weights", "--server", f"{server.url}/")
    assert shown.out.count(": fetched, ") == 4
    for content in contents.values():
        assert hashlib.sha256(content).hexdigest() in shown.out
    assert shown.out.splitlines()[-1].startswith(f"{folder}: complete, inception-vggish ")
    assert succeeds("weights").out == shown.out.replace(": fetched, ", ": present, ")
    assert "expected an address" in refused(2, "weights", tmp_path / "other", "--server", "nowhere")
    file = tmp_path / "a_file"
    file.write_text(json.dumps({}))
    assert str(file) in refused(1, "weights", file)
    (folder / MATRIX_NAME).write_bytes(matrix_data(MATRIX + 1))
    assert "when it was first checked" in refused(1, "weights")
