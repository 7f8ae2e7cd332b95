"""Commands for recipes: recipes, run, estimate, pretrain, finetune, find-lr, demo."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yt8m.cli.checks import require_recipe
from yt8m.cli.options import DataOption, JsonOption, OnlyOption, OutOption, RecipeArgument, SetOption
from yt8m.cli.output import print_json

if TYPE_CHECKING:
    from yt8m.runs.estimate import Estimate
    from yt8m.runs.predict_stage import RunScores
    from yt8m.runs.run import Run


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The recipe to print.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes that ship with yt8m, or print one of them, to start another from.

    Steps are those of all training stages, and examples the videos or segments that they see, with repeats.

    ```sh
    yt8m recipes
    yt8m recipes demo > my-recipe.yaml
    ```
    """
    from rich.table import Table

    from yt8m.runs.recipe import read_recipe, shipped_recipe, shipped_recipes
    from yt8m.runtime.console import out

    if name is not None:
        typer.echo(shipped_recipe(name).read_text(encoding="utf-8"), nl=False)
        return
    found = {known: read_recipe(path) for known, path in shipped_recipes().items()}
    rows = {}
    for known, recipe in found.items():
        trainings = [model.training for model in [*recipe.base_models.values(), *recipe.segment_models.values()]]
        rows[known] = {
            "base_models": len(recipe.base_models),
            "segment_models": len(recipe.segment_models),
            "steps": sum(training.steps for training in trainings),
            "examples": sum(training.steps * training.batch_size for training in trainings),
            "description": recipe.description,
        }
    if as_json:
        print_json(rows)
        return
    table = Table("recipe", "models", "steps", "examples", "description", box=None, pad_edge=False)
    for column in table.columns[:4]:
        column.no_wrap = True
    for column in table.columns[2:4]:
        column.justify = "right"
    for known, row in rows.items():
        sentence = re.split(r"(?<=[.:]) ", str(row["description"]))[0].rstrip(".:")
        models = f"{row['base_models']} + {row['segment_models']}"
        table.add_row(known, models, f"{row['steps']:,}", f"{row['examples']:,}", sentence)
    out.print(table)
    out.print("models: base models + segment models. `yt8m estimate NAME` measures time and memory on this machine.")


def run(
    recipe: RecipeArgument, data: DataOption, out: OutOption, only: OnlyOption = None, overrides: SetOption = None
) -> None:
    """Run a recipe: pre-train, fine-tune, predict, merge, and score where the ground truth is known.

    Each stage has its own folder in OUT. Finished stages with the same settings and data are skipped; an interrupted one
    resumes from its last checkpoint. The result is OUT/submission.csv.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 end training after the current step, with everything saved and exit status 75.

    ```sh
    yt8m run demo --data build/demo/data --out runs/demo
    yt8m run seventh-place --data data --out runs/seventh --only pretrain/dbof-3 --set machine.precision=bf16-mixed
    ```
    """
    started, scores = _run(f"run {recipe}", recipe, overrides, data, out, only)
    if scores is not None:
        _print_results(started, scores)


def estimate(
    recipe: RecipeArgument,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder, for its number of classes; 1,000 without it.")
    ] = None,
    only: OnlyOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the parameters, memory and time of a recipe's training stages on this machine, without running it.

    Steps are timed on random bytes; no data is needed. Reading, evaluation and prediction are not included.

    ```sh
    yt8m estimate seventh-place
    yt8m estimate demo --only pretrain --set machine.compile=true
    ```
    """
    from yt8m.runs.recipe import find_recipe, read_recipe
    from yt8m.runtime.progress import terminal_progress
    from yt8m.vocabulary import Vocabulary

    num_classes = 1000 if data is None else len(Vocabulary.load(data))
    settings = read_recipe(find_recipe(recipe), overrides)

    from yt8m.runs.estimate import estimate as find_costs

    found = find_costs(settings, num_classes, only, terminal_progress)
    if as_json:
        print_json(asdict(found))
    else:
        _print_estimate(found)


def pretrain(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Argument(help="A base model of the recipe.")],
    data: DataOption,
    out: OutOption,
    overrides: SetOption = None,
) -> None:
    """Pre-train one base model of a recipe on video labels.

    ```sh
    yt8m pretrain seventh-place dbof-3 --data data --out runs/seventh
    ```
    """
    _run(f"pretrain {recipe} {model}", recipe, overrides, data, out, f"pretrain/{model}")


def finetune(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Argument(help="A segment model of the recipe.")],
    data: DataOption,
    out: OutOption,
    overrides: SetOption = None,
) -> None:
    """Fine-tune one segment model of a recipe on rated segments; its base models must be trained in OUT.

    ```sh
    yt8m finetune seventh-place agnostic-nextvlad-fold-2 --data data --out runs/seventh
    ```
    """
    _run(f"finetune {recipe} {model}", recipe, overrides, data, out, f"finetune/{model}")


def find_lr(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Argument(help="A base model or a segment model of the recipe.")],
    data: DataOption,
    out: OutOption,
    steps: Annotated[int, typer.Option(help="Steps, each at a higher learning rate than the previous one.")] = 200,
    lowest: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 1.0,
    overrides: SetOption = None,
) -> None:
    """Find a peak learning rate: train a copy of a model while the learning rate rises, and plot the loss.

    Suggests the learning rate at which the smoothed loss falls fastest. OUT/find-lr/MODEL receives the plot and its
    numbers; the model's own stage does not change. For a segment model, its base models must be trained in OUT.

    ```sh
    yt8m find-lr demo dbof --data build/demo/data --out runs/demo
    ```
    """
    from yt8m.runtime.console import out as terminal
    from yt8m.settings import validated

    settings = require_recipe(recipe, overrides, data)
    settings.machine.require_one_process("find-lr")
    settings.stage_of_model(model)

    from yt8m.runs import training
    from yt8m.runs.context import RunContext
    from yt8m.training.lr_finder import LRSweepConfig

    sweep = validated(LRSweepConfig, {"steps": steps, "lowest": lowest, "highest": highest}, "find-lr")
    found = training.find_lr(RunContext(settings, data, out), model, sweep)
    terminal.print(
        f"{model}: suggested peak_lr {found.suggestion.peak_lr:.2g} (the loss is lowest at "
        f"{found.suggestion.lowest_loss_lr:.2g}); the recipe has {found.peak_lr:g}; plot: {found.picture}"
    )


def demo(
    folder: Annotated[Path, typer.Argument(help="Output folder.")] = Path("build/demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed of the data.")] = 0,
) -> None:
    """Run the whole pipeline in a few minutes on generated data.

    Splices a small dataset from generated sources, pre-trains two video classifiers, fine-tunes context-agnostic and
    context-aware segment classifiers, predicts, merges and scores, and prints one table. An interrupted demo resumes.

    ```sh
    yt8m demo
    ```
    """
    from yt8m.runs.demo import next_steps, run_demo
    from yt8m.runtime.notifications import notify_when_done

    started = time.monotonic()
    with notify_when_done(f"yt8m demo {folder}") as notification:
        done, scores = run_demo(folder, seed)
        notification.result = _summary(done, scores)
    _print_results(done, scores)
    typer.echo(f"{time.monotonic() - started:.0f} s in total; results: {folder}")
    typer.echo(next_steps(done.out))


def _run(
    command: str, recipe: str, overrides: list[str] | None, data: Path, out: Path, only: str | None
) -> tuple[Run, RunScores | None]:
    """Run a recipe and send notifications."""
    from yt8m.runtime.notifications import notify_when_done

    with notify_when_done(f"yt8m {command} --out {out}") as notification:
        settings = require_recipe(recipe, overrides, data, only)

        from yt8m.runs.run import Run

        started = Run(settings, data, out)
        scores = started.run(only)
        notification.result = _summary(started, scores, only)
    return started, scores


def _summary(done: Run, scores: RunScores | None, only: str | None = None) -> str:
    """A finished run in one line: the scores of its submission, or the metrics of its only stage."""
    values: dict[str, float | None] = {}
    if scores is not None and scores.rows:
        row = scores.rows[-1]
        values = {f"MAP@{done.recipe.top_k:,}": row.map_at_k, "dense MAP": row.dense_map}
    elif scores is None:
        record = next((stage.record for stage in done.stages if stage.path == only), None)
        values = dict(record.metrics) if record else {}
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)


def _print_results(done: Run, scores: RunScores) -> None:
    """Print the scores of a run, where there is ground truth, and the time of its stages."""
    from rich.table import Table

    from yt8m.runs.predict_stage import SUBMISSION_FILE
    from yt8m.runtime.console import out
    from yt8m.scoring.scores import score_table

    if scores.rows:
        out.print(score_table(scores.rows, done.recipe.top_k))
    stages = Table("stage", "seconds")
    stages.columns[1].justify = "right"
    for stage, seconds in done.stage_seconds().items():
        stages.add_row(stage, f"{seconds:,.0f}")
    out.print(stages)
    out.print(
        f"{done.out / SUBMISSION_FILE}: the best segments of {len(done.context.vocabulary):,} classes, "
        f"out of {scores.num_segments:,} segments predicted"
    )
    pictures = sorted((done.out / "predict").glob("*.png"))
    out.print(f"plots: {', '.join(map(str, pictures))}")


def _print_estimate(found: Estimate) -> None:
    """Print what the stages of a recipe take."""
    from rich.table import Table

    from yt8m.runtime.console import format_duration, out, wide

    table = Table("stage", "params", "trained", "batch", "TFLOP", "memory", "step", "per s", "steps", "time", box=None)
    for column in table.columns:
        column.no_wrap, column.justify = True, "left" if column.header == "stage" else "right"
    for cost in found.costs:
        seconds = cost.step_seconds
        table.add_row(
            cost.stage,
            f"{cost.parameters / 1e6:,.1f}M",
            f"{cost.trained / 1e6:,.1f}M",
            f"{cost.examples} x {cost.frames}" + (f" in {cost.micro_batches}" if cost.micro_batches > 1 else ""),
            f"{cost.flops / 1e12:.3f}",
            f"{cost.memory / 2**30:.2f} GiB",
            f"{seconds:.3g} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms",
            f"{cost.examples / seconds:,.0f}",
            f"{cost.steps:,}",
            format_duration(cost.total_seconds),
        )
    table.add_row("all", *[""] * 8, format_duration(sum(cost.total_seconds for cost in found.costs)))
    wide(120).print(table)
    each = "" if found.processes == 1 else f", each of {found.processes} processes with its slice of the batches"
    out.print(
        f"TFLOP: matrix products of a step. Steps timed on {found.device}{each}. Memory is that of one process's "
        f"tensors; batches read ahead take up to {max(cost.read_ahead for cost in found.costs) / 2**20:,.0f} MiB, the "
        "libraries 0.5 to 1 GiB. Reading, evaluation and prediction are not included."
    )
    available = found.available_memory
    for cost in found.costs:
        if available is not None and cost.memory > available:
            out.print(
                f"{cost.stage} needs more than the {available / 2**30:.1f} GiB of this device: set its "
                f"training.gradient_accumulation to {cost.micro_batches_to_fit(available)} or more."
            )
