"""Settings: typed, immutable, and strict, so that a misspelt key is an answer and not a silence.

Every group of settings derives from `Settings` and stands beside the code that it sets. `read_settings` turns YAML
into one of them, or into one sentence that names the file, the key, what was found and the nearest known key.
"""

from __future__ import annotations

import difflib
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from yt8m.errors import UsageError


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, values immutable once made, types never guessed from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `2e-4` is a number, where YAML 1.1 wants `2.0e-4`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain values.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UsageError: The file is missing, cannot be read, or is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error}).") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not valid YAML: {' '.join(str(error).split())}.") from None


def validated(kind: type[S], values: Any, source: str) -> S:
    """Make settings of `kind` from plain values.

    Args:
        kind: The class of settings.
        values: What a YAML file held.
        source: Where it was read, for messages.

    Raises:
        UsageError: A key is unknown, a type wrong or a value impossible; the sentence names every such place.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{source}: expected settings (keys and values), found {_shown(values)}.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_problem(kind, detail) for detail in error.errors(include_url=False)]
        raise UsageError(f"{source}: {'; '.join(dict.fromkeys(problems))}.") from None


def to_yaml(settings: Settings) -> str:
    """Write settings as YAML, every value spelled out, so that the file alone says what was run."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """Say which known word is meant, as `" (did you mean 'x'?)"`, or what there is to choose from."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(choices)})" if choices else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(kind: type[BaseModel], detail: ErrorDetails) -> str:
    """Say one finding of the validation, with the place as the YAML file has it."""
    keys, known = _walk(kind, detail["loc"])
    place = ".".join(keys) or "settings"
    if detail["type"] == "extra_forbidden":
        return f"unknown key {place!r}{nearest(keys[-1], known)}"
    if detail["type"] == "missing":
        return f"{place!r} is missing"
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = detail.get("ctx", {})
        key, tags = str(context["discriminator"]).strip("'"), str(context.get("expected_tags", ""))
        found = f", found {context['tag']!r}" if "tag" in context else ""
        return f"'{place}.{key}': expected one of {tags or 'the known kinds'}{found}"
    if detail["type"] == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return message if not keys else f"{place!r}: {message}"
    return f"{place!r}: expected {detail['msg'].removeprefix('Input should be ')}, found {_shown(detail['input'])}"


def _walk(kind: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], set[str]]:
    """Follow a location through nested settings.

    Returns:
        The keys as the file has them (a location also holds the tags of unions), and the keys known at the last one.
    """
    keys: list[str] = []
    candidates: list[type[BaseModel]] = [kind]
    known: set[str] = set(kind.model_fields)
    for part in location:
        tagged = [candidate for candidate in candidates if part in _tags(candidate)]
        if tagged and keys:
            candidates = tagged
            known = {name for candidate in candidates for name in candidate.model_fields}
            continue
        known = {name for candidate in candidates for name in candidate.model_fields}
        keys.append(str(part))
        fields = [candidate.model_fields[str(part)] for candidate in candidates if part in candidate.model_fields]
        candidates = [member for field in fields for member in _members(field.annotation)] or candidates
    return keys, known


def _tags(kind: type[BaseModel]) -> set[object]:
    """Values of the literal fields that tell the members of a union apart."""
    return {
        value
        for field in kind.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
        for value in typing.get_args(field.annotation)
    }


def _members(annotation: object) -> list[type[BaseModel]]:
    """All settings classes inside an annotation: `dict[str, A]`, `A | B`, `Annotated[A, ...]`, `list[A]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for argument in typing.get_args(annotation) for member in _members(argument)]
