"""Settings: errors contain the place in the file and the nearest known key."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import pytest
import yaml
from pydantic import Field, ValidationError, model_validator

import yt8m
from tests.support.yaml_bomb import YAML_BOMB
from yt8m.errors import UsageError
from yt8m.settings import (
    Settings,
    did_you_mean,
    dump_yaml,
    overridden,
    parse_yaml,
    read_yaml,
    to_yaml,
    validated,
)


class Round(Settings):
    type: Literal["round"] = "round"
    radius: float = Field(gt=0)


class Square(Settings):
    renamed: ClassVar[Mapping[str, str]] = {"paint": "color"}

    type: Literal["square"] = "square"
    side: int = Field(ge=1)
    color: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.side == 13:
            raise ValueError("a side of 13 is not allowed")
        return self


Shape = Annotated[Round | Square, Field(discriminator="type")]


class Drawing(Settings):
    shapes: dict[Annotated[str, Field(pattern="^[a-z]+$")], Shape] = Field(default_factory=dict)
    frame: Square | None = None
    rows: list[Square] = Field(default_factory=list)
    scale: float = 1.0
    width: int = 3
    visible: bool = True
    unit: Literal["cm", "inch"] = "cm"
    tags: list[str] = Field(default_factory=list)


def problem_of(text: str) -> str:
    with pytest.raises(UsageError) as raised:
        validated(Drawing, parse_yaml(text), "a.yaml")
    message = str(raised.value)
    assert message.startswith("a.yaml: ")
    assert message.endswith(".")
    assert "\n" not in message
    return message.removeprefix("a.yaml: ").removesuffix(".")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("widht: 3", "unknown key 'widht' (did you mean 'width'?)"),
        ("frame: {side: 1, colour: red}", "unknown key 'frame.colour' (did you mean 'color'?)"),
        ("shapes: {a: {type: square, sied: 3, side: 3}}", "unknown key 'shapes.a.sied' (did you mean 'side'?)"),
        ("shapes: {a: {type: round, radius: 3, sied: 3}}", "unknown key 'shapes.a.sied' (known: radius, type)"),
        # Names of shapes may equal types and keys.
        ("shapes: {square: {type: square, side: 3, colr: x}}", "unknown key 'shapes.square.colr' (did you mean 'color'?)"),
        ("shapes: {round: {type: square, side: 3, colr: x}}", "unknown key 'shapes.round.colr' (did you mean 'color'?)"),
        ("shapes: {frame: {type: square, side: 3, colr: x}}", "unknown key 'shapes.frame.colr' (did you mean 'color'?)"),
        ("shapes: {round: {type: square, side: 0}}", "'shapes.round.side': expected greater than or equal to 1, found 0"),
        ("frame: {side: 1, square: 2}", "unknown key 'frame.square' (known: color, side, type)"),
        ("rows: [{side: 1}, {side: 2, sdie: 2}]", "unknown key 'rows.1.sdie' (did you mean 'side'?)"),
        ("frame: {side: 1, paint: red}", "the key 'frame.paint' is now called 'color'"),
        ("shapes: {a: {type: square, side: 1, paint: red}}", "the key 'shapes.a.paint' is now called 'color'"),
        ("shapes: {a: {type: round, radius: 1, paint: red}}", "unknown key 'shapes.a.paint' (known: radius, type)"),
        (
            "xyz: 1",
            "unknown key 'xyz' (known: frame, rows, scale, shapes, tags, unit, visible, width)",
        ),
    ],
)  # fmt: skip
def test_unknown_keys_are_reported_with_the_nearest_known_key(text: str, problem: str) -> None:
    assert problem_of(text) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("shapes: {a: {type: sqare, side: 3}}", "'shapes.a.type': expected one of 'round', 'square', found 'sqare'"),
        ("shapes: {a: {side: 3}}", "'shapes.a.type' is missing"),
        ("shapes: {a: square}", "'shapes.a': expected keys and values, found 'square'"),
        ("shapes: 3", "'shapes': expected keys and values, found 3"),
        ("shapes: {a: {type: round}}", "'shapes.a.radius' is missing"),
        ("shapes: {A: {type: round, radius: 1}}", "'shapes.A': string should match pattern '^[a-z]+$', found 'A'"),
        ("frame: {side: 13}", "'frame': a side of 13 is not allowed"),
        ("unit: mile", "'unit': expected 'cm' or 'inch', found 'mile'"),
        ("width: '3'", "'width': expected a valid integer, found '3'"),
        ("width: 2.5", "'width': expected a valid integer, found 2.5"),
        ("width: true", "'width': expected a valid integer, found True"),
        ("width:", "'width': expected a valid integer, found None"),
        ("scale: fast", "'scale': expected a valid number, found 'fast'"),
        ("visible: 1", "'visible': expected a valid boolean, found 1"),
        ("tags: [1]", "'tags.0': expected a valid string, found 1"),
        ("tags: one", "'tags': expected a valid list, found 'one'"),
        (f"width: {'x' * 90}", f"'width': expected a valid integer, found '{'x' * 56}..."),
    ],
)
def test_wrong_values_are_reported_with_their_place(text: str, problem: str) -> None:
    assert problem_of(text) == problem


def test_every_problem_is_reported() -> None:
    found = problem_of("width: a\nscale: b\nframe: {size: 1}\n")
    assert [part.split(":")[0] for part in found.split("; ")] == [
        "'frame.side' is missing",
        "unknown key 'frame.size' (did you mean 'side'?)",
        "'scale'",
        "'width'",
    ]


@pytest.mark.parametrize("text", ["", "3", "- a", "only words"])
def test_a_file_without_keys_is_refused(text: str) -> None:
    assert problem_of(text).startswith("expected settings (keys and values), found ")


@pytest.mark.parametrize(
    ("text", "number"),
    [("2e-4", 2e-4), ("1E3", 1e3), ("-.5e+2", -50.0), ("3.e2", 300.0), ("2.0e-4", 2e-4), ("7", 7), ("0.25", 0.25)],
)
def test_numbers_in_scientific_notation_are_read_as_numbers(text: str, number: float) -> None:
    drawing = validated(Drawing, parse_yaml(f"scale: {text}"), "a.yaml")
    assert drawing.scale == number
    assert isinstance(drawing.scale, float | int)


@pytest.mark.parametrize("text", ["e5", "1e", "2e-4x", "'2e-4'", "e"])
def test_words_that_resemble_numbers_are_read_as_words(text: str) -> None:
    assert parse_yaml(text) == text.strip("'")


def test_other_yaml_loaders_of_the_process_are_not_changed() -> None:
    assert yaml.safe_load("2e-4") == "2e-4"
    assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("frame:\n  side: 1\n  side: 2\n")
    with pytest.raises(UsageError, match=r"^.*a\.yaml: is not valid YAML: the key 'side' occurs twice in .*line 3"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            YAML_BOMB + "side: *a29\n",
            "it contains more than 100,000 values, counting repeated ones, or one that contains itself",
        ),
        (
            "side: &itself [*itself]",
            "it contains more than 100,000 values, counting repeated ones, or one that contains itself",
        ),
        ("side: " + 5000 * "[", "it is nested too deeply"),
        ("side: " + 5000 * "{a: ", "it is nested too deeply"),
        ("side: 2019-02-31", "a value is invalid (day is out of range for month)"),
        ("side: !!int words", "a value is invalid (invalid literal for int() with base 10: 'words')"),
        ("side: " + 5000 * "1", "a value is invalid ("),
    ],
    ids=["repeated", "within itself", "lists", "keys", "day", "word", "digits"],
)
def test_yaml_that_would_exhaust_memory_or_raise_other_errors_is_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"a\.yaml: is not valid YAML: {re.escape(problem)}"):
        read_yaml(tmp_path / "a.yaml")


def test_values_may_be_repeated() -> None:
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": {"x": [1, 2], "y": 3},
    }


def test_merged_keys_may_be_overridden() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: [*b], x: 4}\nd: *b\n"
    b = {"x": 1, "y": 3}
    assert parse_yaml(text) == {"a": {"x": 1, "y": 2}, "b": b, "c": {"x": 4, "y": 3}, "d": b}


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^.*none\.yaml: there is no such file\.$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r": cannot be read as text \(.*[Dd]irectory.*\)\.$"):
        read_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match=r"bytes\.yaml: cannot be read as text "):
        read_yaml(tmp_path / "bytes.yaml")
    for text in ("a: [1", "a: b: c", "\tx", "? [1, 2]\n: 3"):
        (tmp_path / "not.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"not\.yaml: is not valid YAML: ") as raised:
            read_yaml(tmp_path / "not.yaml")
        assert "\n" not in str(raised.value)


def test_written_settings_are_read_back_unchanged() -> None:
    drawing = Drawing(
        shapes={"a": Round(radius=2e-4), "b": Square(side=3, color="é")}, frame=Square(side=2), tags=["1", "yes"]
    )
    text = to_yaml(drawing)
    assert validated(Drawing, parse_yaml(text), "a.yaml") == drawing
    # Every value is written, defaults included.
    assert yaml.safe_load(text).keys() == Drawing.model_fields.keys()


def test_settings_are_immutable() -> None:
    drawing = Drawing()
    with pytest.raises(ValidationError, match="frozen"):
        drawing.width = 4


@pytest.mark.parametrize(
    ("word", "known", "answer"),
    [
        ("nextvld", ["dbof", "nextvlad"], " (did you mean 'nextvlad'?)"),
        ("zzz", ["dbof", "abc"], " (known: abc, dbof)"),
        ("zzz", [], ""),
    ],
)
def test_did_you_mean_suggests_the_nearest_word(word: str, known: list[str], answer: str) -> None:
    assert did_you_mean(word, known) == answer


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("020", 20),
        ("-007", -7),
        ("089", 89),
        ("0o20", 16),
        ("0x1F", 31),
        ("0b101", 5),
        ("100_000", 100_000),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("1_0.5", 10.5),
        ("-.5e-3", -0.0005),
        ("2E4", 20_000.0),
        ("+.inf", math.inf),
        ("1.0.0", "1.0.0"),
        ("0o9", "0o9"),
        ("12e", "12e"),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["020", "08", "0o17", "0x1F", "1:30", "2e4", "1_000", "yes", "~", ".inf", "1.5", "a"])
def test_words_are_written_such_that_any_reader_reads_words(text: str) -> None:
    written = dump_yaml({text: text})
    assert parse_yaml(written) == {text: text}
    assert yaml.safe_load(written) == {text: text}


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_must_be_finite(value: str) -> None:
    assert re.fullmatch("'scale': expected a finite number, found (inf|-inf|nan)", problem_of(f"scale: {value}"))


def all_settings(kind: type[Settings] = Settings) -> Iterator[type[Settings]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from all_settings(inner)


def test_every_whole_number_has_an_upper_bound() -> None:
    """A number that no machine could handle is refused as a setting, before anything is allocated."""
    for module in pkgutil.walk_packages(yt8m.__path__, "yt8m."):
        if module.name != "yt8m.__main__":
            importlib.import_module(module.name)
    found = 0
    for kind in all_settings():
        if not kind.__module__.startswith("yt8m.") or kind.__module__.startswith("yt8m.import_2019"):
            continue
        for name, field in kind.model_fields.items():
            if int in (field.annotation, *typing.get_args(field.annotation)):
                found += 1
                is_free = (kind.__name__, name) in {
                    ("StageRecord", "num_segments"),
                    ("ModelDescription", "format_version"),
                }
                is_free |= (kind.__name__, name) == ("StoreIndex", "format_version") or name == "shifts"
                assert is_free or any(hasattr(bound, "le") for bound in field.metadata), (kind, name)
    assert found > 30


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_reach_keys_with_dots() -> None:
    values = {"models": {"v1": {"steps": 1}, "v1.0": {"steps": 2}, "v1.0.b": {"steps": 3}, "x": 0}}
    found = overridden(
        values, ["models.v1.0.steps=20", "models.v1.steps=10", "models.v1.0.b.steps=30", "models.v2.0=5", "new.a.b=1"]
    )
    expected = {"v1": {"steps": 10}, "v1.0": {"steps": 20}, "v1.0.b": {"steps": 30}, "x": 0, "v2": {"0": 5}}
    assert found == {"models": expected, "new": {"a": {"b": 1}}}
    assert values["models"]["v1.0"] == {"steps": 2}
    with pytest.raises(UsageError, match=r"'models\.v1\.0\.steps' has no keys of its own"):
        overridden(values, ["models.v1.0.steps.deep=1"])
