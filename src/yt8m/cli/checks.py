"""Checks of arguments that need no torch, so that a mistake is reported at once.

Loading torch and Fabric takes seconds. Commands call these before they import it; the work itself checks the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from yt8m.errors import UsageError

if TYPE_CHECKING:
    from yt8m.runs.recipe import Recipe


def require_suffix(*suffixes: str) -> Callable[[Path | None], Path | None]:
    """A callback for the option of an output file: its name must end with one of these suffixes, or have none.

    Args:
        suffixes: The allowed ones, such as ".svg".
    """

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix and path.suffix.lower() not in suffixes:
            raise UsageError(f"{path}: expected a name that ends in {' or '.join(suffixes)}, the format of this file.")
        return path

    return check


def require_recipe(name: str, overrides: list[str] | None, data: Path, only: str | None = None) -> Recipe:
    """Read a recipe, and require a dataset folder with a vocabulary, and the stage to run.

    Args:
        name: File or name of the recipe.
        overrides: Settings to override, `path=value` each.
        data: The dataset folder.
        only: The kind of stage or the stage to run; None for all.

    Raises:
        UsageError: One of them is missing or invalid.
    """
    from yt8m.runs.recipe import find_recipe, read_recipe
    from yt8m.vocabulary import Vocabulary

    recipe = read_recipe(find_recipe(name), overrides)
    if not data.is_dir():
        raise UsageError(f"{data}: there is no such dataset folder.")
    recipe.log.check()
    recipe.require_stage(only)
    Vocabulary.load(data)
    return recipe
