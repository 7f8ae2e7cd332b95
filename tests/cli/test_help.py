"""Help pages on a terminal of 80 columns."""

from __future__ import annotations

import inspect
import re

import pytest
import typer.main
from rich.cells import cell_len

from tests.support.command import succeeds
from yt8m.cli.main import GROUPS, app

FUNCTIONS = {name: function for commands in GROUPS.values() for name, function in commands.items()}
COLUMNS = 80


def example_lines(name: str) -> list[str]:
    """Lines of the fenced block of a command's docstring."""
    docstring = inspect.getdoc(FUNCTIONS[name]) or ""
    [block] = re.findall(r"```sh\n(.*?)\n```", docstring, re.DOTALL)
    return str(block).splitlines()


def unwrapped(lines: list[str], wanted: str) -> tuple[str, list[str]]:
    """Join wrapped lines until they contain as much text as a line of the docstring.

    Returns:
        The joined text without spaces, and the remaining lines.
    """
    text = ""
    target = "".join(wanted.split())
    while lines and len(text) < len(target):
        text += "".join(lines[0].split())
        lines = lines[1:]
    return text, lines


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_example_starts_on_its_own_line(name: str) -> None:
    lines = succeeds(name, "--help").out.splitlines()
    examples = example_lines(name)
    assert examples
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(examples[0][:30]))
    remaining = lines[start:]
    for example in examples:
        shown, remaining = unwrapped(remaining, example)
        assert shown == "".join(example.split())
    # The last example is followed by an empty line.
    assert remaining[0].strip() == ""
    assert all(example.startswith((f"yt8m {name}", "    ")) for example in examples)


@pytest.mark.parametrize("name", [*FUNCTIONS, None])
def test_help_fits_the_terminal(name: str | None) -> None:
    lines = succeeds(*filter(None, [name]), "--help").out.splitlines()
    assert max(map(cell_len, lines)) <= COLUMNS
    assert not [line for line in lines if "…" in line], "cut off"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_describes_the_command_and_its_parameters(name: str) -> None:
    lines = [line.strip() for line in succeeds(name, "--help").out.splitlines()]
    # The description is between the usage and the box of the arguments.
    usage = next(number for number, line in enumerate(lines) if line.startswith("Usage:"))
    box = next(number for number, line in enumerate(lines) if line.startswith("╭"))
    described = [line for line in lines[usage + 1 : box] if line]
    examples = [line for line in described if line.startswith(f"yt8m {name}")]
    assert examples
    assert len(" ".join(described[: described.index(examples[0])]).split()) >= 8
    parameters = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    assert all(parameter.help or parameter.name == "help" for parameter in parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_markup_is_left_in_the_help(name: str) -> None:
    shown = succeeds(name, "--help").out
    assert "`" not in shown
    assert "```" not in shown
