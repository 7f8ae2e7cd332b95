"""Model folders: saving and loading preserves logits, and errors of invalid folders are one sentence."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.damage import flipped_bits, zeroed_sectors
from tests.support.hostile_pickle import HostilePickle
from tests.support.rankings import make_vocabulary
from tests.support.tiny_models import DBOF, NEXTVLAD, aware_classifier, random_frames, video_classifier
from yt8m.errors import UsageError, Yt8mError
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier
from yt8m.models.description import read_description
from yt8m.models.saved import load_model, save_model
from yt8m.vocabulary import Vocabulary

MODELS = {
    "video": lambda: video_classifier(DBOF, num_experts=2),
    "agnostic": lambda: ContextAgnosticClassifier.from_video_classifier(video_classifier(NEXTVLAD, per_class=True), 2),
    "aware": aware_classifier,
    "as in 2019": lambda: video_classifier(DBOF.model_copy(update={"input": "bytes"}), average="logits"),
}


def logits(model: Classifier) -> torch.Tensor:
    torch.manual_seed(3)
    inputs = [random_frames(3, 11), torch.tensor([11, 8, 9])]
    if isinstance(model, ContextAwareClassifier):
        inputs += [model.encode_context(random_frames(3, 20), torch.tensor([20, 9, 3])).detach()]
    with torch.no_grad():
        return model(*inputs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", MODELS["agnostic"](), vocabulary_digest="abc", provenance={"name": "n", "step": 7})
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **changes}))


def remove_checksums(folder: Path) -> None:
    """Make `config.yaml` as earlier versions wrote it."""
    path = folder / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(("weights_checksum", "config_checksum"))))
    assert len(path.read_text().splitlines()) == len(lines) - 2


@pytest.mark.parametrize("kind", MODELS)
def test_saving_and_loading_preserves_the_model(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]().eval()
    save_model(tmp_path / "model", model, vocabulary_digest="abc")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.yaml", "model.safetensors"]
    state = torch.get_rng_state()
    loaded = load_model(str(tmp_path / "model"), vocabulary_digest="abc")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.num_classes == 5
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_model_folder_lists_its_classes(tmp_path: Path) -> None:
    classes = make_vocabulary(30, 7, 2, 900, 11)
    named = Vocabulary(classes.label_ids, ("Food", "Ski, Alpine", "", "日本", 'say "x"'))
    save_model(tmp_path / "model", MODELS["video"](), vocabulary_digest=named.digest, classes=named)
    found = Vocabulary.load(tmp_path / "model")
    assert (found.label_ids.tolist(), found.names, found.digest) == ([30, 7, 2, 900, 11], named.names, named.digest)
    load_model(tmp_path / "model", vocabulary_digest=found.digest)


def test_a_loaded_model_can_be_trained(folder: Path) -> None:
    model = load_model(folder).train()
    logits_before = model(random_frames(4, 6), torch.tensor([6, 5, 4, 3]))
    logits_before.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.mixture.gate_norm.num_batches_tracked == 1


def test_folders_without_newer_settings_load_with_their_defaults(folder: Path) -> None:
    expected = logits(load_model(folder))
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["config"]["encoder"]["input"], values["config"]["mixture"]["average"]
    del values["config_checksum"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert torch.equal(logits(load_model(folder)), expected)


def test_the_config_file_contains_kind_settings_and_provenance(folder: Path) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    assert list(values) == [
        "format_version",
        "yt8m_version",
        "kind",
        "num_classes",
        "vocabulary",
        "features",
        "config",
        "provenance",
        "weights_checksum",
        "config_checksum",
    ]
    assert (values["kind"], values["num_classes"], values["vocabulary"]) == ("agnostic", 5, "abc")
    assert values["config"]["margin_frames"] == 2
    assert values["config"]["encoder"]["type"] == "nextvlad"
    assert values["config"]["mixture"] == {
        "num_experts": 4,
        "dropout": 0.5,
        "per_class": True,
        "average": "probabilities",
        "initial_probability": 0.005,
    }
    assert read_description(folder).provenance == {"name": "n", "step": 7}


def test_saving_again_replaces_the_folder_and_a_failed_save_preserves_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Yt8mError, match="no space left"):
            save_model(folder, MODELS["video"](), vocabulary_digest="abc")
    assert read_description(folder).kind == "agnostic"
    load_model(folder)
    save_model(folder, MODELS["video"](), vocabulary_digest="abc")
    assert read_description(folder).kind == "video"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


# --- Invalid folders --------------------------------------------------------------------------------------------------


def loading_error(folder: Path, kind: type[Yt8mError], **arguments: str) -> str:
    with pytest.raises(kind) as caught:
        load_model(folder, **arguments)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folders_and_files_are_errors(folder: Path) -> None:
    assert loading_error(folder / "no", UsageError) == f"{folder / 'no'}: there is no such model folder."
    (folder / "model.safetensors").unlink()
    assert (
        loading_error(folder, UsageError) == f"{folder}: is not a complete model folder, model.safetensors is missing."
    )
    (folder / "config.yaml").unlink()
    assert loading_error(folder, UsageError) == f"{folder}: is not a complete model folder, config.yaml is missing."


def test_a_model_of_another_vocabulary_is_rejected(folder: Path) -> None:
    message = loading_error(folder, UsageError, vocabulary_digest="xyz")
    assert "5 classes are of another vocabulary (digest abc) than the one in use (xyz)" in message


def test_unknown_kinds_keys_and_formats_are_rejected(folder: Path) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    edit_config(folder, kind="wise")
    assert "'kind'" in loading_error(folder, UsageError)
    assert "'wise'" in loading_error(folder, UsageError)
    edit_config(folder, kind="agnostic", provenence={})
    assert "unknown key 'provenence' (did you mean 'provenance'?)" in loading_error(folder, UsageError)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    edit_config(folder, config={**values["config"], "margin": 3})
    assert "unknown key 'margin' (did you mean 'margin_frames'?)" in loading_error(folder, UsageError)
    edit_config(folder, format_version=2, something_new=1, config=values["config"])
    assert "has format 2, written by yt8m" in loading_error(folder, UsageError)
    (folder / "config.yaml").write_text("just words")
    assert "expected settings" in loading_error(folder, UsageError)


def test_missing_extra_and_misshapen_tensors_are_named(folder: Path) -> None:
    remove_checksums(folder)
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["mixture.gates.bias"] = tensors.pop("mixture.gate.bias")
    tensors["encoder.rgb.centroids"] = tensors["encoder.rgb.centroids"][:, :5].contiguous()
    tensors["encoder.audio.centroids"] = tensors["encoder.audio.centroids"].half()
    safetensors.torch.save_file(tensors, path)
    message = loading_error(folder, Yt8mError)
    assert "missing mixture.gate.bias;" in message
    assert "unknown mixture.gates.bias;" in message
    assert "encoder.rgb.centroids (float32 4x5 instead of float32 4x256)" in message
    assert "encoder.audio.centroids (float16 2x32 instead of float32 2x32)" in message


def test_weights_of_another_network_are_rejected(folder: Path) -> None:
    save_model(folder.parent / "other", video_classifier(DBOF), vocabulary_digest="abc")
    (folder / "model.safetensors").write_bytes((folder.parent / "other" / "model.safetensors").read_bytes())
    assert "was damaged or replaced (its checksum is not that in config.yaml)" in loading_error(folder, Yt8mError)
    remove_checksums(folder)
    message = loading_error(folder, Yt8mError)
    assert "missing encoder.rgb.centroids" in message
    assert " more; unknown encoder.frame_" in message


def test_a_pickle_or_a_truncated_file_is_rejected_and_never_executed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    remove_checksums(folder)
    path = folder / "model.safetensors"
    complete = path.read_bytes()
    for content in (pickle.dumps(HostilePickle()), complete[: len(complete) // 2], b""):
        path.write_bytes(content)
        assert "cannot be read as a safetensors file" in loading_error(folder, Yt8mError)
    assert not (tmp_path / "ran").exists()


# --- Damage ----------------------------------------------------------------------------------------------------------


def undetected(folder: Path, places: Iterable[str]) -> list[str]:
    """Places of damage with which the model can still be loaded."""
    found = []
    for place in places:
        with suppress(Yt8mError):
            load_model(folder)
            found.append(place)
    return found


def test_every_flipped_bit_of_the_weights_is_found(folder: Path) -> None:
    weights = folder / "model.safetensors"
    assert undetected(folder, flipped_bits(weights, 100)) == []
    assert len(list(zeroed_sectors(weights, 500))) > 10
    assert undetected(folder, zeroed_sectors(weights, 500)) == []
    load_model(folder)


def test_flipped_bits_of_the_config_change_no_value(folder: Path) -> None:
    """Only bits of spaces and of quotation marks, and those that make a comment of a checksum's line, can pass."""
    path, expected = folder / "config.yaml", read_description(folder)
    unchecked = {"config_checksum": None}
    found = []
    for place in flipped_bits(path, 60):
        with suppress(Yt8mError):
            load_model(folder)
            found.append(place)
            assert read_description(folder).model_copy(update=unchecked) == expected.model_copy(update=unchecked)
    assert len(found) < 6
    assert undetected(folder, zeroed_sectors(path)) == []


def test_a_change_of_the_config_by_hand_is_refused_until_its_checksum_is_removed(folder: Path) -> None:
    edit_config(folder, provenance={"name": "other"})
    assert loading_error(folder, Yt8mError) == (
        f"{folder / 'config.yaml'}: has changed since it was written (its checksum is wrong); restore it from a copy, or "
        "delete the line 'config_checksum' if you changed it yourself."
    )
    edit_config(folder, provenance={"name": "other"}, config_checksum=None)
    load_model(folder)


def test_folders_of_earlier_versions_load_without_checksums(folder: Path) -> None:
    expected = logits(load_model(folder))
    remove_checksums(folder)
    assert torch.equal(logits(load_model(folder)), expected)


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    )
)
@example(provenance={"name": "\x85", "loss": float("nan"), "lr": 1e-05})
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_checksum_of_a_config_survives_yaml(tmp_path: Path, provenance: dict[str, Any]) -> None:
    save_model(tmp_path / "any", MODELS["video"](), vocabulary_digest="abc", provenance=provenance)
    load_model(tmp_path / "any")
