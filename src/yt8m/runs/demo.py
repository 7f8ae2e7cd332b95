"""The demo: the whole pipeline in a few minutes, on generated data."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from yt8m.errors import UsageError
from yt8m.runs.recipe import Recipe, read_recipe, shipped_recipe
from yt8m.runtime.console import err
from yt8m.runtime.locks import locked
from yt8m.runtime.progress import terminal_progress
from yt8m.settings import overridden, validated
from yt8m.submission.table import TABLE_FILE, RankingTable
from yt8m.synthetic.invented import invented_sources, invented_vocabulary
from yt8m.synthetic.splice import Sizes, write_dataset

if TYPE_CHECKING:
    from yt8m.runs.predict_stage import RunScores
    from yt8m.runs.run import Run

SIZES = Sizes(train=1200, valid=120, rated=480, test=160)
NUM_SOURCES = 6000
STEPS = {"video": 600, "agnostic": 200, "aware": 450}
"""Steps of each kind of model, fewer than the recipe has: there are 48 generated classes, not 1,000 real ones."""

DATA_FOLDER, RUN_FOLDER = "data", "run"


def run_demo(folder: Path, seed: int = 0) -> tuple[Run, RunScores]:
    """Splice a dataset from generated sources, and run the demo's recipe on it.

    Args:
        folder: Receives `data/` and `run/`; an interrupted demo resumes there.
        seed: Seed of the data; the recipe has its own.

    Raises:
        UsageError: The folder contains something else.
    """
    recipe = shortened(read_recipe(shipped_recipe("demo")))
    data = folder / DATA_FOLDER
    if folder.exists() and not data.is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: contains something other than a demo; give another folder.")
    with locked(folder):
        if not (data / "segment" / "test_positives.csv").is_file():
            # The ground truth of the test set is written last, so without it the data are incomplete.
            shutil.rmtree(data, ignore_errors=True)
            vocabulary = invented_vocabulary()
            write_dataset(data, invented_sources(NUM_SOURCES, vocabulary), vocabulary, SIZES, seed, terminal_progress)
            err.print(
                f"splice: {SIZES.train + SIZES.valid + SIZES.rated + SIZES.test:,} videos of generated sources in {data}"
            )
        from yt8m.runs.run import Run

        run = Run(recipe, data, folder / RUN_FOLDER)
        scores = run.run()
    if scores is None:
        raise UsageError("The demo runs on one process.")
    return run, scores


def next_steps(run: Path) -> str:
    """Commands to continue with, for the concept that the run of a demo found with the highest probability."""
    table = RankingTable.open(run / TABLE_FILE)
    listed = [table.segments(index) for index in range(len(table.vocabulary))]
    best = max(range(len(listed)), key=lambda index: float(listed[index].probabilities.max(initial=0)))
    video = listed[best].video_ids[int(listed[best].rows[0])]
    concept = table.vocabulary.names[best]
    # Not on the path after `make demo`, which installs into a virtual environment.
    program = "yt8m" if shutil.which("yt8m") else f"{shlex.quote(os.path.relpath(sys.executable))} -m yt8m"
    return (
        f"\nWhere is {concept!r} in these videos?\n    {program} search {shlex.quote(concept)} --run {shlex.quote(str(run))}\n"
        f"What is in the video {video!r}?\n    {program} locate {shlex.quote(video)} --run {shlex.quote(str(run))}"
    )


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with the demo's number of steps."""
    steps = {f"base_models.{name}": STEPS["video"] for name in recipe.base_models}
    steps |= {f"segment_models.{name}": STEPS[model.kind] for name, model in recipe.segment_models.items()}
    overrides = [f"{model}.training.steps={number}" for model, number in steps.items()]
    return validated(Recipe, overridden(recipe.model_dump(mode="json"), overrides), "the demo's recipe")
