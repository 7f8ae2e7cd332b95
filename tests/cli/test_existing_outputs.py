"""What each command does with an output that exists: the table of docs/how-to.md, and a test of each row."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.main import get_command

from tests.support.command import refused, succeeds
from tests.support.tiny_run import FinishedRun
from tests.support.videos import write_video
from yt8m.cli.main import GROUPS, app
from yt8m.dataset.catalog import Catalog
from yt8m.locate.moments import Moment, write_clips

ROOT = Path(__file__).parents[2]
HERE = "cli/test_existing_outputs.py"

ROWS = {
    "download DATA": ("adds", "download/test_download.py", "test_existing_shards_are_verified_and_wrong_ones_replaced"),
    "index FOLDER": ("replaces", HERE, "test_a_catalog_is_replaced"),
    "describe FOLDER": ("adds", HERE, "test_catalogs_are_only_added"),
    "splice OUT": ("refuses", HERE, "test_a_folder_with_content_is_refused"),
    "extract --out": ("adds", "extraction/test_extract.py", "test_known_videos_are_not_extracted_again"),
    "weights": (
        "adds",
        "extraction/test_fetching.py",
        "test_missing_files_are_fetched_once_and_their_digests_recorded",
    ),
    "run --out": ("keeps", HERE, "test_the_previous_result_of_a_stage_is_kept"),
    "pretrain --out": ("keeps", HERE, "test_the_previous_result_of_a_stage_is_kept"),
    "finetune --out": ("keeps", HERE, "test_the_previous_result_of_a_stage_is_kept"),
    "find-lr --out": ("replaces", HERE, "test_a_sweep_is_replaced"),
    "demo FOLDER": ("keeps", "cli/test_training.py", "test_demo_does_not_write_into_other_folders"),
    "predict --store": (
        "refuses",
        "cli/test_prediction.py",
        "test_a_store_of_other_models_is_replaced_only_on_request",
    ),
    "predict --out, --table": ("replaces", HERE, "test_a_named_file_is_replaced"),
    "merge --out, --table": ("replaces", HERE, "test_a_named_file_is_replaced"),
    "locate --svg, --chapters": ("replaces", HERE, "test_a_named_file_is_replaced"),
    "locate --clips": ("replaces", HERE, "test_clips_are_replaced_and_other_files_stay"),
    "search --csv": ("replaces", HERE, "test_a_named_file_is_replaced"),
    "evaluate --per-class": ("replaces", HERE, "test_a_named_file_is_replaced"),
    "import-2019 OUT": ("refuses", "import_2019/test_importing.py", "test_an_existing_destination_is_refused"),
}
"""Every output of every command: what happens if it exists, and the test of that."""

WRITE_NOTHING = {"recipes", "estimate", "check"}
"""Commands without outputs; `check` and others may add a missing catalog as `describe` does."""

INPUTS = {"run", "data", "shards", "vocabulary", "sources", "list", "truth", "self-test", "server", "weights"}
"""Options with a path that is read."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_has_every_output_and_each_row_has_a_test() -> None:
    page = (ROOT / "docs" / "how-to.md").read_text()
    section = page[page.index("## What happens to existing files") :].split("\n## ")[0]
    table = re.findall(r"^\| `yt8m ([^|]+?) \| \**(\w+)", section, re.MULTILINE)
    assert {row.replace("`", ""): effect for row, effect in table} == {
        row: effect for row, (effect, _, _) in ROWS.items()
    }
    for _, path, name in ROWS.values():
        assert f"\ndef {name}(" in (ROOT / "tests" / path).read_text()
    commands: Any = get_command(app)
    written = {row.split()[0] for row in ROWS}
    assert written | WRITE_NOTHING == set(commands.commands)
    # Options that name a path are outputs in the table, or inputs.
    listed = {(row.split()[0], option) for row in ROWS for option in re.findall(r"--([\w-]+)", row)}
    functions = {name: function for group in GROUPS.values() for name, function in group.items()}
    seen = set()
    for name, command in commands.commands.items():
        types = get_type_hints(functions[name])
        for parameter in command.params:
            option = max(parameter.opts, key=len)
            if option.startswith("--") and "Path" in str(types.get(parameter.name)):
                seen.add((name, option[2:]))
    read = {("search", "store"), ("search", "table"), ("import-2019", "check")}
    assert seen - listed == {(name, option) for name, option in seen if option in INPUTS} | read
    assert listed <= seen


@pytest.mark.parametrize(
    "option", ["predict --out", "predict --table", "merge --out", "merge --table", "locate --svg", "locate --chapters",
               "search --csv", "evaluate --per-class"]
)  # fmt: skip
def test_a_named_file_is_replaced(
    option: str, finished_run: FinishedRun, tiny_dataset: Path, models: list[object], tmp_path: Path
) -> None:
    store, out = tmp_path / "store", tmp_path / "submission.csv"
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    truth = tiny_dataset / "segment/test_ratings.csv"
    name, chosen = option.split()
    arguments = {
        "predict": ["predict", *models, "--accelerator", "cpu"],
        "merge": ["merge", store, *(["--out", out] if chosen == "--table" else [])],
        "locate": ["locate", video, "--run", finished_run.out, "--accelerator", "cpu", "--threshold", "0.01"],
        "search": ["search", "Surfing", "--run", finished_run.out, "--threshold", "0.01"],
        "evaluate": ["evaluate", finished_run.out / "submission.csv", "--truth", truth],
    }[name]
    if name == "merge":
        succeeds("predict", *models, "--store", store, "--accelerator", "cpu")
    suffix = {"--table": ".parquet", "--svg": ".svg", "--chapters": ".vtt"}.get(chosen, ".csv")
    fresh, existing = tmp_path / f"fresh{suffix}", tmp_path / f"existing{suffix}"
    existing.write_text("previous")
    for path in (fresh, existing):
        succeeds(*arguments, chosen, path)
    assert existing.read_bytes() == fresh.read_bytes() != b"previous"


def test_a_catalog_is_replaced(data: Path) -> None:
    succeeds("index", data / "segment/test")
    catalog = data / "segment/test/catalog.parquet"
    before = catalog.read_bytes()
    catalog.write_bytes(b"previous")
    succeeds("index", data / "segment/test")
    assert catalog.read_bytes() == before


def test_catalogs_are_only_added(data: Path) -> None:
    succeeds("index", data / "segment/test")
    before = contents(data)
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    succeeds("describe", data)
    assert before.items() <= contents(data).items()
    assert times.items() <= {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}.items()
    assert all(path.endswith("catalog.parquet") for path in contents(data).keys() - before.keys())


def test_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("previous")
    before = contents(tmp_path)
    sizes = ["--pretrain", 8, "--segments", 8, "--test", 8]
    assert refused(2, "splice", tmp_path / "out", *sizes).startswith(f"{tmp_path / 'out'}: exists and is not empty; ")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "stage", "change"),
    [
        (["run", "{}"], "predict", "top_k=5"),
        (["pretrain", "{}", "dbof"], "pretrain/dbof", "base_models.dbof.seed=9"),
        (["finetune", "{}", "bare"], "finetune/bare", "segment_models.bare.seed=9"),
    ],
)
def test_the_previous_result_of_a_stage_is_kept(
    command: list[str],
    stage: str,
    change: str,
    finished_run: FinishedRun,
    tiny_dataset: Path,
    tiny_recipe: Path,
    tmp_path: Path,
) -> None:
    out = Path(shutil.copytree(finished_run.out, tmp_path / "out"))
    before = contents(out)
    arguments = [argument.format(tiny_recipe) for argument in command] + ["--data", tiny_dataset, "--out", out]
    succeeds(*arguments)
    assert contents(out) == before
    succeeds(*arguments, "--set", change)
    expected = {name.removeprefix(f"{stage}/"): file for name, file in before.items() if name.startswith(f"{stage}/")}
    if stage == "predict":
        expected |= {name: before[name] for name in ("submission.csv", "segments.parquet")}
    assert contents(out / f"{stage}.before-1") == expected


def test_a_sweep_is_replaced(finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished_run.out, tmp_path / "out"))
    before = contents(out)
    sweep = ["find-lr", tiny_recipe, "dbof", "--data", tiny_dataset, "--out", out, "--lowest", 1e-4, "--highest", 1e-1]
    tables = []
    for steps in (30, 40, 30):
        succeeds(*sweep, "--steps", steps)
        tables.append((out / "find-lr/dbof/lr_finder.csv").read_bytes())
    assert tables[0] == tables[2] != tables[1]
    assert before.items() <= contents(out).items()


def test_clips_are_replaced_and_other_files_stay(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", 6)
    folder = tmp_path / "clips"
    [clip] = write_clips(video, folder, [Moment("Food", 0, 5)])
    size = clip.stat().st_size
    clip.write_text("previous")
    (folder / "notes.txt").write_text("mine")
    write_clips(video, folder, [Moment("Food", 0, 5)])
    assert clip.stat().st_size == size
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.iterdir())) == 2
