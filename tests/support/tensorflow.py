"""TensorFlow as an independent reader and writer of shards; tests that import this module are skipped without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is the independent reader and writer of these tests")


def read_with_tensorflow(path: Path) -> list[dict[str, Any]]:
    """Records of a shard, read and parsed by TensorFlow."""
    integers = tf.io.VarLenFeature(tf.int64)
    context_features = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": integers,
        "segment_labels": integers,
        "segment_start_times": integers,
        "segment_end_times": integers,
        "segment_scores": tf.io.VarLenFeature(tf.float32),
    }
    sequence_features = {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in ("rgb", "audio")}
    records = []
    for serialized in tf.data.TFRecordDataset(str(path)):
        context, lists = tf.io.parse_single_sequence_example(serialized, context_features, sequence_features)
        found = {name: value.values.numpy().tolist() for name, value in context.items() if name != "id"}
        found["id"] = context["id"].numpy().decode()
        found["frames"] = np.concatenate(
            [tf.io.decode_raw(lists[name], tf.uint8).numpy() for name in ("rgb", "audio")], axis=1
        )
        records.append(found)
    return records
