"""Loading the weights: what the files are, which alternatives there are, and what wrong files cause."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.extraction_weights import (
    GRAPH,
    GRAPH_ARCHIVE,
    INCEPTION_MATRICES,
    PCA_ARCHIVE,
    VGGISH,
    VGGISH_MATRICES,
    matrix_data,
    npy,
    random_matrices,
    random_pca,
    random_vggish,
    write_tgz,
)
from tests.support.hostile_pickle import HostilePickle
from tests.support.inception_graph import a_type, constant, node, random_graph
from yt8m.errors import UsageError, Yt8mError
from yt8m.extraction import weights
from yt8m.extraction.graph import read_frozen_graph
from yt8m.extraction.inception import InceptionV3
from yt8m.extraction.vggish import VGGish
from yt8m.extraction.weights import DIGESTS_NAME, FETCHED, Networks, load_networks, weights_folder


def loading_error(folder: Path, kind: type[Yt8mError] = Yt8mError) -> str:
    with pytest.raises(Yt8mError) as caught:
        load_networks(folder)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert message.endswith(".")
    assert "\n" not in message
    return message


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def replaced(folder: Path, name: str, content: bytes) -> Path:
    without(folder, *([name] if (folder / name).exists() else []))
    (folder / name).write_bytes(content)
    return folder


def test_features_are_whitened_activations_in_bytes(random_networks: Networks) -> None:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (2, 299, 299, 3), np.uint8))
    features = random_networks.rgb_features(images)
    assert (features.dtype, features.shape) == (np.uint8, (2, 1024))
    with torch.inference_mode():
        activations = random_networks.frames(images).double().numpy()
    arrays = random_pca()
    values = (activations - arrays["mean.npy"][:, 0]) @ arrays["eigenvecs.npy"][:1024].T.astype(np.float64)
    values /= np.sqrt(arrays["eigenvals.npy"][:1024, 0].astype(np.float64) + 1e-4)
    expected = np.round((np.clip(values, -2, 2) + 2) * 255 / 4)
    assert np.abs(features - expected).max() <= 1
    assert (features == expected).mean() > 0.999
    spectrograms = torch.from_numpy(generator.normal(0, 2, (3, 96, 64)).astype(np.float32))
    features = random_networks.audio_features(spectrograms)
    assert (features.dtype, features.shape) == (np.uint8, (3, 128))
    assert len(np.unique(features)) > 20


def test_features_do_not_depend_on_the_batch(random_networks: Networks) -> None:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (9, 299, 299, 3), np.uint8))
    together = random_networks.rgb_features(images)
    np.testing.assert_array_equal(random_networks.rgb_features(images[3:4]), together[3:4])
    np.testing.assert_array_equal(random_networks.rgb_features(images[6:]), together[6:])
    spectrograms = torch.from_numpy(generator.normal(0, 2, (11, 96, 64)).astype(np.float32))
    sizes = []
    with random_networks.audio.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        together = random_networks.audio_features(spectrograms)
    assert sizes == [8, 8], "the size of a batch decides how sums are rounded"
    np.testing.assert_array_equal(random_networks.audio_features(spectrograms[10:]), together[10:])
    np.testing.assert_array_equal(random_networks.audio_features(spectrograms[2:7]), together[2:7])


def test_missing_files_are_named_with_the_command_and_the_size(tmp_path: Path, weights_copy: Path) -> None:
    message = loading_error(tmp_path / "empty", UsageError)
    assert all(file.name in message for file in FETCHED)
    assert "`yt8m weights` fetches what is missing (about 392.60 MB), or set YT8M_WEIGHTS" in message
    message = loading_error(without(weights_copy, VGGISH_MATRICES[1]), UsageError)
    assert message.startswith(f"{weights_copy}: {VGGISH_MATRICES[1]} is missing; ")


def test_the_digest_depends_on_every_file(weights_copy: Path, random_networks: Networks) -> None:
    assert random_networks.extractor.name == "inception-vggish"
    replaced(weights_copy, VGGISH_MATRICES[0], matrix_data(np.ones((128, 1), np.float32)))
    digest = load_networks(weights_copy).extractor.digest
    assert len(digest) == 64
    assert digest != random_networks.extractor.digest


def test_extracted_files_and_matrices_are_used_like_the_archives(weights_copy: Path, random_networks: Networks) -> None:
    replaced(without(weights_copy, GRAPH_ARCHIVE), GRAPH, random_graph())
    without(weights_copy, PCA_ARCHIVE)
    arrays = random_pca()
    for name, values in arrays.items():
        replaced(weights_copy, name, npy(values))
    found = load_networks(weights_copy)
    assert all(
        torch.equal(a, b) for a, b in zip(found.frames.parameters(), random_networks.frames.parameters(), strict=True)
    )
    np.testing.assert_array_equal(found.frames_pca.projection, random_networks.frames_pca.projection)
    assert found.extractor.digest != random_networks.extractor.digest
    without(weights_copy, *arrays)
    for name, content in random_matrices(INCEPTION_MATRICES, 2048, 1024).items():
        replaced(weights_copy, name, content)
    assert load_networks(weights_copy).frames_pca.projection.shape == (2048, 1024)


def test_a_file_that_changed_since_it_was_recorded_is_refused(weights_copy: Path) -> None:
    digest = hashlib.sha256((weights_copy / VGGISH_MATRICES[0]).read_bytes()).hexdigest()
    (weights_copy / DIGESTS_NAME).write_text(f"{digest}  {VGGISH_MATRICES[0]}\nnot a line\n")
    load_networks(weights_copy)
    replaced(weights_copy, VGGISH_MATRICES[0], matrix_data(np.ones((128, 1), np.float32)))
    message = loading_error(weights_copy)
    assert f"its SHA-256 was {digest[:16]}... when it was first checked" in message


def test_the_digits_in_a_name_are_checked(weights_copy: Path) -> None:
    (weights_copy / VGGISH).rename(weights_copy / "vggish-10086976.pth")
    assert "instead of 10086976, as in its name" in loading_error(weights_copy)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (GRAPH_ARCHIVE, b"<html>404</html>", "is not compressed with gzip"),
        (PCA_ARCHIVE, b"", "is incomplete"),
        (VGGISH, b"words", "is not a pickle of tensors, as torch.save writes it"),
        (VGGISH_MATRICES[1], b"<html>404</html>", "is no matrix of MediaPipe"),
        (VGGISH_MATRICES[1], matrix_data(np.zeros((128, 64), np.float32)), "128 rows, 64 columns"),
    ],
)
def test_other_files_are_refused(weights_copy: Path, name: str, content: bytes, expected: str) -> None:
    assert expected in loading_error(replaced(weights_copy, name, content))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("mean.npy", np.zeros(2048), "mean.npy: is float64 (2048,), expected (2048, 1)"),
        ("eigenvals.npy", np.zeros((100, 1)), "eigenvals.npy: is float64 (100, 1), expected (2048, 1)"),
        ("eigenvals.npy", np.full((2048, 1), -1.0), "there are eigenvalues below zero"),
        ("eigenvecs.npy", np.full((2048, 2048), np.inf, np.float32), "there are values that are not finite"),
        ("eigenvecs.npy", np.zeros((2048, 1024), np.float32), "expected (2048, 2048)"),
    ],
)
def test_other_arrays_are_refused(weights_copy: Path, name: str, values: np.ndarray, expected: str) -> None:  # type: ignore[type-arg]
    (weights_copy / PCA_ARCHIVE).unlink()
    files = {other: npy(array) for other, array in (random_pca() | {name: values}).items()}
    write_tgz(weights_copy / PCA_ARCHIVE, files)
    assert expected in loading_error(weights_copy)


def test_a_hostile_pickle_is_never_executed(
    weights_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    without(weights_copy, VGGISH)
    torch.save({"features.0.weight": HostilePickle()}, weights_copy / VGGISH)
    assert "unpickling it requires posix.mkdir" in loading_error(weights_copy)
    assert not (tmp_path / "ran").exists()


def test_another_state_dict_is_refused() -> None:
    tensors = random_vggish()

    def problem(**changed: torch.Tensor | None) -> str:
        given = {name: value for name, value in (tensors | changed).items() if value is not None}
        with pytest.raises(Yt8mError) as caught:
            VGGish.from_state_dict(given, "vggish.pth")
        return str(caught.value)

    name = "embeddings.4.bias"
    assert problem(**{name: None}) == f"vggish.pth: is no state dict of VGGish: {name} is missing."
    assert "pproc.mean is unknown" in problem(**{"pproc.mean": torch.zeros(1)})
    assert f"{name} is torch.float32 (64,), expected torch.float32 (128,)" in problem(**{name: torch.zeros(64)})
    assert f"{name} is torch.float16 (128,)" in problem(**{name: torch.zeros(128, dtype=torch.float16)})
    assert f"values that are not finite in {name}" in problem(**{name: torch.full((128,), torch.nan)})


def test_another_graph_is_refused() -> None:
    content = random_graph()

    def problem(old: bytes, new: bytes) -> str:
        assert content.count(old) >= 1
        graph = read_frozen_graph(content.replace(old, new, 1), "graph.pb")
        with pytest.raises(Yt8mError) as caught:
            InceptionV3.from_graph(graph)
        return str(caught.value)

    size = constant("ResizeBilinear/size", np.array([299, 299], np.int32))
    other = constant("ResizeBilinear/size", np.array([224, 224], np.int32))
    assert "ResizeBilinear/size is [224, 224], expected [299, 299]." in problem(size, other)
    assert "mixed_9/conv/conv2d_params is missing, expected float32 (1, 1, 1280, 320)." in problem(
        b"mixed_9/conv/conv2d_params", b"mixed_9/CONV/conv2d_params"
    )
    variance = b"mixed_4/conv/batchnorm/moving_variance"
    assert "mixed_4/conv/batchnorm/moving_variance is missing" in problem(variance, variance.upper())
    extra = node("x", "Relu", T=a_type(1))
    graph = read_frozen_graph(extra + content, "graph.pb")
    changed = dict(graph.constants) | {"conv/batchnorm/moving_variance": np.full(32, -1, np.float32)}
    with pytest.raises(Yt8mError, match="the batch norm of conv has a negative variance"):
        InceptionV3.from_graph(type(graph)("graph.pb", changed, graph.batch_norms))
    changed = dict(graph.constants) | {"conv/batchnorm/beta": np.full(32, np.nan, np.float32)}
    with pytest.raises(Yt8mError, match=r"graph\.pb, conv/batchnorm/beta: is damaged"):
        InceptionV3.from_graph(type(graph)("graph.pb", changed, graph.batch_norms))


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YT8M_WEIGHTS", str(tmp_path / "named"))
    assert weights_folder() == tmp_path / "named"
    monkeypatch.delenv("YT8M_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights_folder() == tmp_path / "cache/yt8m/weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights_folder() == tmp_path / "home/.cache/yt8m/weights"


def test_files_are_not_larger_than_is_accepted() -> None:
    files = [file for choices in weights.PARTS.values() for choice in choices for file in choice.files]
    assert all(file.num_bytes <= file.max_bytes for file in files)
    assert len({file.name for file in files}) == len(files)
