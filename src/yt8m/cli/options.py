"""Arguments and options that several commands share, and the settings that they set."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yt8m.cli.checks import require_suffix
from yt8m.errors import UsageError
from yt8m.ranking import MAX_SEGMENTS

if TYPE_CHECKING:
    from yt8m.ranking.ensemble import MergeConfig

DataOption = Annotated[
    Path,
    typer.Option(
        "--data", help="Dataset folder: video/train, video/valid, segment/train, segment/test, segment_vocabulary.csv."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Output folder of the run.")]
RecipeArgument = Annotated[str, typer.Argument(help="YAML file of a recipe, or the name of one that ships with yt8m.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: path=value. Repeatable.")]
OnlyOption = Annotated[
    str | None, typer.Option(help="Only this kind of stage (pretrain, finetune, predict) or stage (pretrain/NAME).")
]
ModelsArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="[MODEL]...", help="Model folders of segment classifiers.")
]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Folder of a run: its ensemble, its classes and its test shards.")
]
ShardsOption = Annotated[
    Path | None,
    typer.Option("--shards", help="Folder of the shards; by default the test shards of the run's or model's dataset."),
]
VocabularyOption = Annotated[
    Path | None,
    typer.Option("--vocabulary", help="segment_vocabulary.csv; by default the classes in the model folder."),
]
ThresholdOption = Annotated[
    float, typer.Option("--threshold", min=0, max=1, help="Probability from which a concept counts as on screen.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, for scripts.")]
AcceleratorOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
WeightOption = Annotated[
    list[str] | None, typer.Option("--weight", help="Weight of a model, NAME=NUMBER; 1 by default. Repeatable.")
]
MergeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="How to merge models, path=value as in a recipe's ensemble: method=geometric, or "
        "video_prior={models: [NAME], video_exponent: 0.2}. Repeatable.",
    ),
]
TableOption = Annotated[
    Path | None,
    typer.Option(
        "--table",
        callback=require_suffix(".parquet"),
        help="Also write the ranking, with probabilities, as a Parquet table.",
    ),
]
TopKOption = Annotated[int, typer.Option("--top-k", min=1, max=MAX_SEGMENTS, help="Segments to list per class.")]


def _set_quiet(is_quiet: bool) -> None:
    from yt8m.runtime.console import err

    err.quiet = is_quiet


QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_set_quiet, help="Print only results and errors: no progress, no messages."),
]


def with_quiet(command: Callable[..., None]) -> Callable[..., None]:
    """A command with one more option, `--quiet`, which silences standard error except for errors."""

    @functools.wraps(command)
    def quiet_command(*arguments: object, quiet: bool, **options: object) -> None:
        command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    quiet = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption)
    parameters = [*signature.parameters.values(), quiet]
    quiet_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    quiet_command.__annotations__ = {**command.__annotations__, "quiet": QuietOption}
    return quiet_command


def merge_config(
    weights: Sequence[str] | None, overrides: Sequence[str] | None, of_run: MergeConfig | None = None
) -> MergeConfig:
    """Settings of a merge, from `--weight` and `--set`; what they do not set is as in the ensemble of a run.

    Raises:
        UsageError: An option is malformed, or the settings are invalid.
    """
    from yt8m.ranking.ensemble import MergeConfig
    from yt8m.settings import overridden, validated

    values = {} if of_run is None else of_run.model_dump(mode="json", include=set(MergeConfig.model_fields))
    values["weights"] = values.get("weights", {}) | _parse_weights(weights or [])
    values = overridden(values, overrides or [])
    return validated(MergeConfig, values, "--set")


def _parse_weights(given: Sequence[str]) -> dict[str, float]:
    weights = {}
    for text in given:
        name, separator, number = text.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            separator = ""
        if not (separator and name and 0 <= weights[name] < float("inf")):
            raise UsageError(f"--weight {text}: expected NAME=NUMBER, the number not negative.")
    return weights
