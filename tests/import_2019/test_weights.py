"""Weights of 2019: legacy files are read, and damaged, invalid or malicious files are rejected."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.command import refused
from tests.support.hostile_pickle import HostilePickle
from tests.support.models_2019 import NUM_CLASSES, probabilities, reading_error
from tests.support.reference_2019 import (
    dbof_settings,
    random_input,
    random_tensors,
    video_config,
    write_folder,
)
from yt8m.errors import Yt8mError
from yt8m.import_2019.importing import read_model


def hidden_in(where: str) -> object:
    if where == "dict":
        return {"model.encoder.0.weight": HostilePickle()}
    return HostilePickle() if where == "file" else [torch.zeros(2), HostilePickle()]


@pytest.mark.parametrize("where", ["file", "list", "dict"])
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_hostile_pickle_is_rejected_and_never_executed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, is_archive: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(hidden_in(where), folder / "model.pth", _use_new_zipfile_serialization=is_archive)
    message = refused(1, "import-2019", folder, tmp_path / "out")
    assert message == (
        f"{folder / 'model.pth'}: unpickling it requires posix.mkdir, but only tensors are allowed; none of it was "
        "executed."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["original"]
    torch.load(folder / "model.pth", weights_only=False)
    assert (tmp_path / "ran").is_dir(), "the pickle must be hostile"


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_not_written_by_torch_are_rejected(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (HostilePickle(), {"weight": [1.0]}, "words"):
        (folder / "model.pth").write_bytes(pickle.dumps(content, protocol))
        reading_error(folder, Yt8mError)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_rejected(folder: Path) -> None:
    torch.save(nn.Linear(2, 2), folder / "model.pth")
    assert "unpickling it requires torch.nn.modules.linear.Linear" in reading_error(folder, Yt8mError)


def test_damaged_files_are_reported_in_one_sentence(folder: Path) -> None:
    path = folder / "model.pth"
    complete = path.read_bytes()
    legacy = folder / "legacy.pth"
    torch.save(torch.load(path, weights_only=True), legacy, _use_new_zipfile_serialization=False)
    old = legacy.read_bytes()
    truncated = [content[: len(content) * eighths // 8] for content in (complete, old) for eighths in range(8)]
    for content in (*truncated, complete[:-30], old[:-30], b"words", bytes(1000), complete[100:]):
        path.write_bytes(content)
        reading_error(folder, Yt8mError)
    generator = np.random.default_rng(0)
    for content in (complete, old):
        for _ in range(60):
            damaged = bytearray(content)
            for position in generator.integers(0, min(len(content), 20_000), 8):
                damaged[position] = generator.integers(256)
            path.write_bytes(damaged)
            with suppress(Yt8mError):  # files with damaged values only are accepted
                read_model(folder)


def test_a_compressed_archive_is_rejected(folder: Path) -> None:
    path = folder / "model.pth"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert "is a compressed archive" in reading_error(folder, Yt8mError)


def test_files_in_the_legacy_format_of_torch_are_read(tmp_path: Path) -> None:
    config = video_config(dbof_settings())
    tensors = random_tensors(config, NUM_CLASSES)
    folder = write_folder(tmp_path / "original", config, tensors)
    expected = probabilities(read_model(folder), *random_input())
    kept = OrderedDict((name, nn.Parameter(t) if t.is_floating_point() else t) for name, t in tensors.items())
    torch.save(kept, folder / "model.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(probabilities(read_model(folder), *random_input()), expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.zeros(2)], "contains a list, expected a state dict"),
        (torch.zeros(2), "contains a Tensor, expected a state dict"),
        ({"state_dict": {"a": torch.zeros(2)}}, "contains a dict under 'state_dict', expected a state dict"),
        ({3: torch.zeros(2)}, "contains a Tensor under '3', expected a state dict"),
        (
            {"expert_fc.2.bias": torch.zeros(1).expand(1 << 50)},
            "expert_fc.2.bias is not stored as a contiguous CPU tensor",
        ),
        (
            {"expert_fc.2.bias": torch.zeros(3, device="meta")},
            "expert_fc.2.bias is not stored as a contiguous CPU tensor",
        ),
        ({"expert_fc.2.bias": torch.eye(3).to_sparse()}, "expert_fc.2.bias is not stored as a contiguous CPU tensor"),
        ({}, "missing context_model.encoder.0.weight, context_model.encoder.0.bias, "),
    ],
)
def test_files_without_a_state_dict_are_rejected(folder: Path, content: Any, expected: str) -> None:
    torch.save(content, folder / "model.pth")
    assert expected in reading_error(folder, Yt8mError)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tensors = torch.load(folder / "model.pth", weights_only=True)
    edit(tensors)
    torch.save(tensors, folder / "model.pth")


def test_missing_unknown_and_misshapen_tensors_are_named(folder: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["gating_fc.2.biases"] = tensors.pop("gating_fc.2.bias")
        tensors["segment_model.audio_encoder.centroids"] = torch.zeros(2, 5)
        tensors["context_model.encoder.3.fc1.weight"] = tensors["context_model.encoder.3.fc1.weight"].squeeze(-1)

    change(folder, edit)
    message = reading_error(folder, Yt8mError)
    assert "the weights do not fit the network in config.yaml: missing gating_fc.2.bias;" in message
    assert "unknown gating_fc.2.biases;" in message
    assert "context_model.encoder.3.fc1.weight (float32 4x16 instead of float32 4x16x1)" in message
    assert "segment_model.audio_encoder.centroids (float32 2x5 instead of float32 2x32)" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_tensors_of_other_types_are_rejected(folder: Path, dtype: torch.dtype) -> None:
    change(folder, lambda tensors: tensors.update({"expert_fc.2.bias": tensors["expert_fc.2.bias"].to(dtype)}))
    name = str(dtype).removeprefix("torch.")
    assert f"misshapen expert_fc.2.bias ({name} 28 instead of float32 28)" in reading_error(folder, Yt8mError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_rejected(folder: Path, value: float) -> None:
    change(folder, lambda tensors: tensors["context_model.encoder.0.weight"].__setitem__((3, 4), value))
    assert "there are values that are not finite in context_model.encoder.0.weight." in reading_error(folder, Yt8mError)


def test_variances_below_zero_are_rejected(folder: Path) -> None:
    name = "segment_model.video_encoder.soft_assignment_mapper.1.bn.running_var"
    change(folder, lambda tensors: tensors[name].__setitem__(1, -1))
    assert f"there are variances below zero in {name}." in reading_error(folder, Yt8mError)


def test_a_number_of_experts_that_is_no_multiple_of_the_classes_is_rejected(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"expert_fc.2.bias": torch.zeros(29)}))
    assert "expert_fc.2.bias (float32 29 instead of float32 28)" in reading_error(folder, Yt8mError)
