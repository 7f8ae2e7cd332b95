"""Commands for models: import-2019."""

from pathlib import Path
from typing import Annotated

import typer

from yt8m.errors import UsageError


def import_2019(
    folder: Annotated[Path, typer.Argument(help="Folder of a 2019 model: config.yaml and model.pth.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to create.")],
    check: Annotated[
        Path | None,
        typer.Option(
            help="Predictions of the original for some videos (example.npz: video, segment, probabilities). A "
            "probability that differs by more than 1e-5 is an error, and OUT is not written."
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="segment_vocabulary.csv with the model's classes in order; the challenge's own by default."),
    ] = None,
) -> None:
    """Convert a model that the 7th place of 2019 published to a model folder.

    The model is a video classifier, a segment classifier, or a segment classifier with context, depending on its
    config.yaml and tensors. The converted model predicts the original's probabilities and merges like any other. Only
    tensors are unpickled from model.pth.

    It can be trained further in Python, with two exceptions: the context encoder of a classifier with context stays
    frozen, also where it was trained in 2019, and the batch norm of NeXtVLAD's assignment is folded into the layer before.

    ```sh
    yt8m import-2019 models_2019/aware-1 models/aware-1 --check models_2019/aware-1/example.npz
    ```
    """
    from yt8m.runtime.console import out as terminal
    from yt8m.vocabulary import OFFICIAL_DIGEST, OFFICIAL_SIZE, Vocabulary

    classes = None if vocabulary is None else Vocabulary.load(vocabulary)
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such model folder.")

    from yt8m.import_2019.example import TOLERANCE
    from yt8m.import_2019.importing import import_model

    digest, size = (OFFICIAL_DIGEST, OFFICIAL_SIZE) if classes is None else (classes.digest, len(classes))
    made = import_model(folder, out, vocabulary_digest=digest, num_classes=size, classes=classes, example=check)
    terminal.print(f"{out}: {made.kind} classifier of {made.num_classes:,} classes, {made.num_parameters:,} parameters")
    if made.difference is not None:
        terminal.print(f"{check}: probabilities differ by at most {made.difference:.2g} ({TOLERANCE:g} is allowed)")
