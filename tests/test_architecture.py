"""Imports go backward along the road only, and what a command does not need is not imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import yt8m

PACKAGE = Path(yt8m.__file__).parent

PIPELINE = (
    "errors",
    "files",
    "settings",
    "vocabulary",
    "runtime",
    "shards",
    "download",
    "dataset",
    "synthetic",
    "models",
    "inference",
    "import_2019",
    "prediction",
    "ranking",
    "submission",
    "scoring",
    "training",
    "runs",
    "locate",
    "cli",
)
"""Leaves and packages in order: each may import itself and what stands before it."""

ONLY = {
    "errors": set[str](),
    "files": {"errors"},
    "settings": {"errors"},
    "runtime": {"errors", "files", "settings"},
    "models": {"errors", "files", "settings"},
    "inference": {"errors", "files", "settings", "models"},
    "import_2019": {"errors", "files", "settings", "models"},
}
"""Those that may import nothing else of the package."""

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def place(part: str) -> int:
    return PIPELINE.index(part)


def imported_modules(source: str, module: tuple[str, ...], is_package: bool = False) -> Iterator[str]:
    """Full names of the modules that a module's source imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module if is_package else module[:-1]
            base = (*parents[: len(parents) - node.level + 1], *filter(None, [node.module])) if node.level else ()
            name = ".".join(base) if node.level else str(node.module)
            # `from yt8m import run` imports a module as well as `import yt8m.run`.
            yield from (f"{name}.{alias.name}" for alias in node.names)


def parts_imported(source: str, module: tuple[str, ...], is_package: bool = False) -> set[str]:
    """Parts of the road that a module's source imports."""
    names = (name.split(".") for name in imported_modules(source, module, is_package))
    # `__version__`, the one name of the package itself, is no part of the road.
    return {name[1] for name in names if name[0] == "yt8m" and len(name) > 1 and not name[1].startswith("_")}


def forbidden(part: str, imported: set[str]) -> set[str]:
    """Which of the imported parts a part must not import."""
    if part in ONLY:
        return imported - ONLY[part] - {part}
    return {other for other in imported - {part} if place(other) >= place(part)}


def test_the_check_itself_sees_every_way_to_import() -> None:
    source = """
import os, yt8m.runs.run
from yt8m import locate
from .. import cli
from ..training.loop import fit
from . import catalog
def later():
    from yt8m.models.saved import load_model
"""
    found = parts_imported(source, ("yt8m", "dataset", "frames"))
    assert found == {"runs", "locate", "cli", "training", "dataset", "models"}
    assert parts_imported("from . import frames", ("yt8m", "dataset"), is_package=True) == {"dataset"}
    assert forbidden("dataset", found) == {"runs", "locate", "cli", "training", "models"}
    assert forbidden("models", {"dataset", "shards", "vocabulary", "errors", "models"}) == {
        "dataset",
        "shards",
        "vocabulary",
    }
    assert forbidden("training", {"models", "ranking", "scoring", "dataset"}) == set()
    assert forbidden("runtime", {"vocabulary"}) == {"vocabulary"}


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ("__init__.py", "__main__.py")])
def test_imports_go_backward_along_the_road(module: str) -> None:
    name = ("yt8m", *module.removesuffix(".py").removesuffix("/__init__").split("/"))
    part = name[1]
    assert part in PIPELINE, f"give {part} its place in PIPELINE"
    imported = parts_imported((PACKAGE / module).read_text(), name, module.endswith("__init__.py"))
    assert forbidden(part, imported) == set()


def test_the_package_itself_imports_nothing() -> None:
    source = (PACKAGE / "__init__.py").read_text()
    assert list(imported_modules(source, ("yt8m",), is_package=True)) == []


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after some code."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )
    return set(shown.stdout.split())


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    found = modules_after("import yt8m.cli.main")
    assert "typer" in found
    assert found.isdisjoint({"torch", "numpy", "pyarrow", "pydantic", "matplotlib", "lightning_fabric"})


def test_indexing_needs_no_network_library() -> None:
    found = modules_after(
        "import yt8m.dataset.indexing, yt8m.dataset.describe, yt8m.synthetic.splice, yt8m.runtime.progress"
    )
    assert "pyarrow" in found
    assert "torch" not in found


def test_a_model_loads_without_what_trained_it() -> None:
    found = modules_after("import yt8m.models.saved")
    assert "torch" in found
    assert not [
        name for name in found if name.startswith(("yt8m.training", "yt8m.dataset", "yt8m.shards", "yt8m.runtime"))
    ]
    assert "lightning_fabric" not in found
