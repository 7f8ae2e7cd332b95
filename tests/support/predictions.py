"""Predict in small recorded batches, and stop after some of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from yt8m.prediction import passes
from yt8m.prediction import predict as predict_module
from yt8m.prediction.predict import Predictions, predict
from yt8m.prediction.store import StoreIndex

SMALL = 16
"""Segments per batch and per block of a store."""


def record_batches(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Predict in batches of 16 segments.

    Args:
        monkeypatch: Restores the batch size at the end of the test.
        stop_after: Send SIGTERM to this process after this number of batches.

    Returns:
        List that receives the start of each batch predicted from now on.
    """
    starts: list[int] = []

    def recorded(*arguments: Any) -> Iterator[Predictions]:
        for predictions in predict(*arguments):
            starts.append(predictions.start)
            if len(starts) == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield predictions

    monkeypatch.setattr(predict_module, "SEGMENTS_PER_BATCH", SMALL)
    monkeypatch.setattr(passes, "predict", recorded)
    return starts


def use_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store predictions in blocks of 16 segments."""
    make_index = StoreIndex.of

    def in_small_blocks(*arguments: Any) -> StoreIndex:
        return make_index(*arguments).model_copy(update={"segments_per_block": SMALL})

    monkeypatch.setattr(StoreIndex, "of", in_small_blocks)
