"""Models of 2019: their probabilities come back from our networks, and nothing but tensors from their pickles."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from tests.support import reference_2019 as reference
from tests.support.command import refused, succeeds
from tests.support.reference_2019 import (
    agnostic_config,
    aware_config,
    dbof_settings,
    head_settings,
    nextvlad_settings,
    random_input,
    random_tensors,
    video_config,
    write_example,
    write_folder,
)
from tests.support.tiny_shards import random_videos, write_shard
from tests.test_settings import BOMB
from yt8m.errors import UsageError, Yt8mError
from yt8m.import_2019.example import largest_difference, read_example
from yt8m.import_2019.importing import import_model, read_model
from yt8m.models.classifier import (
    Classifier,
    ContextAgnosticClassifier,
    ContextAwareClassifier,
    FusionConfig,
    VideoClassifier,
)
from yt8m.models.saved import load_model, read_description
from yt8m.prediction.quantization import MAX_LOGIT_ERROR, probabilities_of_codes
from yt8m.prediction.store import Store
from yt8m.vocabulary import OFFICIAL_DIGEST, OFFICIAL_SIZE, Vocabulary

CLASSES = 7
EXAMPLES = ("video-dbof", "agnostic-dbof", "agnostic-nextvlad", "aware-dbof-nextvlad")


def ours(model: Classifier, video: Tensor, segment: Tensor) -> Tensor:
    """Probabilities of an imported model, fed as a user feeds it."""
    context = video[:, 30:-10]
    lengths, context_lengths = (torch.full((len(x),), x.shape[1]) for x in (segment, context))
    with torch.no_grad():
        if isinstance(model, ContextAwareClassifier):
            return torch.sigmoid(model(segment, lengths, model.encode_context(context, context_lengths)))
        if isinstance(model, ContextAgnosticClassifier):
            return torch.sigmoid(model(segment, lengths))
        return torch.sigmoid(model(context, context_lengths))


# ---------------------------------------------------------------------------------------------------- the four examples


@pytest.fixture
def originals(shared_data: Path) -> Path:
    """Folder of the four models with what their original implementation made of some videos."""
    folder = shared_data / "models_2019"
    if not folder.is_dir():
        pytest.skip(f"no models of 2019 at {folder}")
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_plain_formulas_are_the_original_s(originals: Path, name: str) -> None:
    config = yaml.safe_load((originals / name / "config.yaml").read_text())
    tensors = torch.load(originals / name / "model.pth", weights_only=True)
    example = np.load(originals / name / "example.npz")
    video, segment = (torch.from_numpy(example[key]) for key in ("video", "segment"))
    for dtype in (torch.float64, torch.float32):
        found = reference.probabilities(config, tensors, video, segment, dtype)
        assert np.abs(found.numpy() - example["probabilities"]).max() < 2e-6


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_imported_example_gives_the_original_s_probabilities(originals: Path, name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    shown = succeeds("import-2019", originals / name, out, "--check", originals / name / "example.npz").out
    assert shown.splitlines()[0].startswith(f"{out}: {name.partition('-')[0]} classifier of 1,000 classes, ")
    assert "probabilities differ by" in shown.splitlines()[1]
    example = np.load(originals / name / "example.npz")
    model = load_model(out, vocabulary_digest=OFFICIAL_DIGEST)
    found = ours(model, torch.from_numpy(example["video"]), torch.from_numpy(example["segment"]))
    assert np.abs(found.numpy() - example["probabilities"]).max() < 1e-6


def test_the_official_vocabulary_is_known_by_its_digest(shared_data: Path) -> None:
    vocabulary = Vocabulary.load(shared_data / "segment_vocabulary.csv")
    assert (vocabulary.digest, len(vocabulary)) == (OFFICIAL_DIGEST, OFFICIAL_SIZE)


# ------------------------------------------------------------------------------------------------------- every setting

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
ALONE = [wrap(network) for wrap in (video_config, agnostic_config) for network in (*DBOF_VARIANTS, *NEXTVLAD_VARIANTS)]
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


def described(config: dict[str, Any]) -> str:
    return " ".join(
        f"{section}:{','.join(str(value) for value in part['model'].values())}"
        for section, part in config.items()
        if "model" in part
    )


@pytest.mark.parametrize("config", [*ALONE, *AWARE], ids=described)
def test_every_setting_gives_the_original_s_probabilities(config: dict[str, Any], tmp_path: Path) -> None:
    tensors = random_tensors(config, CLASSES)
    folder = write_folder(tmp_path / "theirs", config, tensors)
    video, segment = random_input()
    expected = reference.probabilities(config, tensors, video, segment)
    assert expected.std(0).max() > 1e-3, "an example that does not depend on its input checks nothing"
    found = ours(read_model(folder), video, segment)
    assert (found.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("spelling", ["n_mixture", "n_mixtures", "num_mixtures"])
def test_the_number_of_experts_has_several_spellings(spelling: str, tmp_path: Path) -> None:
    head = head_settings(per_class=True)
    del head["n_mixture"]
    config = aware_config(dbof_settings(), nextvlad_settings(), {**head, spelling: 2})
    tensors = random_tensors(config, CLASSES)
    model = read_model(write_folder(tmp_path / "theirs", config, tensors))
    assert model.mixture.num_experts == 2
    video, segment = random_input()
    difference = ours(model, video, segment) - reference.probabilities(config, tensors, video, segment)
    assert difference.abs().max() < 1e-5


def test_settings_that_no_tensor_shows_are_taken_over(tmp_path: Path) -> None:
    context, segment = nextvlad_settings(p_drop=0.4, max_len=99), dbof_settings(p_drop=0.3, max_len=-1)
    config = aware_config(context, segment, head_settings(p_drop=0.2, max_len=120, finetune_context=True), offset=2)
    model = read_model(write_folder(tmp_path / "aware", config, random_tensors(config, CLASSES)))
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
    model = read_model(write_folder(tmp_path / "agnostic", config, random_tensors(config, CLASSES)))
    assert isinstance(model, ContextAgnosticClassifier)
    assert (model.config.margin_frames, model.config.encoder.cluster_dropout) == (1, 0)


def test_a_segment_classifier_is_known_by_its_tensors_too(tmp_path: Path) -> None:
    config = agnostic_config(dbof_settings())
    tensors = random_tensors(config, CLASSES)
    del config["pure_segment"]
    model = read_model(write_folder(tmp_path / "theirs", config, tensors))
    assert isinstance(model, ContextAgnosticClassifier)
    assert model.config.margin_frames == 3


def test_files_from_before_torch_saved_archives_are_read(tmp_path: Path) -> None:
    config = video_config(dbof_settings())
    tensors = random_tensors(config, CLASSES)
    folder = write_folder(tmp_path / "theirs", config, tensors)
    expected = ours(read_model(folder), *random_input())
    kept = OrderedDict((name, nn.Parameter(t) if t.is_floating_point() else t) for name, t in tensors.items())
    torch.save(kept, folder / "model.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(ours(read_model(folder), *random_input()), expected)


# ----------------------------------------------------------------------------------------------------- what it is then


def test_an_imported_model_trains_on(tmp_path: Path) -> None:
    video, segment = random_input(batch=8)
    for config in (
        agnostic_config(nextvlad_settings()),
        agnostic_config(dbof_settings()),
        aware_config(dbof_settings(), nextvlad_settings(), head_settings()),
    ):
        folder = write_folder(tmp_path / "theirs", config, random_tensors(config, CLASSES))
        model = read_model(folder).train()
        wanted = (torch.rand(8, CLASSES, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        frozen = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("context_")}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        losses = []
        for _ in range(12):
            torch.manual_seed(0)
            inputs = [segment, torch.full((8,), 11)]
            if isinstance(model, ContextAwareClassifier):
                inputs.append(model.encode_context(video, torch.full((8,), 47)))
            loss = nn.functional.binary_cross_entropy_with_logits(model(*inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            assert all(parameter.grad is not None for parameter in trained)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
        assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())


def test_imported_video_classifiers_are_base_models(tmp_path: Path) -> None:
    video, segment = random_input()
    bases = []
    for name, network in (("dbof", dbof_settings()), ("nextvlad", nextvlad_settings())):
        config = video_config(network)
        folder = write_folder(tmp_path / name, config, random_tensors(config, CLASSES))
        import_model(folder, tmp_path / f"our-{name}", vocabulary_digest="abc", num_classes=CLASSES)
        bases.append(load_model(tmp_path / f"our-{name}", vocabulary_digest="abc"))
    context, cut = bases
    assert isinstance(context, VideoClassifier)
    assert isinstance(cut, VideoClassifier)
    agnostic = ContextAgnosticClassifier.from_video_classifier(cut).eval()
    lengths = torch.full((3,), 11)
    with torch.no_grad():
        assert torch.equal(agnostic(segment, lengths), cut(segment, lengths))
    aware = ContextAwareClassifier.from_video_classifiers(context, cut, fusion=FusionConfig(output_size=8))
    assert ours(aware.eval(), video, segment).shape == (3, CLASSES)


def test_a_model_folder_of_ours_says_where_it_comes_from(tmp_path: Path) -> None:
    config = video_config(dbof_settings())
    folder = write_folder(tmp_path / "gated", config, random_tensors(config, CLASSES))
    made = import_model(folder, tmp_path / "new" / "out", vocabulary_digest="abc", num_classes=CLASSES)
    assert (made.kind, made.num_classes, made.difference) == ("video", CLASSES, None)
    assert made.num_parameters == sum(p.numel() for p in read_model(folder).parameters())
    said = read_description(tmp_path / "new" / "out")
    assert (said.kind, said.num_classes, said.vocabulary) == ("video", CLASSES, "abc")
    assert said.provenance["imported_from"] == "gated/model.pth"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]


def test_imported_models_predict_and_are_merged_with_the_original_s_probabilities(tmp_path: Path) -> None:
    """Every segment of some videos, from shards to stored probabilities, against the plain formulas."""
    videos = random_videos(3, num_frames=(61, 90))
    write_shard(tmp_path / "shards" / "a.tfrecord", videos)
    vocabulary = write_vocabulary(tmp_path / "segment_vocabulary.csv", CLASSES)
    configs = {
        "agnostic": agnostic_config(nextvlad_settings()),
        "aware": aware_config(nextvlad_settings(add_batchnorm=False), dbof_settings(), head_settings()),
    }
    tensors = {}
    for name, config in configs.items():
        tensors[name] = random_tensors(config, CLASSES)
        folder = write_folder(tmp_path / "theirs" / name, config, tensors[name])
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
        wanted = torch.cat(expected).numpy()
        codes = np.stack([store.codes(name, class_index) for class_index in range(CLASSES)], axis=1)
        # Single precision, and half a step of the 16-bit codes.
        allowed = 1e-5 + 1.01 * MAX_LOGIT_ERROR * wanted * (1 - wanted)
        assert (np.abs(probabilities_of_codes()[codes] - wanted) < allowed).all()
    merged = succeeds("submit", tmp_path / "predictions", *shards, "--out", tmp_path / "submission.csv").out
    assert "the arithmetic mean of 2 models (agnostic, aware)" in merged


# ----------------------------------------------------------------------------------------------------------- the check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A context-aware model of 2019 and, beside its files, an example that is right."""
    config = aware_config(dbof_settings(), nextvlad_settings(), head_settings())
    tensors = random_tensors(config, CLASSES)
    folder = write_folder(tmp_path / "theirs", config, tensors)
    video, segment = random_input(batch=40)
    write_example(folder / "example.npz", video, segment, reference.probabilities(config, tensors, video, segment))
    return folder


def test_the_check_finds_the_largest_difference(folder: Path) -> None:
    model = read_model(folder)
    example = read_example(folder / "example.npz")
    assert largest_difference(model, example) < 1e-6
    for row in (1, 39):
        changed = example.probabilities.copy()
        changed[row, 2] += 0.25
        found = largest_difference(model, type(example)(example.path, example.video, example.segment, changed))
        assert found == pytest.approx(0.25, abs=1e-6)
    changed[0, 0] = np.nan
    found = largest_difference(model, type(example)(example.path, example.video, example.segment, changed))
    assert found == float("inf")


def test_a_model_that_fails_its_check_is_not_left_behind(folder: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(folder / "example.npz"))
    arrays["probabilities"][0, 0] += 2e-5
    np.savez(folder / "example.npz", **arrays)
    vocabulary = write_vocabulary(tmp_path / "segment_vocabulary.csv", CLASSES)
    arguments = ["--check", folder / "example.npz", "--vocabulary", vocabulary]
    said = refused(1, "import-2019", folder, tmp_path / "out", *arguments)
    assert said.startswith(
        f"{folder / 'example.npz'}: a probability of the imported model is 2e-05 from the original's"
    )
    assert said.endswith(f"{tmp_path / 'out'} was not written.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["segment_vocabulary.csv", "theirs"]
    arrays["probabilities"][0, 0] -= 1.9e-5
    np.savez(folder / "example.npz", **arrays)
    succeeds("import-2019", folder, tmp_path / "out", *arguments)


def write_vocabulary(path: Path, num_classes: int) -> Path:
    path.write_text("Index,Name\n" + "".join(f"{3 * row},class {row}\n" for row in range(num_classes)))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"probabilities": None}, "expected an array 'probabilities' of floats"),
        ({"probabilities": np.zeros((40, CLASSES), np.int64)}, "expected an array 'probabilities' of floats"),
        ({"probabilities": np.zeros((40, CLASSES + 1))}, "has probabilities of 8 classes, the model 7"),
        (
            {"probabilities": np.zeros((3, CLASSES))},
            "expected 'video' as bytes, 3 x frames x 1152, found uint8 40 x 47",
        ),
        ({"video": None}, "has no frames under 'video'"),
        ({"segment": None}, "has no frames under 'segment'"),
        (
            {"segment": np.zeros((40, 11, 1152))},
            "expected 'segment' as bytes, 40 x frames x 1152, found float64 40 x 11",
        ),
        ({"segment": np.zeros((40, 0, 1152), np.uint8)}, "has no frames under 'segment'"),
        (
            {"video": np.zeros((40, 40, 1152), np.uint8)},
            "its videos keep 0 frames without the first 30 and the last 10",
        ),
        ({"video": np.zeros((40, 191, 1152), np.uint8)}, "its videos keep 151 frames"),
        ({"video": np.array([{}])}, "cannot be read as a NumPy archive, .npz (ValueError)"),
    ],
)
def test_examples_that_are_none(folder: Path, tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    arrays = {**np.load(folder / "example.npz"), **changes}
    np.savez(folder / "example.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(Yt8mError) as caught:
        import_model(
            folder, tmp_path / "out", vocabulary_digest="abc", num_classes=CLASSES, example=folder / "example.npz"
        )
    assert str(caught.value).startswith(f"{folder / 'example.npz'}: ")
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_examples_that_are_no_archives(folder: Path) -> None:
    path = folder / "example.npz"
    whole = path.read_bytes()
    for content in (b"", whole[:5000], b"words", pickle.dumps(Hostile())):
        path.write_bytes(content)
        with pytest.raises(Yt8mError, match="cannot be read as a NumPy archive"):
            read_example(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(Yt8mError, match="cannot be read as a NumPy archive"):
        read_example(path)
    path.unlink()
    with pytest.raises(UsageError, match="there is no such file"):
        read_example(path)


# ------------------------------------------------------------------------------------------------------------ refusals


def sentence(folder: Path, kind: type[Yt8mError]) -> str:
    with pytest.raises(Yt8mError) as caught:
        read_model(folder)
    assert type(caught.value) is kind, caught.value
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(str(folder))
    assert said.endswith(".")
    assert len(said) < 600 + len(str(folder))
    return said


class Hostile:
    """A pickle that creates a file in the working directory when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def hidden_in(where: str) -> object:
    if where == "dict":
        return {"model.encoder.0.weight": Hostile()}
    return Hostile() if where == "file" else [torch.zeros(2), Hostile()]


@pytest.mark.parametrize("where", ["file", "list", "dict"])
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_hostile_pickle_is_refused_and_never_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, is_archive: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(hidden_in(where), folder / "model.pth", _use_new_zipfile_serialization=is_archive)
    said = refused(1, "import-2019", folder, tmp_path / "out")
    assert said == (
        f"{folder / 'model.pth'}: asks for posix.mkdir when it is unpickled, where only tensors are allowed; nothing of it "
        "was run."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    torch.load(folder / "model.pth", weights_only=False)
    assert (tmp_path / "ran").is_dir(), "the pickle was not hostile after all"


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_that_torch_did_not_write(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (Hostile(), {"weight": [1.0]}, "words"):
        (folder / "model.pth").write_bytes(pickle.dumps(content, protocol))
        sentence(folder, Yt8mError)
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused_by_name(folder: Path) -> None:
    torch.save(nn.Linear(2, 2), folder / "model.pth")
    assert "asks for torch.nn.modules.linear.Linear when it is unpickled" in sentence(folder, Yt8mError)


def test_a_damaged_file_is_said_in_a_sentence(folder: Path) -> None:
    path = folder / "model.pth"
    whole = path.read_bytes()
    legacy = folder / "legacy.pth"
    torch.save(torch.load(path, weights_only=True), legacy, _use_new_zipfile_serialization=False)
    old = legacy.read_bytes()
    cut = [content[: len(content) * share // 8] for content in (whole, old) for share in range(8)]
    for content in (*cut, whole[:-30], old[:-30], b"words", bytes(1000), whole[100:]):
        path.write_bytes(content)
        sentence(folder, Yt8mError)
    generator = np.random.default_rng(0)
    for content in (whole, old):
        for _ in range(60):
            damaged = bytearray(content)
            for place in generator.integers(0, min(len(content), 20_000), 8):
                damaged[place] = generator.integers(256)
            path.write_bytes(damaged)
            with suppress(Yt8mError):  # anything else is a defect; where only numbers were hit, there is no error
                read_model(folder)


def test_a_compressed_archive_is_refused(folder: Path) -> None:
    path = folder / "model.pth"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert "is compressed inside" in sentence(folder, Yt8mError)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.zeros(2)], "holds a list, expected a state dict"),
        (torch.zeros(2), "holds a Tensor, expected a state dict"),
        ({"state_dict": {"a": torch.zeros(2)}}, "holds a dict under 'state_dict', expected a state dict"),
        ({3: torch.zeros(2)}, "holds a Tensor under '3', expected a state dict"),
        ({"expert_fc.2.bias": torch.zeros(1).expand(1 << 50)}, "expert_fc.2.bias is not stored number by number"),
        ({"expert_fc.2.bias": torch.zeros(3, device="meta")}, "expert_fc.2.bias is not stored number by number"),
        ({"expert_fc.2.bias": torch.eye(3).to_sparse()}, "expert_fc.2.bias is not stored number by number"),
        ({}, "missing context_model.encoder.0.weight, context_model.encoder.0.bias, "),
    ],
)
def test_what_is_no_state_dict(folder: Path, content: Any, expected: str) -> None:
    torch.save(content, folder / "model.pth")
    assert expected in sentence(folder, Yt8mError)


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
    said = sentence(folder, Yt8mError)
    assert "these are not the weights of the network in config.yaml: missing gating_fc.2.bias;" in said
    assert "unknown gating_fc.2.biases;" in said
    assert "context_model.encoder.3.fc1.weight (float32 4x16 instead of float32 4x16x1)" in said
    assert "segment_model.audio_encoder.centroids (float32 2x5 instead of float32 2x32)" in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_tensors_of_other_types(folder: Path, dtype: torch.dtype) -> None:
    change(folder, lambda tensors: tensors.update({"expert_fc.2.bias": tensors["expert_fc.2.bias"].to(dtype)}))
    name = str(dtype).removeprefix("torch.")
    assert f"misshapen expert_fc.2.bias ({name} 28 instead of float32 28)" in sentence(folder, Yt8mError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite(folder: Path, value: float) -> None:
    change(folder, lambda tensors: tensors["context_model.encoder.0.weight"].__setitem__((3, 4), value))
    assert "there are values that are not finite in context_model.encoder.0.weight." in sentence(folder, Yt8mError)


def test_variances_below_zero(folder: Path) -> None:
    name = "segment_model.video_encoder.soft_assignment_mapper.1.bn.running_var"
    change(folder, lambda tensors: tensors[name].__setitem__(1, -1))
    assert f"there are variances below zero in {name}." in sentence(folder, Yt8mError)


def test_experts_that_classes_cannot_share(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"expert_fc.2.bias": torch.zeros(29)}))
    assert "expert_fc.2.bias (float32 29 instead of float32 28)" in sentence(folder, Yt8mError)


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
def test_settings_that_are_wrong(folder: Path, section: str, changes: dict[str, object], expected: str) -> None:
    edit_config(folder, section, **changes)
    assert expected in sentence(folder, UsageError)


@pytest.mark.parametrize("section", ["context_base", "segment_base", "segment_w_context"])
def test_settings_of_huge_networks_allocate_nothing(folder: Path, section: str) -> None:
    edit_config(folder, section, fcn_dim=1 << 20)
    assert "misshapen" in sentence(folder, Yt8mError)
    edit_config(folder, "context_base", hidden_dim=1 << 20)
    edit_config(folder, "segment_base", n_clusters=1 << 20)
    edit_config(folder, "segment_w_context", n_mixture=1 << 20)
    assert "misshapen" in sentence(folder, Yt8mError)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("just words", "is not that of a model of 2019"),
        ("", "is not that of a model of 2019"),
        ("training: {}", "is not that of a model of 2019"),
        ("[1, 2", "is not valid YAML"),
        (f"{BOMB}video: {{model: {{type: *a29}}}}", "is not valid YAML: it holds more than 100,000 values"),
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
def test_config_files_that_are_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "config.yaml").write_text(content)
    assert expected in sentence(folder, UsageError)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_config_of_one_model_and_weights_of_another(tmp_path: Path) -> None:
    videos, segments = video_config(dbof_settings()), agnostic_config(dbof_settings())
    folder = write_folder(tmp_path / "theirs", segments, random_tensors(videos, CLASSES))
    assert "has a section 'pure_segment'" in sentence(folder, UsageError)
    write_folder(
        folder, aware_config(dbof_settings(), dbof_settings(), head_settings()), random_tensors(videos, CLASSES)
    )
    assert "unknown model.encoder.0.weight, " in sentence(folder, Yt8mError)
    other = nextvlad_settings(add_batchnorm=False)
    write_folder(folder, video_config(other), random_tensors(video_config(nextvlad_settings()), CLASSES))
    assert "missing model.video_encoder.soft_assignment_mapper.weight, " in sentence(folder, Yt8mError)


def test_folders_and_files_that_are_absent(folder: Path) -> None:
    assert sentence(folder / "no", UsageError) == f"{folder / 'no'}: there is no such model folder."
    (folder / "model.pth").unlink()
    assert f"{folder}: has no model.pth; " in sentence(folder, UsageError)
    (folder / "config.yaml").unlink()
    assert f"{folder}: has no config.yaml; " in sentence(folder, UsageError)


def test_the_vocabulary_has_to_have_as_many_classes(folder: Path, tmp_path: Path) -> None:
    said = refused(2, "import-2019", folder, tmp_path / "out")
    assert said.startswith(f"{folder}: this model has 7 classes, and the vocabulary 1,000; ")
    wrong = write_vocabulary(tmp_path / "wrong.csv", 8)
    assert "the vocabulary 8; " in refused(2, "import-2019", folder, tmp_path / "out", "--vocabulary", wrong)
    assert not (tmp_path / "out").exists()
    right = write_vocabulary(tmp_path / "right.csv", 7)
    succeeds("import-2019", folder, tmp_path / "out", "--vocabulary", right)
    assert read_description(tmp_path / "out").vocabulary == Vocabulary.load(right).digest


def test_an_import_replaces_nothing(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path, folder, folder / "model.pth"):
        assert "exists already, and an import replaces nothing" in refused(2, "import-2019", folder, out)
    assert sorted(tmp_path.rglob("*")) == before
