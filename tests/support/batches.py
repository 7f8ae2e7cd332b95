"""Comparison of batches."""

from __future__ import annotations

from typing import NamedTuple

import torch


def assert_same_batch(ours: NamedTuple, theirs: NamedTuple) -> None:
    """Assert that two batches are of the same kind and have equal tensors of the same types."""
    assert type(ours) is type(theirs)
    for name, left, right in zip(ours._fields, ours, theirs, strict=True):
        assert left.dtype == right.dtype, name
        assert torch.equal(left, right), name
