"""The command import-2019."""

from __future__ import annotations

from pathlib import Path

from tests.support import reference_2019 as reference
from tests.support.command import refused, succeeds
from yt8m.models.description import read_description
from yt8m.vocabulary import Vocabulary

NUM_CLASSES = 4


def test_import_2019_converts_and_checks_a_model(tmp_path: Path) -> None:
    config = reference.agnostic_config(reference.dbof_settings())
    tensors = reference.random_tensors(config, NUM_CLASSES)
    folder = reference.write_folder(tmp_path / "theirs", config, tensors)
    video, segment = reference.random_input()
    expected = reference.probabilities(config, tensors, video, segment)
    example = reference.write_example(tmp_path / "example.npz", video, segment, expected)
    vocabulary = tmp_path / "segment_vocabulary.csv"
    vocabulary.write_text("Index,Name\n" + "".join(f"{3 * row},class {row}\n" for row in range(NUM_CLASSES)))

    out = tmp_path / "models/ours"
    shown = succeeds("import-2019", folder, out, "--check", example, "--vocabulary", vocabulary)
    converted, checked = shown.out.splitlines()
    assert converted.startswith(f"{out}: agnostic classifier of 4 classes, ")
    assert converted.endswith(" parameters")
    assert checked.startswith(f"{example}: probabilities differ by at most ")
    assert checked.endswith(" (1e-05 is allowed)")
    assert shown.err == ""
    assert read_description(out).vocabulary == Vocabulary.load(vocabulary).digest

    # Without --vocabulary, the model must have the classes of the challenge.
    sentence = refused(2, "import-2019", folder, tmp_path / "official")
    assert "1,000" in sentence
    assert not (tmp_path / "official").exists()


def test_import_2019_refuses_other_folders(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert str(folder) in refused(2, "import-2019", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
