"""The how-to of own videos, from ten files to a fine-tuned model: its commands and its files, with tiny networks."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.command import succeeds
from tests.support.extractors import PlainExtractor
from tests.support.videos import Sound, write_video
from yt8m.dataset.catalog import Catalog
from yt8m.models.saved import load_model

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to.md"

TINY = {
    **{f"base_models.{name}.classifier.encoder.output_size": 8 for name in ("dbof", "nextvlad")},
    **{f"base_models.{name}.training.steps": 4 for name in ("dbof", "nextvlad")},
    **{f"base_models.{name}.training.evaluate_every": 2 for name in ("dbof", "nextvlad")},
    **{f"base_models.{name}.training.batch_size": 8 for name in ("dbof", "nextvlad")},
    "base_models.dbof.classifier.encoder.hidden_size": 16,
    "base_models.nextvlad.classifier.encoder.num_clusters": 2,
    "base_models.nextvlad.classifier.encoder.num_groups": 4,
    **{
        f"segment_models.{name}.training.{setting}": value
        for name in ("agnostic-dbof", "agnostic-nextvlad", "aware-dbof-nextvlad")
        for setting, value in (("steps", 4), ("evaluate_every", 2), ("batch_size", 8))
    },
    "segment_models.aware-dbof-nextvlad.fusion.output_size": 8,
    "machine.accelerator": "cpu",
}
"""Settings in place of the demo's."""


def section(title: str) -> str:
    """A section of the page."""
    found: str = re.split(r"^## ", HOW_TO.read_text().split(f"## {title}\n")[1], flags=re.MULTILINE)[0]
    return found


def run_line(line: str) -> str:
    """Run a line of a shell block; the demo's networks are replaced by tiny ones."""
    words = shlex.split(line, comments=True)
    if words[0] != "yt8m":
        subprocess.run(words, check=True)
        return ""
    tiny = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")] if words[1] == "run" else []
    return succeeds(*words[1:], *tiny).out


@pytest.mark.slow
@pytest.mark.parametrize("networks", ["plain", "random"])
def test_ten_files_become_a_fine_tuned_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YT8M_VIDEOS", str(tmp_path / "cache"))
    if networks == "plain":
        monkeypatch.setattr("yt8m.cli.extraction.load_extractor", lambda accelerator, weights: PlainExtractor())
        monkeypatch.setattr("yt8m.cli.prediction.load_extractor", lambda accelerator, weights: PlainExtractor())
    else:
        monkeypatch.setenv("YT8M_WEIGHTS", str(request.getfixturevalue("random_weights")))
    for folder in ("train", "held-out"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
    for number, name in enumerate([f"{kind}-{k}" for k in range(1, 6) for kind in ("dog", "surf")]):
        place, seconds = ("held-out", 46) if name.endswith("5") else ("train", 12)
        write_video(
            tmp_path / "videos" / place / f"{name}.mp4", seconds, rate=5, size=(64 + 2 * number, 64), sound=Sound()
        )
    text = section("Train on own videos")
    first, second = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in first.splitlines():
        run_line(line)
    named = re.findall(r"`(own/[\w/]+\.csv)`", text)[:4]
    tables = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    assert named == [
        "own/segment_vocabulary.csv", "own/video/train/labels.csv", "own/video/valid/labels.csv",
        "own/video/train/ratings.csv",
    ]  # fmt: skip
    for name, table in zip(named, tables, strict=True):
        Path(name).write_text(table)
    described, _, located = [run_line(line) for line in second.splitlines()]
    assert "(dropped)" not in described
    catalog = Catalog.load(tmp_path / "own/segment/train")
    assert (len(catalog), len(catalog.label_values), len(catalog.rating_labels)) == (8, 8, 8)
    assert len(catalog.shards) == 8
    for model in ("agnostic-dbof", "agnostic-nextvlad", "aware-dbof-nextvlad"):
        loaded = load_model(tmp_path / "runs/own/finetune" / model / "model")
        assert loaded is not None
    submission = (tmp_path / "runs/own/submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in submission] == ["Class", "0", "1"]
    ids = set(Catalog.load(tmp_path / "own/segment/test").video_ids)
    assert {segment.rpartition(":")[0] for line in submission[1:] for segment in line.split(",")[1].split()} == ids
    assert "dog" in located
    assert "surfing" in located
