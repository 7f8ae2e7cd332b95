"""Probabilities of imported 2019 models, and errors of reading them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from yt8m.errors import Yt8mError
from yt8m.import_2019.importing import read_model
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier

NUM_CLASSES = 7


def probabilities(model: Classifier, video: Tensor, segment: Tensor) -> Tensor:
    """Probabilities of an imported model for complete videos and segments, uint8 (B, T, D)."""
    context = video[:, 30:-10]
    lengths, context_lengths = (torch.full((len(x),), x.shape[1]) for x in (segment, context))
    with torch.no_grad():
        if isinstance(model, ContextAwareClassifier):
            return torch.sigmoid(model(segment, lengths, model.encode_context(context, context_lengths)))
        if isinstance(model, ContextAgnosticClassifier):
            return torch.sigmoid(model(segment, lengths))
        return torch.sigmoid(model(context, context_lengths))


def reading_error(folder: Path, kind: type[Yt8mError]) -> str:
    """Read a folder and return the error message, which must be one sentence that starts with the folder."""
    with pytest.raises(Yt8mError) as caught:
        read_model(folder)
    assert type(caught.value) is kind, caught.value
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    assert message.endswith(".")
    assert len(message) < 600 + len(str(folder))
    return message


def write_vocabulary(path: Path, num_classes: int) -> Path:
    """Write a `segment_vocabulary.csv` with this number of classes."""
    path.write_text("Index,Name\n" + "".join(f"{3 * row},class {row}\n" for row in range(num_classes)))
    return path
