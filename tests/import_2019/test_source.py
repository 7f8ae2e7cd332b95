"""The kind of a 2019 model is determined by its settings and tensor names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models_2019 import NUM_CLASSES, reading_error
from tests.support.reference_2019 import (
    agnostic_config,
    aware_config,
    dbof_settings,
    head_settings,
    nextvlad_settings,
    random_tensors,
    video_config,
    write_folder,
)
from tests.support.yaml_bomb import YAML_BOMB
from yt8m.errors import UsageError, Yt8mError
from yt8m.import_2019.importing import read_model
from yt8m.models.classifier import (
    ContextAgnosticClassifier,
)


def test_segment_classifiers_are_identified_by_their_tensors(tmp_path: Path) -> None:
    config = agnostic_config(dbof_settings())
    tensors = random_tensors(config, NUM_CLASSES)
    del config["pure_segment"]
    model = read_model(write_folder(tmp_path / "original", config, tensors))
    assert isinstance(model, ContextAgnosticClassifier)
    assert model.config.margin_frames == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("just words", "does not describe a 2019 model"),
        ("", "does not describe a 2019 model"),
        ("training: {}", "does not describe a 2019 model"),
        ("[1, 2", "is not valid YAML"),
        (f"{YAML_BOMB}video: {{model: {{type: *a29}}}}", "is not valid YAML: it contains more than 100,000 values"),
        ("video: {model: *nothing}", "is not valid YAML"),
        ("video: 3", "'video': expected keys and values, found 3"),
        ("video: {}", "'video.model' is missing"),
        ("video: {model: {}}", "'video.model.type' is missing"),
        ("video: {model: {type: dbof}}", "'video.model.hidden_dim' is missing"),
        ("context_base: {}", "'segment_base' is missing"),
        ("segment_w_context: {}", "'context_base' is missing"),
        ("video: !!python/object/apply:os.mkdir [ran]", "is not valid YAML"),
    ],
)
def test_invalid_config_files_are_rejected(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "config.yaml").write_text(content)
    assert expected in reading_error(folder, UsageError)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_config_and_weights_of_different_models_are_rejected(tmp_path: Path) -> None:
    videos, segments = video_config(dbof_settings()), agnostic_config(dbof_settings())
    folder = write_folder(tmp_path / "original", segments, random_tensors(videos, NUM_CLASSES))
    assert "has a section 'pure_segment'" in reading_error(folder, UsageError)
    write_folder(
        folder, aware_config(dbof_settings(), dbof_settings(), head_settings()), random_tensors(videos, NUM_CLASSES)
    )
    assert "unknown model.encoder.0.weight, " in reading_error(folder, Yt8mError)
    other = nextvlad_settings(add_batchnorm=False)
    write_folder(folder, video_config(other), random_tensors(video_config(nextvlad_settings()), NUM_CLASSES))
    assert "missing model.video_encoder.soft_assignment_mapper.weight, " in reading_error(folder, Yt8mError)
