"""Checkpoints: damage is found, invalid ones are refused with one sentence, and earlier versions' are read."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.damage import flipped_bits, zeroed_sectors
from tests.support.hostile_pickle import HostilePickle
from tests.support.tiny_tasks import LinearTask, StoppedError, digest, fit_linear, stop_at
from yt8m.errors import Yt8mError
from yt8m.training.checkpoint import read_checkpoint
from yt8m.training.loop import CHECKPOINT_FILE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The checkpoint after step 4 of a run that was stopped in step 5."""
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(5)))
    return tmp_path / CHECKPOINT_FILE


def refusal(path: Path) -> str:
    """The sentence with which a run refuses to resume from a checkpoint."""
    with pytest.raises(Yt8mError) as raised:
        fit_linear(path.parent)
    sentence = str(raised.value)
    assert sentence.startswith(f"{path}: ")
    assert sentence.endswith("delete it and run again to train this stage from its first step.")
    assert "\n" not in sentence
    assert "weights_only" not in sentence
    return sentence


# --- Damage ----------------------------------------------------------------------------------------------------------


def undetected(path: Path, places: Any) -> list[str]:
    """Places of damage with which the checkpoint can still be read."""
    found = []
    for place in places:
        try:
            read_checkpoint(path)
        except Yt8mError:
            continue
        found.append(place)
    return found


def test_every_flipped_bit_is_found(path: Path) -> None:
    assert undetected(path, flipped_bits(path, 300)) == []
    # In the line with the checksum too.
    content = path.read_bytes()
    for position in range(len(content) - 21, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(Yt8mError, match=r"is damaged \(its checksum is wrong\)"):
                read_checkpoint(path)


def test_every_zeroed_sector_is_found(path: Path) -> None:
    places = list(zeroed_sectors(path))
    assert len(places) > 10
    assert undetected(path, zeroed_sectors(path)) == []


def test_a_missing_end_is_found(path: Path) -> None:
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) - 21, len(content) - 30, len(content) // 2, 100, 1, 0):
        path.write_bytes(content[:length])
        with pytest.raises(Yt8mError):
            read_checkpoint(path)


def test_a_damaged_checkpoint_stops_the_run_until_it_is_deleted(path: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file() and file != path}
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert refusal(path) == (
        f"{path}: is damaged (its checksum is wrong); restore it from a copy, or delete it and run again to train this "
        "stage from its first step."
    )
    # Neither the checkpoint nor the best model so far is touched.
    assert path.read_bytes() == content
    assert all(file.read_bytes() == kept for file, kept in before.items())
    path.unlink()
    _, model = fit_linear(path.parent)
    _, expected = fit_linear(tmp_path / "other")
    assert digest(model) == digest(expected)
    for name in ("metrics.csv", "model/weights.txt"):
        assert (path.parent / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


# --- Earlier versions ------------------------------------------------------------------------------------------------


def test_checkpoints_of_earlier_versions_resume(path: Path, tmp_path: Path) -> None:
    state, has_checksum = read_checkpoint(path)
    assert has_checksum
    del state["has_checksum"]
    torch.save(state, path)
    assert not read_checkpoint(path)[1]
    _, model = fit_linear(path.parent)
    _, expected = fit_linear(tmp_path / "other")
    assert digest(model) == digest(expected)


# --- Invalid content -------------------------------------------------------------------------------------------------


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """The sentence with which a checkpoint without a checksum and with other content is refused."""
    state, _ = read_checkpoint(path)
    del state["has_checksum"]
    change(state)
    torch.save(state, path)
    return refusal(path)


def in_moments(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["optimizer"]["state"][1].update(values)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.update(optimizer=3), "'int' object is not subscriptable"),
        (lambda state: state.update(optimizer={}), "'state'"),
        (lambda state: state["optimizer"].update(state=[1]), "optimizer.state: expected a value for each parameter"),
        (lambda state: state["optimizer"]["state"].update(x=1), "optimizer.state: expected a value for each parameter"),
        (lambda state: state["optimizer"]["state"].update({99: {}}), "list index out of range"),
        (lambda state: state["optimizer"]["state"].update({2: "words"}), "optimizer.state.2: expected 3 keys"),
        (in_moments(other=1), "optimizer.state.1: expected 3 keys; missing or unknown: other"),
        (in_moments(exp_avg=None), "exp_avg: expected torch.float32 (1, 6), found NoneType"),
        (in_moments(exp_avg=torch.zeros(7)), "exp_avg: expected torch.float32 (1, 6), found torch.float32 (7,)"),
        (
            in_moments(exp_avg=torch.zeros(1, 6).double()),
            "exp_avg: expected torch.float32 (1, 6), found torch.float64 (1, 6)",
        ),
        (in_moments(exp_avg_sq=torch.zeros(1).expand(1, 6)), "exp_avg_sq: its values are not stored one by one"),
        (in_moments(exp_avg_sq=torch.zeros(1, 6, device="meta")), "exp_avg_sq: its values are not stored one by one"),
        (in_moments(step=4), "step: expected torch.float32 (), found int"),
        (lambda state: state.update(model=[1]), "model: expected 4 keys"),
        (lambda state: state["model"].update({"1.bias": "b"}), "model.1.bias: expected torch.float32 (6,), found str"),
        (lambda state: state["model"].update({3: 4}), "model: expected 4 keys; missing or unknown: 3"),
        (lambda state: state.update(average={"a": 1}), "average: expected 0 keys; missing or unknown: a"),
        (lambda state: state.update(precision=None), "precision: expected 0 keys"),
        (lambda state: state["progress"].update(step="4"), "progress.step: expected int, found str"),
        (lambda state: state["progress"].update(step=-4), "progress: an evaluation after the last step"),
        (lambda state: state["progress"].update(best_step=9), "progress: an evaluation after the last step"),
        (lambda state: state["progress"].pop("seconds"), "progress: expected 5 keys; missing or unknown: seconds"),
        (lambda state: state.update(losses=torch.zeros(1).expand(1 << 40)), "losses: its values are not stored"),
        (lambda state: state.update(losses="words"), "losses: expected one number per step"),
        (lambda state: state.update(losses=torch.zeros(2, dtype=torch.int64)), "losses: expected torch.float32 (2,)"),
    ],
)
def test_a_checkpoint_with_strange_content_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    sentence = changed(path, change)
    assert sentence.startswith(f"{path}: is not a checkpoint of this run (")
    assert expected in sentence


def test_settings_of_the_optimizer_are_those_of_the_recipe(path: Path, tmp_path: Path) -> None:
    state, _ = read_checkpoint(path)
    del state["has_checksum"]
    state["optimizer"]["param_groups"] = [{"betas": "words", "lr": None}]
    torch.save(state, path)
    _, model = fit_linear(path.parent)
    _, expected = fit_linear(tmp_path / "other")
    assert digest(model) == digest(expected)


def test_objects_are_refused_without_advice_to_execute_them(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "unpickling it requires posix.mkdir, but only tensors are allowed" in changed(
        path, lambda state: state.update(optimizer=HostilePickle())
    )
    assert not (tmp_path / "ran").exists()


# --- Archives --------------------------------------------------------------------------------------------------------


def rewrite(path: Path, compression: int) -> None:
    """Write the archive again with a compression, without the checksum at its end."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": {"weight": torch.zeros(10_000_000)}}, path)
    rewrite(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000

    def load(*_: object, **__: object) -> None:
        raise AssertionError("was unpacked")

    monkeypatch.setattr(torch, "load", load)
    assert "it is a compressed archive, which torch.save does not write; it was not read" in refusal(path)


def test_an_archive_that_lists_one_record_many_times_is_refused(path: Path) -> None:
    torch.save({"model": torch.zeros(100_000)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, number = archive.start_dir, 5 * len(archive.filelist)
    directory = 5 * content[start : content.index(b"PK\x06\x06", start)]
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, number, number, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + end)
    assert "it is an archive whose records are larger than the file; it was not read" in refusal(path)
