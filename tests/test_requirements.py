"""pyproject.toml, constraints.txt and requirements.txt agree.

The dependencies of a requirement are read from the metadata of the installed packages, not from the lists.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")


def read_lines(name: str) -> list[str]:
    return [
        line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]


def read_pins(name: str) -> dict[str, str]:
    """Versions by canonical name."""
    pairs = [line.split("==") for line in read_lines(name)]
    return {canonicalize_name(package): version for package, version in pairs}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    return read_pins("constraints.txt")


def dependencies(texts: list[str]) -> set[str]:
    """Names of the installed packages that requirements need, directly or through others."""
    found: set[str] = set()
    visited: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in texts]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            pytest.fail(f"{name} is required but not installed; `make test` installs it")
        found.add(name)
        for selected in ["", *requirement.extras]:
            if (name, selected) not in visited:
                visited.add((name, selected))
                waiting += [(Requirement(text), selected) for text in requires]
    return {name for name in found if not name.startswith(CUDA_PREFIXES)}


@pytest.mark.parametrize("name", ["constraints.txt", "requirements.txt"])
def test_lists_pin_one_public_version_per_package_in_order(name: str) -> None:
    for line in read_lines(name):
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "==", line
        assert not {"*", "+"} & set(specifier.version), f"{line}: expected a version, not a build or a range"
    blocks = (ROOT / name).read_text(encoding="utf-8").split("\n\n")
    for block in blocks:
        packages = [line.split("==")[0] for line in block.splitlines() if line and not line.startswith("#")]
        assert packages == sorted(set(packages)), "`sort` the lines; each package once, spelled canonically"
        assert packages == [canonicalize_name(package) for package in packages]


def test_every_direct_requirement_is_pinned_within_its_range(
    pyproject: dict[str, Any], constraints: dict[str, str]
) -> None:
    project = pyproject["project"]
    groups = [
        pyproject["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
    ]
    requirements = [Requirement(text) for group in groups for text in group]
    assert len(requirements) > 20
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if name != "yt8m":
            assert name in constraints, f"constraints.txt does not pin {name}"
            assert requirement.specifier.contains(constraints[name]), f"{requirement}: pinned at {constraints[name]}"


def test_requirements_are_the_dependencies_of_the_package(
    pyproject: dict[str, Any], constraints: dict[str, str]
) -> None:
    requirements = read_pins("requirements.txt")
    assert set(requirements) == dependencies(pyproject["project"]["dependencies"]), "run `make requirements`"
    assert requirements == {name: constraints[name] for name in requirements}, "run `make requirements`"


def test_all_dependencies_of_the_tests_are_pinned(pyproject: dict[str, Any], constraints: dict[str, str]) -> None:
    assert dependencies(pyproject["project"]["optional-dependencies"]["test"]) - set(constraints) == set()
