"""Settings: typed, immutable and strict, so that a misspelt key is an error and not ignored.

Every group of settings derives from `Settings`; those of recipes are in modules that load without torch. `validated` turns
the values of a YAML file into one, or raises one sentence that names the file, the key, what was found and what was
expected.
"""

import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from yt8m.errors import UsageError


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values immutable, numbers finite, and types never guessed."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """New names of keys that had another one in earlier versions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Settings)

MAX_SIZE = 2**20
"""Most of anything that is allocated: channels, frames, examples of a batch."""
MAX_STEPS = 10**9
"""Most steps of anything."""
MAX_SEED = 2**63 - 1
"""Highest seed, which generators take as a signed integer of 64 bits."""


_MOST_NODES = 100_000
"""Most values in a file, counting those that `*name` repeats each time."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2, and in which repeated keys are errors.

    In YAML 1.1, `2e-4` is a word, `020` is 16, and `1:30` is 90.

    The number of values is limited, so that nested repetitions (`*name`) cannot expand to billions.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _num_nodes(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(
                f"it contains more than {_MOST_NODES:,} values, counting repeated ones, or one that contains itself"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark)
            keys.add(key.value)
        return node


def _num_nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of values under a node, itself included; infinite where it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_num_nodes(part, known) for part in parts)
    return known[id(node)]


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_DIGITS = list("-+0123456789")
_INT_PATTERN = re.compile(r"^[-+]?(\d[\d_]*|0o[0-7]+|0x[\da-fA-F]+|0b[01]+)$")
_FLOAT_PATTERN = re.compile(
    r"^([-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$"
)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that are numbers in YAML 1.1 or for `_Loader`."""


for _tag, _pattern, _first in ((_INT, _INT_PATTERN, _DIGITS), (_FLOAT, _FLOAT_PATTERN, [*_DIGITS, "."])):
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor(_INT, lambda _, node: _whole_number(str(node.value)))


def _whole_number(text: str) -> int:
    return int(text.replace("_", ""), 0 if re.match(r"[-+]?0[oxb]", text) else 10)


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain values.

    Raises:
        yaml.YAMLError: It is not YAML, or contains an invalid value, such as the day 2019-02-31.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:
        raise yaml.YAMLError(f"a value is invalid ({error})") from None


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
    """Make settings from plain values.

    Args:
        kind: The class of settings.
        values: Content of a YAML file.
        source: Where it was read, for messages.

    Raises:
        UsageError: A key is unknown, a type wrong or a value invalid; the message names every such place.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{source}: expected settings (keys and values), found {_shown(values)}.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_problem(kind, detail) for detail in error.errors(include_url=False)]
        raise UsageError(f"{source}: {'; '.join(dict.fromkeys(problems))}.") from None


def to_yaml(settings: Settings) -> str:
    """Write settings as YAML, with every default spelled out."""
    return dump_yaml(settings.model_dump(mode="json"))


def dump_yaml(values: Any) -> str:
    """Write plain values as YAML, such that `parse_yaml` and any reader of YAML 1.1 read the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def fingerprint(values: Any) -> str:
    """Hash the values that decide a result, to find out later whether it can be reused.

    Args:
        values: Plain values, as JSON has them; the order of keys does not matter.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """Suggest the known word nearest to a misspelt one, as `" (did you mean 'x'?)"`, or list the known words."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(choices)})" if choices else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(kind: type[BaseModel], detail: ErrorDetails) -> str:
    """Describe a validation error, with its place in the YAML file."""
    # A last part "[key]" means that the error is about a dictionary's key itself.
    keys, models = _walk(kind, tuple(part for part in detail["loc"] if part != "[key]"))
    place, found, message = ".".join(keys) or "settings", f"found {_shown(detail['input'])}", detail["msg"]
    match detail["type"]:
        case "extra_forbidden":
            renamed = {
                old: new for model in models if issubclass(model, Settings) for old, new in model.renamed.items()
            }
            known = {name for model in models for name in model.model_fields}
            if keys[-1] in renamed:
                problem = f"the key {place!r} is now called {renamed[keys[-1]]!r}"
            else:
                problem = f"unknown key {place!r}{did_you_mean(keys[-1], known)}"
        case "missing":
            problem = f"{place!r} is missing"
        case "union_tag_not_found":
            problem = f"'{place}.{_discriminator(detail)}' is missing"
        case "union_tag_invalid":
            tags, tag = detail["ctx"]["expected_tags"], detail["ctx"]["tag"]
            problem = f"'{place}.{_discriminator(detail)}': expected one of {tags}, found {tag!r}"
        case "value_error":
            message = message.removeprefix("Value error, ")
            problem = f"{place!r}: {message}" if keys else message
        case "model_type" | "model_attributes_type" | "dict_type":
            problem = f"{place!r}: expected keys and values, {found}"
        case _ if message.startswith("Input should be "):
            problem = f"{place!r}: expected {message.removeprefix('Input should be ')}, {found}"
        case _:
            problem = f"{place!r}: {message[0].lower()}{message[1:]}, {found}"
    return problem


def _discriminator(detail: ErrorDetails) -> str:
    return str(detail["ctx"]["discriminator"]).strip("'")


def _walk(kind: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """Follow a location through nested settings.

    Returns:
        The keys as the file has them (a location also contains the tags of unions), and the settings that may contain
        the last one.
    """
    keys: list[str] = []
    models: list[type[BaseModel]] = []
    here: list[Any] = [kind]
    for part in location:
        models = [option for option in here if _is_settings(option)]
        tagged = [model for model in models if part in _tags(model)]
        if len(models) > 1 and tagged:
            here = tagged
            continue
        keys.append(str(part))
        here = [inner for option in here for inner in _inside(option, part)]
    return keys, models


def _tags(kind: type[BaseModel]) -> set[object]:
    """Values of the literal fields by which the members of a union are told apart."""
    return {
        value
        for field in kind.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
        for value in typing.get_args(field.annotation)
    }


def _is_settings(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inside(annotation: Any, key: int | str) -> list[Any]:
    """Types allowed at a key of a group of settings, a dictionary or a list."""
    if _is_settings(annotation):
        return _options(annotation.model_fields[key].annotation) if key in annotation.model_fields else []
    if typing.get_origin(annotation) in (dict, list):
        return _options(typing.get_args(annotation)[-1])
    return []


def _options(annotation: Any) -> list[Any]:
    """Members of a union, through `Annotated`; any other type is its own only member."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(annotation) for option in _options(member)]
    return [annotation]


def overridden(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Override some of the plain values.

    Args:
        values: Plain values; not changed.
        overrides: `path=value` each, such as `base_models.dbof.training.steps=100`; values are YAML.

    Raises:
        UsageError: An override is malformed, or its path leads through a value that has no keys.
    """
    values = dict(values)
    for override in overrides:
        _set(values, override)
    return values


def _set(values: dict[str, Any], override: str) -> None:
    match = re.fullmatch(r"([^=\s]+)=(.*)", override, re.DOTALL)
    if not match:
        raise UsageError(f"--set {override}: expected path=value, such as base_models.dbof.training.steps=100.")
    try:
        value = parse_yaml(match[2])
    except yaml.YAMLError:
        raise UsageError(f"--set {override}: the value is not valid YAML.") from None
    place, path, rest = values, match[1], match[1]
    while (key := _first_key(place, rest)) != rest:
        rest = rest[len(key) + 1 :]
        inner = place.get(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: {path.removesuffix(f'.{rest}')!r} has no keys of its own.")
        # YAML's `*name` repeats one object: without a copy, all its places would change.
        place[key] = dict(inner)
        place = place[key]
    place[rest] = value


def _first_key(values: dict[str, Any], path: str) -> str:
    """The first key of a path: the longest of the keys that there are, which may contain dots, or up to the first dot."""
    known = [key for key in map(str, values) if f"{path}.".startswith(f"{key}.")]
    return max(known, key=len, default=path.partition(".")[0])
