"""Write the reference of recipe keys from the settings: `python docs/recipe_reference.py [FILE]`."""

import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from yt8m.runs.recipe import Recipe
from yt8m.settings import Settings

PAGE = Path(__file__).parent / "recipes.md"

INTRODUCTION = """\
# Recipe keys

Every key of a recipe with its type, default and meaning, generated from the settings (`make docs`). A recipe is a YAML
file; `yt8m run` takes its path, or the name of one that is part of the package. Keys without a default are required
where their group is present. Unknown keys, wrong types and references to models that do not exist are refused before
anything runs. `--set path=value` overrides a key: `--set base_models.dbof.training.steps=100`.

NAME stands for the name of a model, which consists of letters, digits, `.`, `_` and `-`.
"""

PLAIN: dict[Any, str] = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
LIMITS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def unwrapped(annotation: Any) -> Any:
    """A type without its `Annotated`."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def members(annotation: Any) -> list[Any]:
    """The members of a union, through `Annotated`; any other type is its own only member."""
    annotation = unwrapped(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in members(member)]
    return [annotation]


def is_group(annotation: Any) -> bool:
    """Whether a type is a group of settings."""
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def title(group: type[Settings]) -> str:
    """Heading of a group: the name of its class in words."""
    name = group.__name__.removesuffix("Config")
    if name in ("DBoF", "NeXtVLAD"):
        return name
    return re.sub(r"(?<=[a-z])([A-Z])", lambda match: f" {match[1].lower()}", name)


def link(group: type[Settings]) -> str:
    """A link to the section of a group."""
    return f"[{title(group)}](#{title(group).lower().replace(' ', '-')})"


def type_text(annotation: Any) -> str:
    """A type in words."""
    texts = []
    for member in members(annotation):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if is_group(member):
            texts.append(link(member))
        elif origin is Literal:
            texts += [f"`{value}`" for value in arguments]
        elif origin is dict:
            texts.append(f"NAME: {type_text(arguments[1])}{limits_inside(arguments[1])}")
        elif origin is list:
            plural = f"{type_text(arguments[0])}s".replace("texts", "names")
            texts.append(f"list of {plural}{limits_inside(arguments[0])}")
        elif member is type(None):
            texts.append("`null`")
        else:
            texts.append(PLAIN[member])
    return " or ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]


def limits(field: FieldInfo) -> str:
    """The bounds of a field in words, with a comma before them."""
    found = [(word, getattr(part, name)) for part in field.metadata for name, word in LIMITS if hasattr(part, name)]
    return "".join(f", {word} {bound:,}" for word, bound in found)


def limits_inside(annotation: Any) -> str:
    """The bounds of the values of a list or a dictionary."""
    parts = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()
    return "".join(limits(part) for part in parts if isinstance(part, FieldInfo))


def default_text(field: FieldInfo) -> str:
    """The default of a field as YAML has it, or that it is required."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        return "the defaults"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`".replace(" ", "")
    if value in ("", [], {}):
        return "empty"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def groups(kind: type[Settings], path: str = "") -> Iterator[tuple[type[Settings], str]]:
    """A group and those inside it, in the order of the keys, each with the path of its keys; repeated where reused."""
    yield kind, path
    for key, field in kind.model_fields.items():
        place = f"{path}.{key}".lstrip(".")
        for member in members(field.annotation):
            if is_group(member):
                yield from groups(member, place)
            elif typing.get_origin(member) is dict:
                for inner in filter(is_group, members(typing.get_args(member)[1])):
                    yield from groups(inner, f"{place}.NAME")


def section(group: type[Settings], paths: list[str]) -> str:
    """The section of a group of settings."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in group.model_fields.items():
        if typing.get_origin(field.annotation) is Literal and len(typing.get_args(field.annotation)) == 1:
            rows.append(f"| `{key}` | {type_text(field.annotation)} | **required** | Selects this group. |")
            continue
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{key}` | {type_text(field.annotation)}{limits(field)} | {default_text(field)} | {meaning} |")
    places = ", ".join(f"`{path}`" for path in dict.fromkeys(paths) if path)
    where = f"In {places}. " if places else ""
    about = " ".join((group.__doc__ or "").split())
    return "\n".join([f"## {title(group)}", "", f"{where}{about}", "", *rows])


def page() -> str:
    """The text of the page."""
    places: dict[type[Settings], list[str]] = {}
    for group, path in groups(Recipe):
        places.setdefault(group, []).append(path)
    return "\n\n".join([INTRODUCTION.rstrip(), *(section(group, paths) for group, paths in places.items())]) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(page(), encoding="utf-8")
