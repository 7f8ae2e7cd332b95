"""Checks of arguments before torch is loaded agree with those of the work itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from yt8m.cli.checks import require_suffix
from yt8m.errors import UsageError


def message(check: object, *arguments: object) -> str:
    assert callable(check)
    with pytest.raises(UsageError) as error:
        check(*arguments)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.svg", "a.SVG", "a.b.svg", "a", None])
def test_suffixes_that_agree_are_accepted(name: str | None) -> None:
    path = None if name is None else Path(name)
    assert require_suffix(".svg")(path) == path


@pytest.mark.parametrize("name", ["a.png", "a.svg.gz", "folder.svg/a.csv"])
def test_other_suffixes_are_refused(name: str) -> None:
    assert message(require_suffix(".svg"), Path(name)) == (
        f"{name}: expected a name that ends in .svg, the format of this file."
    )
