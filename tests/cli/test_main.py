"""The `yt8m` command: its commands by panel, errors and exit statuses, and colors."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import yt8m
from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.processes import environment, run_command, run_python
from tests.support.tiny_run import FinishedRun
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.cli.main import GROUPS, app
from yt8m.dataset import layout
from yt8m.dataset.catalog import Catalog

PANELS = {
    "Search": ["search", "locate"],
    "Data": ["download", "index", "describe", "splice", "extract", "weights"],
    "Training": ["recipes", "run", "estimate", "pretrain", "finetune", "find-lr", "demo"],
    "Prediction": ["predict", "merge"],
    "Results": ["check", "evaluate"],
    "Models": ["import-2019"],
}
COMMANDS = [name for names in PANELS.values() for name in names]

HEAVY = {"torch", "numpy", "pyarrow", "matplotlib", "lightning_fabric", "yaml"}
"""Libraries that take long to import."""


# --- Commands --------------------------------------------------------------------------------------------------------


def test_the_panels_contain_all_commands() -> None:
    assert list(typer.main.get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]
    assert {panel: list(commands) for panel, commands in GROUPS.items()} == PANELS


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_the_commands_by_panel(arguments: list[str]) -> None:
    panels: dict[str, list[str]] = {}
    for line in command(*arguments).out.splitlines():
        if line.startswith("╭"):
            names = panels.setdefault(line.split()[1], [])
        elif match := re.match(r"│ ([a-z][a-z0-9-]*) ", line):
            names.append(match[1])
    assert {panel: names for panel, names in panels.items() if panel != "Options"} == PANELS


def test_exit_status_of_help() -> None:
    assert command("--help").status == command("-h").status == command("run", "-h").status == 0
    # A call without a command is a usage error.
    assert command().status == 2


def test_version_prints_the_version_of_the_package() -> None:
    assert succeeds("--version").out == f"yt8m {yt8m.__version__}\n"


def test_python_m_runs_the_command() -> None:
    ended = run_python("-m", "yt8m", "--version")
    assert (ended.status, ended.out, ended.err) == (0, f"yt8m {yt8m.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_lists_the_matching_commands(shell: str) -> None:
    """The script that a shell sources runs the command, which lists the completions."""
    shown = run_command("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert (shown.status, shown.err) == (0, "")
    assert "_COMPLETE=complete_" in shown.out
    # The name of the installed script determines the name of the variable.
    script = "import sys; sys.argv[0] = 'yt8m'; from yt8m.cli.main import main; main()"
    words = {"COMP_WORDS": "yt8m fi", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "yt8m fi"}
    words["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    completed = run_python("-c", script, _YT8M_COMPLETE=f"complete_{shell}", **words)
    assert re.findall(r"f(?:inetune|ind-lr)\b", completed.out)[:2] == ["finetune", "find-lr"]
    assert "predict" not in completed.out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["no-such-command"], ["run"]])
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    _, loaded = sentence_and_modules(*arguments)
    assert "typer" in loaded
    assert HEAVY.isdisjoint(loaded)


def sentence_and_modules(*arguments: object) -> tuple[str, set[str]]:
    """The last line that a command prints on standard error, and the names of the modules that it has loaded."""
    code = """
import sys
from yt8m.cli.main import main
try:
    main()
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    *_, sentence, loaded = ["", *run_python("-c", code, *arguments).err.splitlines()]
    return sentence, set(loaded.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["predict", "{model}", "{shards}", "{vocabulary}"], "There is nothing to write"),
        (["predict", "absent", "{shards}", "{vocabulary}", "--out", "o"], "absent: there is no such model folder."),
        (["predict", "{data}", "{shards}", "{vocabulary}", "--out", "o"], "config.yaml is missing."),
        (["predict", "{model}", "--shards=absent", "{vocabulary}", "--out", "o"], "there is no such folder;"),
        (["predict", "{model}", "{shards}", "--vocabulary=absent", "--out", "o"], "there is no such file;"),
        (["predict", "{model}", "{shards}", "{vocabulary}", "--out", "o", "--precision", "bf17"], "found 'bf17'."),
        (["predict", "{model}", "{shards}", "{vocabulary}", "--out", "o", "--set", "metod=rank"], "unknown key 'metod'"),
        (["predict", "{model}", "{shards}", "{vocabulary}", "--table", "o.csv"], "expected a name that ends in .parquet"),
        (["merge", "absent", "{shards}", "{vocabulary}", "--out", "o"], "there is no such folder of predictions;"),
        (["merge", "--run", "absent", "--out", "o"], "absent: is not the folder of a run"),
        (["predict", "--run", "absent", "--out", "o"], "absent: is not the folder of a run"),
        (["predict", "--out", "o"], "yt8m predict needs either model folders, or --run DIR"),
        (["search", "x", "{shards}", "{vocabulary}", "--store", "absent"], "there is no such folder of predictions;"),
        (["run", "dmeo", "--data", "{data}", "--out", "o"], "There is no recipe 'dmeo'"),
        (["run", "demo", "--data", "absent", "--out", "o"], "absent: there is no such dataset folder."),
        (["run", "demo", "--data", "{data}/video", "--out", "o"], "segment_vocabulary.csv: there is no such file;"),
        (["run", "demo", "--data", "{data}", "--out", "o", "--set", "foldz=3"], "unknown key 'foldz'"),
        (["run", "demo", "--data", "{data}", "--out", "o", "--only", "predikt"], "has no stage 'predikt'"),
        (["pretrain", "demo", "dboff", "--data", "{data}", "--out", "o"], "has no stage 'pretrain/dboff'"),
        (["find-lr", "demo", "dbof", "--data", "absent", "--out", "o"], "absent: there is no such dataset folder."),
        (["find-lr", "demo", "dboff", "--data", "{data}", "--out", "o"], "The recipe has no model 'dboff'"),
        (["estimate", "demo", "--set", "foldz=3"], "unknown key 'foldz'"),
        (["locate", "abcd", "{vocabulary}"], "yt8m locate needs either model folders, or --run DIR"),
        (["locate", "abcd", "absent", "{vocabulary}", "{shards}"], "absent: there is no such model folder."),
        (["locate", "absent.tfrecord", "{model}", "{vocabulary}"], "absent.tfrecord: there is no such shard."),
        (["locate", "a video", "{model}", "{vocabulary}", "{shards}"], "there is no video 'a video' among its 8."),
        (["locate", "{video}", "--run", "absent", "{vocabulary}", "{shards}"], "is not the folder of a run"),
        (["locate", "{video}", "{model}", "{vocabulary}", "{shards}", "--svg", "o.png"], "expected a name that ends in .svg"),
        (["import-2019", "absent", "o"], "absent: there is no such model folder."),
        (["demo", "{data}/segment_vocabulary.csv"], "contains something other than a demo"),
    ],
)  # fmt: skip
def test_mistakes_in_arguments_are_reported_without_loading_torch(
    finished_run: FinishedRun, tiny_dataset: Path, arguments: list[str], expected: str
) -> None:
    names = {
        "data": tiny_dataset,
        "model": finished_run.model("finetune/bare"),
        "shards": f"--shards={tiny_dataset / 'segment/test'}",
        "vocabulary": f"--vocabulary={tiny_dataset}",
        "video": Catalog.load(tiny_dataset / "segment/test").video_ids[0],
    }
    sentence, loaded = sentence_and_modules(*(argument.format(**names) for argument in arguments))
    assert expected in sentence
    assert loaded.isdisjoint({"torch", "lightning_fabric", "matplotlib"})


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-command"], "No such command 'no-such-command'."),
        (["find-rate"], "No such command 'find-rate'. Did you mean 'find-lr'?"),
        (["run", "demo", "--out", "x"], "Missing option '--data'."),
        (["run", "demo", "--data", "x"], "Missing option '--out'."),
        (["run"], "Missing argument"),
        (["finetune", "demo", "agnostic-dbof", "--data", "x"], "Missing option '--out'."),
        (["index"], "Missing argument"),
        (["evaluate", "x.csv", "--truth", "y.csv", "--k", "0"], "Invalid value for '--k'"),
        (["splice", "x", "--pretrain", "none"], "Invalid value for '--pretrain'"),
        (
            ["merge", "x", "--shards", "y", "--vocabulary", "z", "--out", "o", "--top-k", "100001"],
            "Invalid value for '--top-k'",
        ),
    ],
)
def test_usage_errors_have_status_2_and_no_traceback(arguments: list[str], expected: str) -> None:
    outcome = command(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert "Error" in outcome.err
    assert expected in " ".join(outcome.err.replace("│", " ").split())
    assert "Traceback" not in outcome.err


def test_an_error_prints_only_its_message(tmp_path: Path) -> None:
    ended = run_python("-m", "yt8m", "index", tmp_path / "absent")
    assert (ended.status, ended.out) == (2, "")
    absent = tmp_path / "absent"
    assert ended.err == (
        f"yt8m: {absent}: there is no such folder; expected a folder of shards "
        "(*.tfrecord, *.tfrecords or NAME-00000-of-00100).\n"
    )


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `yt8m index` raise an error."""

    def failing(_: Path) -> None:
        raise error

    monkeypatch.setattr(layout, "dataset_parts", failing)


def test_other_exceptions_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        command("index", tmp_path)


def test_an_interrupted_command_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, KeyboardInterrupt())
    sentence = refused(130, "index", tmp_path)
    assert sentence.startswith("Interrupted. Run the same command to continue")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE])
def test_errors_of_the_file_system_print_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail(monkeypatch, OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert refused(1, "index", tmp_path) == f"{tmp_path / 'file'}: {os.strerror(number)}."
    fail(monkeypatch, OSError(number, os.strerror(number)))
    assert refused(1, "index", tmp_path) == f"Writing a file: {os.strerror(number)}."


def test_other_errors_of_the_operating_system_keep_their_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "file"))
    with pytest.raises(FileNotFoundError):
        command("index", tmp_path)


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(3))
    with subprocess.Popen(
        [sys.executable, "-m", "yt8m", "describe", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(60) == 1
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


# --- Colors ----------------------------------------------------------------------------------------------------------


def test_output_to_pipes_contains_no_escape_sequences(data: Path) -> None:
    for arguments in (["--help"], ["describe", "--help"], ["describe", data], ["describe", data, "--json"], ["run"]):
        for variables in ({}, {"NO_COLOR": "1"}):
            shown = run_command(*arguments, **variables)
            assert "\x1b" not in shown.out + shown.err
            assert shown.out + shown.err


def test_colors_can_be_forced(finished_run: FinishedRun, tiny_dataset: Path, places: list[object]) -> None:
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    locate = ["locate", video, "--run", finished_run.out, *places]
    for arguments in (["--help"], locate):
        colored, plain = run_command(*arguments, FORCE_COLOR="1"), run_command(*arguments)
        assert "\x1b[" in colored.out
        assert "\x1b" not in plain.out
        # Without the escape sequences, the text is the same.
        assert re.sub(r"\x1b\[[0-9;]*m", "", colored.out) == plain.out
    assert "\x1b" not in run_command(*locate, "--json", FORCE_COLOR="1").out


# --- Output ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_characters_that_the_encoding_lacks_are_replaced(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, encoding: str
) -> None:
    header, *rows = (tiny_dataset / "segment_vocabulary.csv").read_text(encoding="utf-8").splitlines()
    column = header.split(",").index("Name")
    cells = [row.split(",") for row in rows]
    named = [",".join([*row[:column], "日本", *row[column + 1 :]]) for row in cells]
    vocabulary = tmp_path / "日本.csv"
    vocabulary.write_text("\n".join([header, *named]) + "\n", encoding="utf-8")
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    locate = ["locate", video, "--run", finished_run.out, "--shards", tiny_dataset / "segment/test"]
    locate += ["--vocabulary", vocabulary]
    variables = {"PYTHONIOENCODING": encoding}
    shown = run_command(*locate, "--quiet", "--svg", tmp_path / "a.svg", **variables)
    assert (shown.status, shown.err) == (0, "")
    assert "\n??  " in shown.out
    assert "日本" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    [timeline] = json.loads(run_command(*locate, "--json", **variables).out)
    assert {concept["name"] for concept in timeline["concepts"]} == {"日本"}
    shards = tmp_path / "日本"
    shutil.copytree(tiny_dataset / "segment/test", shards)
    for command_line in (["describe", shards], ["index", shards], ["splice", tmp_path / "日", "--test", "1"]):
        shown = run_command(*command_line, *(["--pretrain", "1"] if command_line[0] == "splice" else []), **variables)
        assert (shown.status, "Traceback" in shown.err) == (0, False), shown.err
        assert "?" in shown.out
    assert run_command("describe", tmp_path / "本", **variables).status == 2


def test_quiet_commands_print_only_results_and_errors(data: Path, tiny_recipe: Path, out: Path) -> None:
    places = ["--data", data, "--out", out]
    shown = succeeds("pretrain", tiny_recipe, "dbof", *places, "--quiet")
    assert (shown.out, shown.err) == ("", "")
    assert "pretrain dbof: finished before, skipped" in succeeds("pretrain", tiny_recipe, "dbof", *places).err
    assert succeeds("describe", data, "-q").out == succeeds("describe", data).out
    assert refused(2, "pretrain", tiny_recipe, "dboff", *places, "-q").startswith("The recipe has no stage")


def test_quiet_commands_list_damaged_records(tmp_path: Path) -> None:
    [path] = write_shards(tmp_path, random_videos(3), num_shards=1)
    path.write_bytes(path.read_bytes()[:-10])
    plain, quiet = command("index", tmp_path), command("index", tmp_path, "--quiet")
    assert quiet == plain
    assert len(quiet.err.splitlines()) == 2
