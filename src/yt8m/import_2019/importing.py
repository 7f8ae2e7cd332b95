"""The models of 2019: a folder that the challenge's 7th place published, read into a network of ours.

Such a folder holds `config.yaml` and `model.pth`, a pickled state dict. Of the pickle only tensors are ever made, and of
these only what the settings ask for, in the shapes that they ask for. The result is an ordinary model folder.

What those networks do otherwise than ours, and where it goes:

- They see the bytes 0 to 255: `input: bytes`. In DBoF that would fold into the first Linear as well, but its weights
  would be 64 times larger, so that a step of Adam would change them 64 times less than in the recipes it comes from.
  NeXtVLAD normalizes what it sees, and nothing folds.
- Mixtures average logits: `average: logits`.
- Logits of NeXtVLAD's assignment come as (cluster, group), ours as (group, cluster): rows are reordered, here and in the
  mixture, whose experts come as (class, expert).
- The assignment's batch norm takes row i for channel i mod K, so it mixes clusters and groups. In eval mode it is one
  factor and one offset a row, and is folded into the Linear (in float64): `assignment_batch_norm: false`.

What a batch is padded with, and frames outside a video, stay masked as ever: they fed zero bytes there, and divided
means by the length of the batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.import_2019.config import CONFIG_NAME
from yt8m.import_2019.example import TOLERANCE, largest_difference, read_example
from yt8m.import_2019.weights import (
    WEIGHTS_NAME,
    check_values,
    expected_weights,
    read_tensors,
    source_model,
    translated_weights,
)
from yt8m.models.classifier import (
    Classifier,
    Kind,
)
from yt8m.models.saved import CLASSIFIERS, check_tensors, load_model, save_model
from yt8m.settings import read_yaml

# ------------------------------------------------------------------------------------------------------------- import


def read_model(folder: Path) -> Classifier:
    """Read a model of 2019 into a network of ours, in eval mode.

    Args:
        folder: Holds `config.yaml` and `model.pth`.

    Raises:
        UsageError: There is no such folder, or its `config.yaml` is not that of such a model.
        Yt8mError: `model.pth` is damaged, asks for more than tensors, or its tensors are not those of the settings.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such model folder.")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder}: has no {name}; the folder of a model of 2019 holds {CONFIG_NAME} and {WEIGHTS_NAME}."
            )
    path = folder / WEIGHTS_NAME
    values = read_yaml(folder / CONFIG_NAME)
    found = read_tensors(path)
    source = source_model(folder / CONFIG_NAME, values, found)
    experts = found.get(f"{source.modules['mixture.experts']}.bias", torch.empty(0))
    num_classes = max(1, experts.numel() // source.config.mixture.num_experts)
    with torch.device("meta"):
        model: Classifier = CLASSIFIERS[source.kind][1](source.config, num_classes)
    check_tensors(found, expected_weights(source, model), path)
    check_values(found, path)
    model.load_state_dict(translated_weights(source, model, found), assign=True)
    return model.eval()


@dataclass(frozen=True)
class Imported:
    """A model that was imported.

    Args:
        kind: What it classifies, and from what.
        num_classes: C.
        num_parameters: How many it has.
        difference: Largest difference of a probability from the example's; None where there was no example.
    """

    kind: Kind
    num_classes: int
    num_parameters: int
    difference: float | None


def import_model(
    folder: Path, out: Path, *, vocabulary_digest: str, num_classes: int, example: Path | None = None
) -> Imported:
    """Make a model folder of ours from one of 2019.

    Args:
        folder: Holds `config.yaml` and `model.pth`.
        out: The model folder to write; there must be nothing of that name.
        vocabulary_digest: `Vocabulary.digest` of the classes that its columns stand for.
        num_classes: Size of that vocabulary.
        example: File of what the original made of some videos (`read_example`), to hold the written model against.

    Raises:
        UsageError: A file or folder is missing, something is called `out` already, or the settings or the vocabulary
            are not those of such a model.
        Yt8mError: The weights or the example cannot be used, or a probability is more than `TOLERANCE` from the
            example's. Nothing is left under the name `out` then.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already, and an import replaces nothing; name another folder.")
    expected = None if example is None else read_example(example)
    model = read_model(folder)
    if model.num_classes != num_classes:
        raise UsageError(
            f"{folder}: this model has {model.num_classes:,} classes, and the vocabulary {num_classes:,}; name its own "
            "with --vocabulary."
        )
    with (folder / WEIGHTS_NAME).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    difference = None
    with written_atomically(out) as unfinished:
        save_model(
            unfinished,
            model,
            vocabulary_digest=vocabulary_digest,
            provenance={"imported_from": f"{folder.resolve().name}/{WEIGHTS_NAME}", "sha256": digest},
        )
        if expected is not None:
            difference = largest_difference(load_model(unfinished, vocabulary_digest=vocabulary_digest), expected)
            if difference > TOLERANCE:
                raise Yt8mError(
                    f"{example}: a probability of the imported model is {difference:.2g} from the original's, more than "
                    f"{TOLERANCE:g}; {out} was not written."
                )
    return Imported(
        model.config.kind, model.num_classes, sum(parameter.numel() for parameter in model.parameters()), difference
    )
