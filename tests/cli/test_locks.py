"""Two commands that write to the same place: the second is refused, before it has changed anything."""

import shutil
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds
from tests.support.tiny_run import FinishedRun
from yt8m.runtime.locks import locked


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("writes", "arguments"),
    [
        ("{out}", ["run", "{recipe}", "--data", "{data}", "--out", "{out}"]),
        ("{out}", ["finetune", "{recipe}", "bare", "--data", "{data}", "--out", "{out}"]),
        ("{out}", ["predict", "{model}", "--out", "{out}"]),
        ("{out}", ["predict", "{model}", "--table", "{out}"]),
        ("{out}", ["predict", "{model}", "--store", "{out}"]),
        ("{out}", ["merge", "{store}", "--out", "{out}"]),
        ("{data}/segment/test/catalog.parquet", ["index", "{data}/segment/test"]),
        ("{out}", ["splice", "{out}", "--pretrain", "8", "--segments", "8", "--test", "8"]),
        ("{out}", ["demo", "{out}"]),
    ],
    ids=lambda value: (
        " ".join(value[:1] + [a for a in value if a.startswith("--")][-1:]) if type(value) is list else ""
    ),
)
def test_a_second_command_on_an_output_is_refused(
    tmp_path: Path,
    data: Path,
    out: Path,
    tiny_recipe: Path,
    finished_run: FinishedRun,
    writes: str,
    arguments: list[str],
) -> None:
    model = finished_run.model("finetune/bare")
    names = {"out": out, "data": data, "recipe": tiny_recipe, "model": model, "store": tmp_path / "store"}
    command = [argument.format(**names) for argument in arguments]
    places = ["--shards", str(data / "segment/test"), "--vocabulary", str(data)]
    if command[0] in ("predict", "merge"):
        if command[0] == "merge":
            succeeds("predict", model, *places, "--store", command[1])
        command += places
    if command[0] == "finetune":
        shutil.copytree(finished_run.out, out)
    for part in ("video/train", "video/valid", "segment/train", "segment/test"):
        if command[0] != "index":
            succeeds("index", data / part)
    path = Path(writes.format(**names))
    with locked(path):
        before = contents(tmp_path)
        assert refused(1, *command).startswith(f"{path}: another command is writing there (process ")
        assert contents(tmp_path) == before
