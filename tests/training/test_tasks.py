"""Training tasks: metrics against scikit-learn, and the parameters that training changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from tests.support.rows import labels_of, ratings_of
from tests.support.tiny_shards import TinyVideo, random_videos, write_shard, write_shards
from tests.support.tiny_tasks import CONFIG, segment_case, video_case, video_classifier
from yt8m.dataset.batches import SINGLE_PROCESS, FrameSampling, ProcessSlice, join_features
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier
from yt8m.models.config import DBoFConfig, MixtureConfig
from yt8m.training.config import SegmentLossConfig
from yt8m.training.loop import Trainer
from yt8m.training.losses import segment_loss
from yt8m.training.tasks import ContextVectors, SegmentTask, VideoTask
from yt8m.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def batch_of_one(reader: FrameReader, row: int, seconds: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of one video as a batch of one."""
    frames = torch.from_numpy(reader.read(row)[seconds].copy()).unsqueeze(0)
    return frames, torch.tensor([len(seconds)])


def context_seconds(num_frames: int, max_frames: int = 12) -> np.ndarray:
    """The middle frames of equal parts of the cropped video."""
    length = num_frames - 40
    return np.array([30 + int((part + 0.5) * length / max_frames) for part in range(max_frames)])


# --- Evaluation ------------------------------------------------------------------------------------------------------


def diversified(model: torch.nn.Module) -> torch.nn.Module:
    """Make the predictions of an untrained model differ between videos and classes; keep its context encoder."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean") and not name.startswith("context_encoder."):
                buffer.normal_(0, 0.2, generator=generator)
        for name, parameter in model.named_parameters():
            if name.startswith("mixture.experts"):
                parameter.normal_(0, 2, generator=generator)
    return model.eval()


def test_video_metrics_match_scikit_learn(tiny_dataset: Path, fabric: Fabric) -> None:
    model, task = video_case(tiny_dataset)
    task.valid = task.train
    chosen = range(1, 6)
    task.valid_rows = np.array(chosen)
    diversified(model)
    found = task.evaluate(fabric, model)
    catalog = task.train.catalog
    with torch.no_grad():
        rows = [batch_of_one(task.train, row, context_seconds(catalog.num_frames[row])) for row in chosen]
        p = torch.sigmoid(torch.cat([model(*row) for row in rows])).double().numpy()
    y = np.array([[i in labels_of(catalog, row) for i in task.vocabulary.label_ids] for row in chosen])
    shown = y.any(axis=0)
    assert 3 < shown.sum() < len(shown)
    assert found == {
        "loss": pytest.approx(np.mean([log_loss(y[:, c], p[:, c], labels=[0, 1]) for c in range(y.shape[1])]), rel=1e-4),
        "auc": pytest.approx(roc_auc_score(y.ravel(), p.ravel()), abs=1e-6),
        "map": pytest.approx(average_precision_score(y[:, shown], p[:, shown], average="macro"), abs=1e-6),
    }  # fmt: skip
    assert 0.2 < found["auc"] < 0.8


@pytest.mark.parametrize("kind", ["agnostic", "aware"])
def test_segment_metrics_match_scikit_learn(kind: str, tiny_dataset: Path, fabric: Fabric) -> None:
    model, task = segment_case(tiny_dataset, kind)
    diversified(model)
    found = task.evaluate(fabric, model)
    catalog, classes = task.reader.catalog, task.vocabulary.label_ids.tolist()
    p, y, of_class = [], [], []
    for row in range(len(catalog)):
        # Fold 1 of 4; each shard of this dataset contains one video.
        if catalog.shard_index[row] % 4 != 1:
            continue
        length = int(catalog.num_frames[row])
        for label, start, value in zip(*ratings_of(catalog, row), strict=True):
            if label not in classes:
                continue
            inputs = batch_of_one(task.reader, row, np.arange(start - 3, min(start + 8, length)))
            if isinstance(model, ContextAwareClassifier):
                inputs += (model.encode_context(*batch_of_one(task.reader, row, context_seconds(length))),)
            with torch.no_grad():
                logits = model(*inputs)[0]
            p.append(torch.sigmoid(logits[classes.index(label)]).item())
            y.append(int(value))
            of_class.append(int(label))
    p, y, of_class = np.array(p), np.array(y), np.array(of_class)
    assert len(y) == len(task.valid_ratings) > 20
    shown = [label for label in set(of_class) if y[of_class == label].any()]
    precisions = [average_precision_score(y[of_class == label], p[of_class == label]) for label in shown]
    assert found == {
        "loss": pytest.approx(-np.mean(1.5 * y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-4),
        "auc": pytest.approx(roc_auc_score(y, p), abs=1e-6),
        "map": pytest.approx(np.mean(precisions), abs=1e-6),
    }
    assert len(shown) > 1


def test_evaluation_in_batches_counts_every_example_once(tiny_dataset: Path, fabric: Fabric) -> None:
    cases = [video_case(tiny_dataset), segment_case(tiny_dataset, "agnostic")]
    undivided = [task.evaluate(fabric, diversified(model)) for model, task in cases]
    for expected, (model, task) in zip(undivided, cases, strict=True):
        task.evaluation_batch_size = 3
        assert task.evaluate(fabric, model) == pytest.approx(expected, rel=1e-5)


# --- Training --------------------------------------------------------------------------------------------------------


def test_folds_split_the_ratings_by_shard(tiny_dataset: Path) -> None:
    _, task = segment_case(tiny_dataset, "agnostic")
    shards = task.reader.catalog.shard_index
    train, valid = shards[task.train_ratings.rows], shards[task.valid_ratings.rows]
    assert set(valid.tolist()) == {1, 5, 9, 13}
    assert not set(train.tolist()) & set(valid.tolist())
    # Both folds exclude labels that the shortened vocabulary lacks.
    known = np.isin(task.reader.catalog.rating_labels, task.vocabulary.label_ids)
    assert len(train) + len(valid) == known.sum()


@pytest.mark.parametrize("kind", ["agnostic", "aware"])
def test_cached_context_vectors_give_the_loss_of_the_complete_model(kind: str, tiny_dataset: Path) -> None:
    model, task = segment_case(tiny_dataset, kind)
    diversified(model)
    batch = task.batches(SINGLE_PROCESS)[0]
    inputs = [join_features(batch), batch.lengths]
    if kind == "aware":
        context = [
            batch_of_one(task.reader, row, context_seconds(task.reader.catalog.num_frames[row]))
            for row in batch.rows.tolist()
        ]
        inputs += [torch.cat([model.encode_context(*video) for video in context])]
    expected = segment_loss(model(*inputs), batch.class_indices, batch.ratings, batch.negatives)
    assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert task.batches(ProcessSlice(1, 2))[0].rows.tolist() == batch.rows.tolist()[4:]


def test_the_loss_uses_the_configured_weights(tiny_dataset: Path) -> None:
    model, task = segment_case(tiny_dataset, "agnostic")
    diversified(model)
    batch = task.batches(SINGLE_PROCESS)[0]
    task.config = SegmentLossConfig(positive_weight=4.0, mined_weight=2.0)
    logits = model(join_features(batch), batch.lengths)
    expected = segment_loss(logits, batch.class_indices, batch.ratings, batch.negatives, 4.0, 2.0)
    assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    default = SegmentLossConfig()
    assert (default.positive_weight, default.mined_weight) == (1.5, 0.5)


def test_training_does_not_change_the_context_encoder(tiny_dataset: Path, tmp_path: Path, fabric: Fabric) -> None:
    model, task = segment_case(tiny_dataset, "aware")
    assert isinstance(model, ContextAwareClassifier)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = np.union1d(task.train_ratings.rows, task.valid_ratings.rows)
    vectors = task._context.lookup(torch.from_numpy(rows))
    Trainer(fabric, model, task, CONFIG.model_copy(update={"steps": 3}), tmp_path, 3).fit()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("context_encoder.") for name in changed)
    assert changed >= {name for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    # The trained model encodes evenly spaced frames of the crop to the same vectors.
    for row, vector in zip(rows.tolist(), vectors, strict=True):
        seconds = context_seconds(task.reader.catalog.num_frames[row])
        expected = model.encode_context(*batch_of_one(task.reader, row, seconds))[0]
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)
    again = ContextVectors(fabric, model, task.reader, rows).lookup(torch.from_numpy(rows))
    assert torch.equal(vectors, again)
    assert vectors.unique(dim=0).shape == vectors.shape


def test_the_segment_encoder_is_trained_at_half_the_learning_rate(
    tiny_dataset: Path, tmp_path: Path, fabric: Fabric
) -> None:
    model, task = segment_case(tiny_dataset, "aware")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    config = CONFIG.model_copy(update={"steps": 1, "warmup": 0.0, "weight_decay": 0.0, "peak_lr": 1e-3})
    Trainer(fabric, model, task, config, tmp_path, 3).fit()
    # AdamW's first step has the size of the learning rate, except where the gradient is near zero, such as for a bias
    # before a batch norm.
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            step = (parameter.detach() - before[name]).abs().max().item()
            assert step == pytest.approx(5e-4 if name.startswith("segment_encoder.") else 1e-3, rel=0.02), name


@pytest.mark.parametrize("kind", ["agnostic", "aware"])
def test_mixed_precision_applies_to_training_and_evaluation(kind: str, tiny_dataset: Path, tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model, task = segment_case(tiny_dataset, kind, fabric)
    seen: list[tuple[bool, torch.dtype]] = []
    layer = model.fusion if isinstance(model, ContextAwareClassifier) else model.encoder.video_projection
    layer.register_forward_hook(lambda module, _inputs, output: seen.append((module.training, output.dtype)))
    Trainer(fabric, model, task, CONFIG.model_copy(update={"steps": 2, "peak_lr": 1e-3}), tmp_path, 3).fit()
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert all(p.dtype == torch.float32 for p in model.parameters())


# --- Input validation ------------------------------------------------------------------------------------------------

CLASSES = Vocabulary(np.array([5, 3]), ("five", "three"))


def test_held_out_videos_without_a_class_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", random_videos(4, label_ids=[3, 5]))
    write_shards(tmp_path / "valid", random_videos(4, label_ids=[8, 9]))
    train, valid = (FrameReader(index_folder(tmp_path / part)) for part in ("train", "valid"))
    with pytest.raises(UsageError, match=r"valid: none of its \d+ videos has a label of the segment vocabulary; check"):
        VideoTask(train, valid, CLASSES, 10, FrameSampling(10), 2, 0, {})


@pytest.mark.parametrize(
    ("held_out", "problem"),
    [
        ([], "the held-out folds (fold 0 of 2 is held out) need positive and negative ratings of segment classes, "
             "found 0 positive of 0."),
        ([(3, 30, 1.0), (8, 30, 0.0)], "the held-out folds (fold 0 of 2 is held out) need positive and negative ratings of "
             "segment classes, found 1 positive of 1."),
        ([(3, 30, 0.0), (3, 35, 0.0)], "found 0 positive of 2."),
    ],
)  # fmt: skip
def test_folds_without_positive_and_negative_ratings_are_refused(
    held_out: list[tuple[int, int, float]], problem: str, tmp_path: Path, fabric: Fabric
) -> None:
    frames = np.zeros((60, 1152), np.uint8)
    write_shard(tmp_path / "a.tfrecord", [TinyVideo("aaaa", frames, (3,), tuple(held_out))])
    write_shard(tmp_path / "b.tfrecord", [TinyVideo("bbbb", frames, (3,), ((3, 30, 1.0), (5, 30, 0.0)))])
    reader = FrameReader(index_folder(tmp_path))
    video = video_classifier(DBoFConfig(hidden_size=4, output_size=2), CLASSES, 0.0)
    assert video.config.mixture == MixtureConfig(num_experts=2, dropout=0.0)
    model = ContextAgnosticClassifier.from_video_classifier(video)

    def task(fold: int) -> SegmentTask:
        return SegmentTask(fabric, model, reader, CLASSES, fold, 2, SegmentLossConfig(), 2, 0, {})

    with pytest.raises(UsageError) as raised:
        task(0)
    assert str(raised.value).startswith(f"{tmp_path}: ")
    assert str(raised.value).endswith(problem)
    with pytest.raises(UsageError, match="the training folds"):
        task(1)
