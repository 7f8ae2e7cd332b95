"""A run on features of another size, from indexing to prediction, and models that refuse other features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.command import refused, succeeds
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.features import Features, Modality
from yt8m.models.description import read_description
from yt8m.shards.writer import ShardWriter, encode_video

SEEN = Features(name="seen", rgb=Modality(size=48), audio=None)
PARTS = ("video/train", "video/valid", "segment/train", "segment/test")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """The tiny dataset, of which 48 rgb values are kept and no audio."""
    data = tmp_path_factory.mktemp("narrow") / "data"
    for part in PARTS:
        catalog = index_folder(tiny_dataset / part)
        reader = FrameReader(catalog)
        for position, shard in enumerate(catalog.shards):
            with ShardWriter(data / part / shard.name) as writer:
                for row in np.flatnonzero(catalog.shard_index == position).tolist():
                    labels = catalog.label_values[catalog.label_starts[row] : catalog.label_starts[row + 1]]
                    rated = slice(catalog.rating_starts[row], catalog.rating_starts[row + 1])
                    ratings = zip(
                        catalog.rating_labels[rated].tolist(),
                        catalog.rating_start_seconds[rated].tolist(),
                        catalog.rating_values[rated].tolist(),
                        strict=True,
                    )
                    frames = reader.read(row)[:, :48]
                    payload = encode_video(
                        catalog.id_of(row), frames, labels.tolist(), ratings=list(ratings), features=SEEN
                    )
                    writer.write(payload)
    (data / "segment_vocabulary.csv").write_bytes((tiny_dataset / "segment_vocabulary.csv").read_bytes())
    SEEN.save(data)
    return data


def test_a_run_on_other_features_and_what_refuses_them(
    narrow: Path, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    succeeds("run", tiny_recipe, "--data", narrow, "--out", out, "--set", "machine.num_workers=1")
    assert (out / "submission.csv").stat().st_size > 1000
    for stage in ("pretrain/nextvlad", "finetune/bare", "finetune/aware"):
        assert read_description(out / stage / "model").features == SEEN
    assert "seen (rgb 48)" in succeeds("describe", narrow / "segment/test").out
    model = out / "finetune/bare/model"
    succeeds("predict", model, "--shards", narrow / "segment/test", "--out", tmp_path / "again.csv")
    sentence = refused(2, "predict", model, "--shards", tiny_dataset / "segment/test", "--out", tmp_path / "x.csv")
    assert sentence == f"{model}: the model was trained on features 'seen', and these are 'youtube8m'."
    video = index_folder(tiny_dataset / "segment/test").video_ids[0]
    sentence = refused(2, "locate", video, "--shards", tiny_dataset / "segment/test", "--run", out)
    assert "was trained on features 'seen', and these are 'youtube8m'." in sentence


def test_parts_of_different_features_are_refused_before_training(
    narrow: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    SEEN.model_copy(update={"name": "other"}).save(narrow / "segment/test")
    sentence = refused(2, "run", tiny_recipe, "--data", narrow, "--out", tmp_path / "out")
    (narrow / "segment/test/features.yaml").unlink()
    assert sentence.startswith(f"{narrow}: a part of the dataset has features ")
    assert "'seen'" in sentence
    assert "'other'" in sentence
    assert not (tmp_path / "out/pretrain").exists()


def test_a_network_of_a_missing_modality_is_refused_before_training(
    narrow: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    heard = "base_models.nextvlad.classifier.encoder.modalities=[audio]"
    sentence = refused(2, "run", tiny_recipe, "--data", narrow, "--out", tmp_path / "out", "--set", heard)
    assert "A network of audio cannot be trained on features 'seen', which have rgb alone." in sentence
    assert not (tmp_path / "out/pretrain").exists()


def test_networks_of_one_modality_are_trained_on_both(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    alone = ["--set", "base_models.nextvlad.classifier.encoder.modalities=[audio]"]
    alone += ["--set", "base_models.dbof.classifier.encoder.modalities=[rgb]"]
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path / "out", *alone)
    config = read_description(tmp_path / "out/finetune/aware/model").config
    assert config["segment_encoder"]["modalities"] == ["audio"]
    assert config["context_encoder"]["modalities"] == ["rgb"]
