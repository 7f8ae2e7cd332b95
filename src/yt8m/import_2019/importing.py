"""Import of a 2019 model: a folder that the challenge's 7th place published becomes a model folder.

A 2019 folder contains `config.yaml` and `model.pth`, a pickled state dict, of which only tensors of the names and shapes in
the settings are read. The networks of 2019 differ from those of this package, and are represented as follows:

- Input is the bytes 0 to 255: `input: bytes`. In DBoF it could be folded into the first Linear, but the weights would be 64
  times larger, so that a step of Adam would change them relatively less than in training from scratch.
- Mixtures average logits: `average: logits`.
- Logits of NeXtVLAD's assignment are laid out (cluster, group) instead of (group, cluster), and experts (class, expert)
  instead of (expert, class): rows are reordered.
- The assignment's batch norm normalizes row i as channel i mod K, so it mixes clusters and groups. In eval mode it is a
  scale and a shift per row, folded into the Linear in float64: `assignment_batch_norm: false`.

Padding and frames outside the video stay masked: the 2019 networks use zero bytes there, and divide means by the length of
the padded batch.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.import_2019.example import TOLERANCE, largest_difference, read_example
from yt8m.import_2019.source import CONFIG_NAME, WEIGHTS_NAME, identify_model
from yt8m.import_2019.weights import check_values, convert_tensors, expected_tensors
from yt8m.models.classifier import Classifier
from yt8m.models.config import Kind
from yt8m.models.saved import CLASSIFIERS, check_tensors, load_model, save_model
from yt8m.settings import read_yaml
from yt8m.torch_files import read_state_dict
from yt8m.vocabulary import Vocabulary


def read_model(folder: Path) -> Classifier:
    """Read a 2019 model as a network of this package, in eval mode.

    Raises:
        UsageError: There is no such folder, or its `config.yaml` does not describe a 2019 model.
        Yt8mError: `model.pth` is damaged, contains more than tensors, or its tensors do not fit the settings.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such model folder.")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder}: has no {name}; the folder of a 2019 model contains {CONFIG_NAME} and {WEIGHTS_NAME}."
            )
    path = folder / WEIGHTS_NAME
    values = read_yaml(folder / CONFIG_NAME)
    found = read_state_dict(path)
    source = identify_model(folder / CONFIG_NAME, values, found)
    experts = found.get(f"{source.modules['mixture.experts']}.bias", torch.empty(0))
    num_classes = max(1, experts.numel() // source.config.mixture.num_experts)
    with torch.device("meta"):
        model: Classifier = CLASSIFIERS[source.kind][1](source.config, num_classes)
    check_tensors(found, expected_tensors(source, model), path)
    check_values(found, path)
    model.load_state_dict(convert_tensors(source, model, found), assign=True)
    return model.eval()


@dataclass(frozen=True)
class ImportedModel:
    """Properties of an imported model.

    Args:
        kind: Kind of the classifier.
        num_classes: C.
        num_parameters: Number of parameters.
        difference: Largest difference of a probability from the example's; None without an example.
    """

    kind: Kind
    num_classes: int
    num_parameters: int
    difference: float | None


def import_model(
    folder: Path,
    out: Path,
    *,
    vocabulary_digest: str,
    num_classes: int,
    classes: Vocabulary | None = None,
    example: Path | None = None,
) -> ImportedModel:
    """Write a model folder from the folder of a 2019 model.

    Args:
        folder: Folder with `config.yaml` and `model.pth`.
        out: The model folder to write; it must not exist.
        vocabulary_digest: `Vocabulary.digest` of the model's classes.
        num_classes: Size of that vocabulary.
        classes: The vocabulary itself, if it is at hand.
        example: Predictions of the original (`read_example`), which the written model is compared with.

    Raises:
        UsageError: A file or folder is missing, `out` exists, or the settings or the vocabulary do not fit the model.
        Yt8mError: The weights or the example cannot be used, or a probability differs from the example's by more than
            `TOLERANCE`; `out` is not written.
    """
    if out.exists():
        raise UsageError(f"{out}: already exists, and an import replaces nothing; choose another folder.")
    expected = None if example is None else read_example(example)
    model = read_model(folder)
    if model.num_classes != num_classes:
        raise UsageError(
            f"{folder}: the model has {model.num_classes:,} classes, but the vocabulary has {num_classes:,}; pass the "
            "model's own vocabulary with --vocabulary."
        )
    with (folder / WEIGHTS_NAME).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    difference = None
    with written_atomically(out) as unfinished:
        save_model(
            unfinished,
            model,
            vocabulary_digest=vocabulary_digest,
            classes=classes,
            provenance={"imported_from": f"{folder.resolve().name}/{WEIGHTS_NAME}", "sha256": digest},
        )
        if expected is not None:
            difference = largest_difference(load_model(unfinished, vocabulary_digest=vocabulary_digest), expected)
            if difference > TOLERANCE:
                raise Yt8mError(
                    f"{example}: a probability of the imported model differs by {difference:.2g} from the original's, "
                    f"more than {TOLERANCE:g}; {out} was not written."
                )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ImportedModel(model.config.kind, model.num_classes, num_parameters, difference)
