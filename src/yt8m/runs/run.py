"""Run a recipe: its stages in order, each into its own folder; finished ones are skipped."""

from contextlib import nullcontext
from pathlib import Path

from yt8m.dataset.labels import fold_of_videos
from yt8m.files import clear_all_leftovers, written_atomically
from yt8m.prediction.predict import segments_of
from yt8m.runs import predict_stage
from yt8m.runs.context import RunContext
from yt8m.runs.predict_stage import RunScores
from yt8m.runs.recipe import RECIPE_FILE, Recipe
from yt8m.runs.stages import PARTS_NEEDED, RunStage, Stage, training_stages
from yt8m.runs.training import require_trainable, train
from yt8m.runtime.locks import locked
from yt8m.runtime.processes import lost_processes_named
from yt8m.settings import to_yaml
from yt8m.training.loop import CHECKPOINT_FILE


class Run:
    """A recipe, run on a dataset folder into an output folder.

    Args:
        recipe: What to train and merge.
        data: The dataset folder, in the classic layout.
        out: Receives the stages' folders, `recipe.yaml` and `submission.csv`.

    Raises:
        UsageError: See `RunContext`.
    """

    def __init__(self, recipe: Recipe, data: Path, out: Path) -> None:
        self.context = RunContext(recipe, data, out)
        self.recipe, self.out = recipe, out

    @property
    def stages(self) -> list[RunStage]:
        """All stages, in order."""
        plain = [*training_stages(self.recipe), Stage(self.recipe, "predict", "")]
        return [RunStage.of(self.context, stage.kind, stage.name) for stage in plain]

    def run(self, only: str | None = None) -> RunScores | None:
        """Run all stages, or only some.

        Args:
            only: A kind of stage ("pretrain", "finetune", "predict") or one stage ("pretrain/dbof").

        Returns:
            The scores, where prediction is among the stages; None on all processes but the first.

        Raises:
            UsageError: There is no such stage, one that it needs is not finished, or the dataset lacks a part.
            Yt8mError: Another process runs in the output folder.
            Interrupted: The run received a signal to stop and saved its state.
        """
        with lost_processes_named(self.context.fabric):
            return self._run(only)

    def _run(self, only: str | None) -> RunScores | None:
        self.recipe.require_stage(only)
        chosen = [stage for stage in self.stages if only in (None, stage.path, stage.kind)]
        # One process holds the lock for all.
        with locked(self.out) if self.context.fabric.is_global_zero else nullcontext():
            if self.context.fabric.is_global_zero:
                clear_all_leftovers(self.out)
            self._check(chosen)
            # With `only`, the recipe of the other stages stays; a stage's own record has the settings that it was made with.
            if self.context.fabric.is_global_zero and (only is None or not (self.out / RECIPE_FILE).exists()):
                with written_atomically(self.out / RECIPE_FILE) as temporary:
                    temporary.write_text(to_yaml(self.recipe), encoding="utf-8")
            return self._run_stages(chosen)

    def _run_stages(self, stages: list[RunStage]) -> RunScores | None:
        """Run some stages, on this process."""
        scores = None
        for stage in stages:
            scores = self._run_stage(stage)
        self.context.fabric.barrier()
        return scores

    def _run_stage(self, stage: RunStage) -> RunScores | None:
        """Run a stage unless it is finished."""
        is_finished = predict_stage.is_complete(stage) if stage.kind == "predict" else stage.is_finished
        # No process starts the stage before all have read its record.
        self.context.fabric.barrier()
        if is_finished:
            if self.context.fabric.is_global_zero:
                # A kill right after the stage's record leaves it.
                (stage.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
            self.context.report(f"{stage.title}: finished before, skipped")
            return predict_stage.previous_scores(stage) if stage.kind == "predict" else None
        if stage.kind == "predict":
            return predict_stage.predict(stage)
        train(stage)
        self.context.fabric.barrier()
        return None

    def _check(self, stages: list[RunStage]) -> None:
        """Read all data that some stages need and check each stage, so that errors are found before hours of training."""
        context, recipe = self.context, self.recipe
        kind = stages[-1].kind
        for part in PARTS_NEEDED[kind]:
            if recipe.base_models or part not in PARTS_NEEDED["pretrain"]:
                context.catalog(part)
        for name in recipe.trained_models:
            context.trained_model_digest(name)
        if kind != "pretrain":
            fold_of_videos(context.catalog("segment/train"), recipe.folds)
        for stage in stages:
            if stage.kind == "predict":
                segments_of(context.reader("segment/test"))
                _ = context.truth
            elif not stage.is_finished:
                require_trainable(stage)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that each finished stage took, in order."""
        records = {stage.path: stage.record for stage in self.stages}
        return {path: record.seconds for path, record in records.items() if record and record.status == "finished"}
