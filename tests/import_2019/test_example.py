"""Comparison of an imported model with probabilities of the original."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command import refused, succeeds
from tests.support.hostile_pickle import HostilePickle
from tests.support.models_2019 import NUM_CLASSES, write_vocabulary
from yt8m.errors import UsageError, Yt8mError
from yt8m.import_2019.example import Example, largest_difference, read_example
from yt8m.import_2019.importing import import_model, read_model


def test_the_largest_difference_of_probabilities_is_found(folder: Path) -> None:
    model = read_model(folder)
    example = read_example(folder / "example.npz")
    assert largest_difference(model, example) < 1e-6
    for row in (1, 39):
        changed = example.probabilities.copy()
        changed[row, 2] += 0.25
        found = largest_difference(model, Example(example.path, example.video, example.segment, changed))
        assert found == pytest.approx(0.25, abs=1e-6)
    changed[0, 0] = np.nan
    found = largest_difference(model, Example(example.path, example.video, example.segment, changed))
    assert found == float("inf")


def test_a_model_that_fails_the_check_is_not_written(folder: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(folder / "example.npz"))
    arrays["probabilities"][0, 0] += 2e-5
    np.savez(folder / "example.npz", **arrays)
    vocabulary = write_vocabulary(tmp_path / "segment_vocabulary.csv", NUM_CLASSES)
    arguments = ["--check", folder / "example.npz", "--vocabulary", vocabulary]
    message = refused(1, "import-2019", folder, tmp_path / "out", *arguments)
    assert message.startswith(
        f"{folder / 'example.npz'}: a probability of the imported model differs by 2e-05 from the original's"
    )
    assert message.endswith(f"{tmp_path / 'out'} was not written.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original", "segment_vocabulary.csv"]
    arrays["probabilities"][0, 0] -= 1.9e-5
    np.savez(folder / "example.npz", **arrays)
    succeeds("import-2019", folder, tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"probabilities": None}, "expected an array 'probabilities' of floats"),
        ({"probabilities": np.zeros((40, NUM_CLASSES), np.int64)}, "expected an array 'probabilities' of floats"),
        ({"probabilities": np.zeros((40, NUM_CLASSES + 1))}, "has probabilities of 8 classes, the model 7"),
        (
            {"probabilities": np.zeros((3, NUM_CLASSES))},
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
            "its videos have 0 frames without the first 30 and the last 10",
        ),
        ({"video": np.zeros((40, 191, 1152), np.uint8)}, "its videos have 151 frames"),
        ({"video": np.array([{}])}, "cannot be read as a NumPy archive, .npz (ValueError)"),
    ],
)
def test_examples_that_do_not_match_the_model_are_rejected(
    folder: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    arrays = {**np.load(folder / "example.npz"), **changes}
    np.savez(folder / "example.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(Yt8mError) as caught:
        import_model(
            folder, tmp_path / "out", vocabulary_digest="abc", num_classes=NUM_CLASSES, example=folder / "example.npz"
        )
    assert str(caught.value).startswith(f"{folder / 'example.npz'}: ")
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_example_files_that_are_no_archives_are_rejected(folder: Path) -> None:
    path = folder / "example.npz"
    complete = path.read_bytes()
    for content in (b"", complete[:5000], b"words", pickle.dumps(HostilePickle())):
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
