"""TensorFlow reads spliced shards as YouTube-8M, with the labels and ratings of their sources."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from tests.support.spliced import CLASSES, distinct_sources, owners
from tests.support.tensorflow import read_with_tensorflow
from yt8m.synthetic.splice import Sizes, write_dataset


def test_tensorflow_reads_a_spliced_dataset(tmp_path: Path) -> None:
    sources = distinct_sources(24)
    write_dataset(tmp_path / "data", sources, CLASSES, Sizes(2, 1, 2, 2), seed=1)
    with (tmp_path / "data" / "segment" / "test_positives.csv").open(newline="") as file:
        positives = {(row["video"], int(row["label"]), int(row["start"])) for row in csv.DictReader(file)}
    classes = set(CLASSES.label_ids.tolist())
    ids, shown = [], set()
    for part, count in (("video/train", 2), ("video/valid", 1), ("segment/train", 2), ("segment/test", 2)):
        records = [
            record for path in sorted((tmp_path / "data" / part).iterdir()) for record in read_with_tensorflow(path)
        ]
        assert len(records) == count
        for record in records:
            ids.append(record["id"])
            frames = record["frames"]
            assert (frames.dtype, frames.shape[1]) == (np.uint8, 1152)
            assert 24 * 5 - 4 <= len(frames) <= 300
            found = owners(frames, sources)
            labels_per_frame = [set(sources.labels[owner].tolist()) for owner in found]
            labels = sorted(set.union(*labels_per_frame))
            ratings = list(
                zip(
                    *(record[f"segment_{name}"] for name in ("labels", "start_times", "end_times", "scores")),
                    strict=True,
                )
            )
            assert record["labels"] == ([] if part == "segment/test" else labels)
            assert len(ratings) == (5 * len(classes & set(labels)) if part == "segment/train" else 0)
            for label, start, end, score in ratings:
                assert end == start + 5
                assert score == float(label in labels_per_frame[start])
                assert all(of_frame == labels_per_frame[start] for of_frame in labels_per_frame[start:end])
            if part == "segment/test":
                for position in range(6, math.ceil(len(frames) / 5) - 2):
                    shown |= {(record["id"], label, 5 * position) for label in classes & labels_per_frame[5 * position]}
    assert len(set(ids)) == 7
    assert positives == shown
