"""Imported models predict the probabilities of the original and can be trained, used and merged as any other."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tests.support import reference_2019 as reference
from tests.support.codes import MAX_LOGIT_ERROR
from tests.support.command import refused, succeeds
from tests.support.models_2019 import NUM_CLASSES, probabilities, reading_error, write_vocabulary
from tests.support.reference_2019 import (
    agnostic_config,
    aware_config,
    dbof_settings,
    head_settings,
    nextvlad_settings,
    random_input,
    random_tensors,
    video_config,
    write_folder,
)
from tests.support.tiny_shards import random_videos, write_shard
from yt8m.errors import UsageError
from yt8m.import_2019.importing import import_model, read_model
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import FusionConfig
from yt8m.models.description import read_description
from yt8m.models.saved import load_model
from yt8m.prediction.quantization import probabilities_of_codes
from yt8m.prediction.store import Store
from yt8m.vocabulary import OFFICIAL_DIGEST, OFFICIAL_SIZE, Vocabulary

EXAMPLES = ("video-dbof", "agnostic-dbof", "agnostic-nextvlad", "aware-dbof-nextvlad")

DBOF_VARIANTS = [
    dbof_settings(frame_se_reduction=frame, video_se_reduction=video, per_class=per_class, n_mixtures=experts)
    for frame, video, per_class, experts in product((0, 4, 16), (0, 3, 12), (False, True), (1, 3))
]
NEXTVLAD_VARIANTS = [
    nextvlad_settings(
        n_clusters=clusters, groups=groups, se_reduction=reduction, add_batchnorm=norm, per_class=per_class
    )
    for (clusters, groups), reduction, norm, per_class in product(
        ((4, 8), (5, 2), (8, 128), (3, 1)), (0, 2), (False, True), (False, True)
    )
]
WITHOUT_CONTEXT = [
    wrap(network) for wrap in (video_config, agnostic_config) for network in (*DBOF_VARIANTS, *NEXTVLAD_VARIANTS)
]
ENCODERS = [
    dbof_settings(),
    dbof_settings(frame_se_reduction=0, video_se_reduction=0, hidden_dim=20, per_class=True),
    nextvlad_settings(),
    nextvlad_settings(add_batchnorm=False, se_reduction=0, n_clusters=6, groups=4, fcn_dim=8, n_mixtures=5),
]
AWARE = [
    aware_config(context, segment, head_settings(se_reduction=reduction))
    for context, segment, reduction in product(ENCODERS, ENCODERS, (0, 3))
]


@pytest.fixture
def originals(shared_data: Path) -> Path:
    """Folder of four 2019 models, each with an example of probabilities of the original implementation."""
    folder = shared_data / "models_2019"
    if not folder.is_dir():
        pytest.skip(f"there are no 2019 models at {folder}")
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_reference_predicts_the_probabilities_of_the_original(originals: Path, name: str) -> None:
    config = yaml.safe_load((originals / name / "config.yaml").read_text())
    tensors = torch.load(originals / name / "model.pth", weights_only=True)
    example = np.load(originals / name / "example.npz")
    video, segment = (torch.from_numpy(example[key]) for key in ("video", "segment"))
    for dtype in (torch.float64, torch.float32):
        found = reference.probabilities(config, tensors, video, segment, dtype)
        assert np.abs(found.numpy() - example["probabilities"]).max() < 2e-6


@pytest.mark.parametrize("name", EXAMPLES)
def test_imported_models_predict_the_probabilities_of_the_original(originals: Path, name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    shown = succeeds("import-2019", originals / name, out, "--check", originals / name / "example.npz").out
    assert shown.splitlines()[0].startswith(f"{out}: {name.partition('-')[0]} classifier of 1,000 classes, ")
    assert "probabilities differ by" in shown.splitlines()[1]
    example = np.load(originals / name / "example.npz")
    model = load_model(out, vocabulary_digest=OFFICIAL_DIGEST)
    found = probabilities(model, torch.from_numpy(example["video"]), torch.from_numpy(example["segment"]))
    assert np.abs(found.numpy() - example["probabilities"]).max() < 1e-6


def test_the_digest_of_the_official_vocabulary_is_a_constant(shared_data: Path) -> None:
    vocabulary = Vocabulary.load(shared_data / "segment_vocabulary.csv")
    assert (vocabulary.digest, len(vocabulary)) == (OFFICIAL_DIGEST, OFFICIAL_SIZE)


def described(config: dict[str, Any]) -> str:
    return " ".join(
        f"{section}:{','.join(str(value) for value in part['model'].values())}"
        for section, part in config.items()
        if "model" in part
    )


@pytest.mark.parametrize("config", [*WITHOUT_CONTEXT, *AWARE], ids=described)
def test_imported_models_of_all_settings_predict_the_probabilities_of_the_reference(
    config: dict[str, Any], tmp_path: Path
) -> None:
    tensors = random_tensors(config, NUM_CLASSES)
    folder = write_folder(tmp_path / "original", config, tensors)
    video, segment = random_input()
    expected = reference.probabilities(config, tensors, video, segment)
    assert expected.std(0).max() > 1e-3, "the predictions must depend on the input"
    found = probabilities(read_model(folder), video, segment)
    assert (found.double() - expected).abs().max() < 1e-5


def test_imported_models_can_be_trained(tmp_path: Path) -> None:
    video, segment = random_input(batch=8)
    for config in (
        agnostic_config(nextvlad_settings()),
        agnostic_config(dbof_settings()),
        aware_config(dbof_settings(), nextvlad_settings(), head_settings()),
    ):
        folder = write_folder(tmp_path / "original", config, random_tensors(config, NUM_CLASSES))
        model = read_model(folder).train()
        targets = (torch.rand(8, NUM_CLASSES, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        frozen = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("context_")}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        losses = []
        for _ in range(12):
            torch.manual_seed(0)
            inputs = [segment, torch.full((8,), 11)]
            if isinstance(model, ContextAwareClassifier):
                inputs.append(model.encode_context(video, torch.full((8,), 47)))
            loss = nn.functional.binary_cross_entropy_with_logits(model(*inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            assert all(parameter.grad is not None for parameter in trained)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
        assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())


def test_imported_video_classifiers_initialize_segment_classifiers(tmp_path: Path) -> None:
    video, segment = random_input()
    bases = []
    for name, network in (("dbof", dbof_settings()), ("nextvlad", nextvlad_settings())):
        config = video_config(network)
        folder = write_folder(tmp_path / name, config, random_tensors(config, NUM_CLASSES))
        import_model(folder, tmp_path / f"our-{name}", vocabulary_digest="abc", num_classes=NUM_CLASSES)
        bases.append(load_model(tmp_path / f"our-{name}", vocabulary_digest="abc"))
    context, cut = bases
    assert isinstance(context, VideoClassifier)
    assert isinstance(cut, VideoClassifier)
    agnostic = ContextAgnosticClassifier.from_video_classifier(cut).eval()
    lengths = torch.full((3,), 11)
    with torch.no_grad():
        assert torch.equal(agnostic(segment, lengths), cut(segment, lengths))
    aware = ContextAwareClassifier.from_video_classifiers(context, cut, fusion=FusionConfig(output_size=8))
    assert probabilities(aware.eval(), video, segment).shape == (3, NUM_CLASSES)


def test_an_imported_model_has_a_description_and_its_provenance(tmp_path: Path) -> None:
    config = video_config(dbof_settings())
    folder = write_folder(tmp_path / "gated", config, random_tensors(config, NUM_CLASSES))
    imported = import_model(folder, tmp_path / "new" / "out", vocabulary_digest="abc", num_classes=NUM_CLASSES)
    assert (imported.kind, imported.num_classes, imported.difference) == ("video", NUM_CLASSES, None)
    assert imported.num_parameters == sum(p.numel() for p in read_model(folder).parameters())
    message = read_description(tmp_path / "new" / "out")
    assert (message.kind, message.num_classes, message.vocabulary) == ("video", NUM_CLASSES, "abc")
    assert message.provenance["imported_from"] == "gated/model.pth"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]


def test_predict_and_merge_accept_imported_models(tmp_path: Path) -> None:
    """Stored probabilities of all segments of some videos are compared with the reference."""
    videos = random_videos(3, num_frames=(61, 90))
    write_shard(tmp_path / "shards" / "a.tfrecord", videos)
    vocabulary = write_vocabulary(tmp_path / "segment_vocabulary.csv", NUM_CLASSES)
    configs = {
        "agnostic": agnostic_config(nextvlad_settings()),
        "aware": aware_config(nextvlad_settings(add_batchnorm=False), dbof_settings(), head_settings()),
    }
    tensors = {}
    for name, config in configs.items():
        tensors[name] = random_tensors(config, NUM_CLASSES)
        folder = write_folder(tmp_path / "original" / name, config, tensors[name])
        succeeds("import-2019", folder, tmp_path / name, "--vocabulary", vocabulary)
    shards = ["--shards", tmp_path / "shards", "--vocabulary", vocabulary]
    models = [tmp_path / name for name in configs]
    succeeds("predict", *models, *shards, "--store", tmp_path / "predictions", "--accelerator", "cpu")
    store = Store.open(tmp_path / "predictions")
    assert list(store.index.models) == list(configs)
    for name, config in configs.items():
        expected = []
        for video in videos:
            frames = torch.from_numpy(video.frames)
            for start in range(30, 5 * (-(-len(frames) // 5) - 2), 5):
                inputs = (frames.unsqueeze(0), frames[start - 3 : start + 8].unsqueeze(0))
                expected.append(reference.probabilities(config, tensors[name], *inputs))
        correct = torch.cat(expected).numpy()
        codes = np.stack([store.codes(name, class_index) for class_index in range(NUM_CLASSES)], axis=1)
        # The tolerance is that of float32 and half a step of the 16-bit codes.
        allowed = 1e-5 + 1.01 * MAX_LOGIT_ERROR * correct * (1 - correct)
        assert (np.abs(probabilities_of_codes()[codes] - correct) < allowed).all()
    merged = succeeds("merge", tmp_path / "predictions", *shards, "--out", tmp_path / "submission.csv").out
    assert "arithmetic mean of 2 models (agnostic, aware)" in merged


def test_missing_folders_and_files_are_errors(folder: Path) -> None:
    assert reading_error(folder / "no", UsageError) == f"{folder / 'no'}: there is no such model folder."
    (folder / "model.pth").unlink()
    assert f"{folder}: has no model.pth; " in reading_error(folder, UsageError)
    (folder / "config.yaml").unlink()
    assert f"{folder}: has no config.yaml; " in reading_error(folder, UsageError)


def test_a_vocabulary_of_another_size_is_rejected(folder: Path, tmp_path: Path) -> None:
    message = refused(2, "import-2019", folder, tmp_path / "out")
    assert message.startswith(f"{folder}: the model has 7 classes, but the vocabulary has 1,000; ")
    wrong = write_vocabulary(tmp_path / "wrong.csv", 8)
    assert "the vocabulary has 8; " in refused(2, "import-2019", folder, tmp_path / "out", "--vocabulary", wrong)
    assert not (tmp_path / "out").exists()
    right = write_vocabulary(tmp_path / "right.csv", 7)
    succeeds("import-2019", folder, tmp_path / "out", "--vocabulary", right)
    assert read_description(tmp_path / "out").vocabulary == Vocabulary.load(right).digest


def test_an_existing_destination_is_refused(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path, folder, folder / "model.pth"):
        assert "already exists, and an import replaces nothing" in refused(2, "import-2019", folder, out)
    assert sorted(tmp_path.rglob("*")) == before
