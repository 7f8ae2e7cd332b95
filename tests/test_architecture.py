"""Modules import only earlier parts of the pipeline, files and classes are small, and libraries load when needed."""

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
    "torch_files",
    "features",
    "vocabulary",
    "runtime",
    "shards",
    "download",
    "extraction",
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
    "search",
    "cli",
)
"""Leaves and packages in order; each may import itself and those before it."""

ONLY = {
    "errors": set[str](),
    "files": {"errors"},
    "settings": {"errors"},
    "torch_files": {"errors"},
    "features": {"errors", "settings"},
    "runtime": {"errors", "files", "settings"},
    "models": {"errors", "features", "files", "settings", "vocabulary"},
    "inference": {"errors", "features", "files", "settings", "models"},
    "import_2019": {"errors", "features", "files", "settings", "torch_files", "vocabulary", "models"},
}
"""Parts that may import only these other parts of yt8m."""

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

TESTS = Path(__file__).parent
TEST_FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))

MAX_LINES_PER_FILE = 450
MAX_LINES_PER_CLASS = 250

LEAVES = {"errors.py", "features.py", "files.py", "settings.py", "torch_files.py", "vocabulary.py"}
"""Modules at the top of the package: those that import no package of yt8m."""


def place(part: str) -> int:
    return PIPELINE.index(part)


def imported_modules(source: str, module: tuple[str, ...], is_package: bool = False) -> Iterator[str]:
    """Full names of the modules that a module's source imports, inside functions too."""
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
    """Parts of the pipeline that a module's source imports."""
    names = (name.split(".") for name in imported_modules(source, module, is_package))
    # `__version__`, the only name of the package itself, is not part of the pipeline.
    return {name[1] for name in names if name[0] == "yt8m" and len(name) > 1 and not name[1].startswith("_")}


def forbidden(part: str, imported: set[str]) -> set[str]:
    """Imported parts that a part must not import."""
    if part in ONLY:
        return imported - ONLY[part] - {part}
    return {other for other in imported - {part} if place(other) >= place(part)}


def test_the_check_finds_every_kind_of_import() -> None:
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
    }
    assert forbidden("training", {"models", "ranking", "scoring", "dataset"}) == set()
    assert forbidden("runtime", {"vocabulary"}) == {"vocabulary"}


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ("__init__.py", "__main__.py")])
def test_modules_import_only_earlier_parts_of_the_pipeline(module: str) -> None:
    name = ("yt8m", *module.removesuffix(".py").removesuffix("/__init__").split("/"))
    part = name[1]
    assert part in PIPELINE, f"add {part} to PIPELINE"
    imported = parts_imported((PACKAGE / module).read_text(), name, module.endswith("__init__.py"))
    assert forbidden(part, imported) == set()


def test_the_package_itself_imports_nothing() -> None:
    source = (PACKAGE / "__init__.py").read_text()
    assert list(imported_modules(source, ("yt8m",), is_package=True)) == []


# --- Size ------------------------------------------------------------------------------------------------------------


def class_lengths(source: str) -> dict[str, int]:
    """Lines of each class of a module, decorators excluded."""
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in classes}


@pytest.mark.parametrize("module", MODULES)
def test_files_and_classes_are_small(module: str) -> None:
    source = (PACKAGE / module).read_text()
    assert len(source.splitlines()) <= MAX_LINES_PER_FILE
    assert {name: lines for name, lines in class_lengths(source).items() if lines > MAX_LINES_PER_CLASS} == {}


def test_the_top_of_the_package_contains_only_leaves() -> None:
    """Modules that import packages belong in a package."""
    top = {module for module in MODULES if "/" not in module}
    assert top == LEAVES | {"__init__.py", "__main__.py"}
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert packages | {leaf.removesuffix(".py") for leaf in LEAVES} == set(PIPELINE)
    for leaf in LEAVES:
        name = ("yt8m", leaf.removesuffix(".py"))
        assert parts_imported((PACKAGE / leaf).read_text(), name) & packages == set(), leaf


# --- Tests -----------------------------------------------------------------------------------------------------------


def imported_test_modules(source: str, path: str) -> set[str]:
    """Names that a file in tests/ imports from test modules and from conftest.py."""
    module = ("tests", *path.removesuffix(".py").removesuffix("/__init__").split("/"))
    names = imported_modules(source, module, path.endswith("__init__.py"))
    return {
        name
        for name in names
        if name.startswith("tests.") and any(part == "conftest" or part.startswith("test_") for part in name.split("."))
    }


def test_the_check_finds_imports_from_test_modules() -> None:
    source = """
from tests.conftest import FinishedRun
from tests.support.command import yt8m
from ..models.test_layers import plain_gate
from . import test_run
import pytest, tests.test_settings
"""
    assert imported_test_modules(source, "runs/test_stages.py") == {
        "tests.conftest.FinishedRun",
        "tests.models.test_layers.plain_gate",
        "tests.runs.test_run",
        "tests.test_settings",
    }


@pytest.mark.parametrize("path", TEST_FILES)
def test_tests_import_shared_code_only_from_support(path: str) -> None:
    assert imported_test_modules((TESTS / path).read_text(), path) == set()


# --- Loading ---------------------------------------------------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    """Names of all modules that a new interpreter has loaded after some code."""
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


def test_indexing_does_not_import_torch() -> None:
    found = modules_after(
        "import yt8m.dataset.indexing, yt8m.dataset.describe, yt8m.synthetic.splice, yt8m.runtime.progress"
    )
    assert "pyarrow" in found
    assert "torch" not in found


def test_a_table_is_searched_without_torch() -> None:
    found = modules_after("import yt8m.cli.main, yt8m.search.search, yt8m.search.concepts, rich.table")
    assert "pyarrow" in found
    assert found.isdisjoint({"torch", "pydantic", "matplotlib", "lightning_fabric"})


def test_recipes_are_read_without_torch() -> None:
    found = modules_after(
        "import yt8m.runs.recipe, yt8m.runs.finished, yt8m.locate.locate, yt8m.ranking.ensemble, yt8m.prediction.store"
    )
    assert "pydantic" in found
    assert "torch" not in found


def test_a_model_loads_without_training_code() -> None:
    found = modules_after("import yt8m.models.saved")
    assert "torch" in found
    assert not [
        name for name in found if name.startswith(("yt8m.training", "yt8m.dataset", "yt8m.shards", "yt8m.runtime"))
    ]
    assert "lightning_fabric" not in found
