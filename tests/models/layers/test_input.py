"""The input layer: dequantization, masking and batch norm of the input."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from yt8m.models.layers.input import FrameInput, dequantize, frame_mask

LENGTHS = torch.tensor([5, 1, 3, 4])


def test_dequantize_follows_the_formula() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    values = dequantize(every_byte)
    assert values.dtype == torch.float32
    assert values[0].item() == -1.9921875
    assert values[255].item() == pytest.approx(2.0078125, abs=2e-7)
    expected = np.arange(256, dtype=np.float64) * 4 / 255 + 4 / 512 - 2
    np.testing.assert_allclose(values.numpy(), expected, atol=3e-7)
    np.testing.assert_allclose(dequantize(every_byte, torch.float64).numpy(), expected, atol=1e-15)


def test_input_other_than_bytes_is_rejected() -> None:
    with pytest.raises(TypeError, match="expected frames as bytes"):
        dequantize(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="expected frames as bytes"):
        FrameInput(values="bytes")(torch.zeros(2, 3, 1152), torch.tensor([3, 3]))


def test_the_frame_mask_marks_valid_frames() -> None:
    assert frame_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_input_is_zero_at_padding() -> None:
    frames = torch.randint(0, 256, (2, 4, 1152), dtype=torch.uint8)
    features, mask = FrameInput()(frames, torch.tensor([4, 2]))
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert features[1, 2:].abs().max() == 0
    torch.testing.assert_close(features[1, :2], frames[1, :2].float() * 4 / 255 + 4 / 512 - 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_input_of_bytes_is_exact_and_zero_at_padding(dtype: torch.dtype) -> None:
    frames = torch.arange(2 * 4 * 1152).remainder(256).to(torch.uint8).view(2, 4, 1152)
    kept = frames.clone()
    features, mask = FrameInput(values="bytes")(frames, torch.tensor([4, 2]), dtype)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert features.dtype == dtype
    assert features[mask].long().tolist() == kept[mask].tolist()
    assert features.max() == 255
    assert features[1, 2:].abs().max() == 0
    assert torch.equal(frames, kept)


@pytest.mark.parametrize("values", ["dequantized", "bytes"])
def test_input_batch_norm_uses_the_valid_frames(values: Literal["dequantized", "bytes"]) -> None:
    module, plain = FrameInput(batch_norm=True, values=values), nn.BatchNorm1d(1152, affine=False)
    frames = torch.randint(0, 256, (4, 5, 1152), dtype=torch.uint8)
    for training in (True, False):
        module.train(training)
        plain.train(training)
        features, mask = module(frames, LENGTHS)
        plain_values = frames.float() if values == "bytes" else dequantize(frames)
        torch.testing.assert_close(features[mask], plain(plain_values[mask]), atol=1e-5, rtol=1e-5)
        assert features[~mask].abs().max() == 0
    assert not list(module.parameters())
