"""Application of functions in chunks of a fixed size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yt8m.inference.chunks import apply_in_chunks


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 100])
def test_chunks_have_a_fixed_size(rows: int, size: int) -> None:
    shapes: list[tuple[int, ...]] = []

    def sums(first: Tensor, second: Tensor) -> Tensor:
        shapes.extend([tuple(first.shape), tuple(second.shape)])
        assert torch.equal(first[:, 0], second), "rows of the tensors must stay together"
        return 2 * first

    values = torch.arange(rows * 3).view(rows, 3)
    found = apply_in_chunks(sums, size, values, values[:, 0])
    assert torch.equal(found, 2 * values)
    assert shapes == [(size, 3), (size,)] * -(-rows // size)


def test_the_last_chunk_is_padded_with_its_first_row() -> None:
    """Zeros as padding would create windows without frames, whose mean divides by zero."""
    chunks: list[Tensor] = []

    def record(rows: Tensor) -> Tensor:
        chunks.append(rows)
        return rows

    apply_in_chunks(record, 4, torch.tensor([1, 2, 3, 4, 5, 6]))
    assert [rows.tolist() for rows in chunks] == [[1, 2, 3, 4], [5, 6, 5, 5]]
