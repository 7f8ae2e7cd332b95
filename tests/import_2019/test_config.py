"""Settings of 2019 are converted, and invalid ones are rejected."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support import reference_2019 as reference
from tests.support.models_2019 import NUM_CLASSES, probabilities, reading_error
from tests.support.reference_2019 import (
    agnostic_config,
    aware_config,
    dbof_settings,
    head_settings,
    nextvlad_settings,
    random_input,
    random_tensors,
    write_folder,
)
from yt8m.errors import UsageError, Yt8mError
from yt8m.import_2019.importing import read_model
from yt8m.models.classifier import (
    ContextAgnosticClassifier,
    ContextAwareClassifier,
)


@pytest.mark.parametrize("spelling", ["n_mixture", "n_mixtures", "num_mixtures"])
def test_all_spellings_of_the_number_of_experts_are_accepted(spelling: str, tmp_path: Path) -> None:
    head = head_settings(per_class=True)
    del head["n_mixture"]
    config = aware_config(dbof_settings(), nextvlad_settings(), {**head, spelling: 2})
    tensors = random_tensors(config, NUM_CLASSES)
    model = read_model(write_folder(tmp_path / "original", config, tensors))
    assert model.mixture.num_experts == 2
    video, segment = random_input()
    difference = probabilities(model, video, segment) - reference.probabilities(config, tensors, video, segment)
    assert difference.abs().max() < 1e-5


def test_settings_without_influence_on_tensors_are_converted(tmp_path: Path) -> None:
    context, segment = nextvlad_settings(p_drop=0.4, max_len=99), dbof_settings(p_drop=0.3, max_len=-1)
    config = aware_config(context, segment, head_settings(p_drop=0.2, max_len=120, finetune_context=True), offset=2)
    model = read_model(write_folder(tmp_path / "aware", config, random_tensors(config, NUM_CLASSES)))
    assert isinstance(model, ContextAwareClassifier)
    assert model.config.margin_frames == 2
    assert model.config.context_encoder.max_frames == 120
    assert model.config.context_encoder.cluster_dropout == 0.2
    assert model.config.segment_encoder.max_frames > 100_000
    assert model.config.segment_encoder.dropout == 0.3
    assert (model.config.fusion.dropout, model.config.mixture.dropout) == (0.2, 0.2)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.context_encoder.parameters())
    config = agnostic_config(nextvlad_settings(p_drop=0), offset=1)
    model = read_model(write_folder(tmp_path / "agnostic", config, random_tensors(config, NUM_CLASSES)))
    assert isinstance(model, ContextAgnosticClassifier)
    assert (model.config.margin_frames, model.config.encoder.cluster_dropout) == (1, 0)


def edit_config(folder: Path, section: str, **changes: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section]["model"] |= changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        (
            "context_base",
            {"type": "bert"},
            "'context_base.model.type': expected one of 'dbof', 'nextvlad', found 'bert'",
        ),
        (
            "context_base",
            {"hidden_dims": 3},
            "unknown key 'context_base.model.hidden_dims' (did you mean 'hidden_dim'?)",
        ),
        ("context_base", {"hidden_dim": "16"}, "'context_base.model.hidden_dim': expected a valid integer, found '16'"),
        ("context_base", {"hidden_dim": 10**12}, "'context_base.model.hidden_dim': expected less than or equal to"),
        ("context_base", {"hidden_dim": -1}, "'context_base.model.hidden_dim': expected greater than or equal to 1"),
        ("context_base", {"p_drop": 1.5}, "'context_base.model.p_drop': expected less than 1, found 1.5"),
        ("segment_base", {"groups": 3}, "'segment_base.model.groups': expected 1, 2, 4, 8, 16, 32, 64 or 128, found 3"),
        ("segment_base", {"n_clusters": 1}, "'segment_base.model.n_clusters': expected greater than or equal to 2"),
        ("segment_base", {"add_batchnorm": "yes"}, "'segment_base.model.add_batchnorm': expected a valid boolean"),
        ("segment_w_context", {"n_mixtures": 4}, "the number of experts is given more than once"),
        ("segment_w_context", {"fcn_dim": None}, "'segment_w_context.model.fcn_dim': expected a valid integer"),
    ],
)
def test_invalid_settings_are_rejected(folder: Path, section: str, changes: dict[str, object], expected: str) -> None:
    edit_config(folder, section, **changes)
    assert expected in reading_error(folder, UsageError)


@pytest.mark.parametrize("section", ["context_base", "segment_base", "segment_w_context"])
def test_settings_of_huge_networks_are_rejected_without_allocating_them(folder: Path, section: str) -> None:
    edit_config(folder, section, fcn_dim=1 << 20)
    assert "misshapen" in reading_error(folder, Yt8mError)
    edit_config(folder, "context_base", hidden_dim=1 << 20)
    edit_config(folder, "segment_base", n_clusters=1 << 16)
    edit_config(folder, "segment_w_context", n_mixture=1 << 10)
    assert "misshapen" in reading_error(folder, Yt8mError)
