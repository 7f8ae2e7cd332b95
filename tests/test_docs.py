"""Documentation: commands parse, links and paths exist, recipes load, settings are valid, and the prose is plain."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tokenize
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import yt8m
from tests.support.tiny_run import FinishedRun
from yt8m.cli.main import app
from yt8m.cli.options import merge_config
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError
from yt8m.features import Features
from yt8m.runs.recipe import Recipe, find_recipe, read_recipe
from yt8m.settings import Settings, parse_yaml, read_yaml, validated

ROOT = Path(__file__).parents[1]
PACKAGE = Path(yt8m.__file__).parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
PAGES += [ROOT / "tests" / "fuzz" / "corpus" / "README.md"]
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
HISTORY = ROOT / "CHANGELOG.md"
"""The only page that may name removed files and options."""

COMMANDS: Any = get_command(app)
SH_LANGUAGES = ("sh", "console")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> list[str]:
    """Contents of the fenced blocks in the given languages."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [content for _, language, content in found if language in languages]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


# --- Commands --------------------------------------------------------------------------------------------------------


def command_lines(script: str) -> Iterator[str]:
    """Lines of a shell script, continued ones joined, without prompts."""
    for line in script.replace("\\\n", " ").splitlines():
        yield line.strip().removeprefix("$ ")


def yt8m_arguments(line: str) -> Iterator[list[str]]:
    """Arguments of each call of `yt8m` in a shell line, through launchers, containers and quoted scripts."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    simple: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set(";&|()"):
            simple.append([])
        else:
            simple[-1].append(token)
    for words in simple:
        if ">" in words:
            del words[words.index(">") :]
        while words and (words[0] in ("until", "do", "if", "while", "!") or re.fullmatch(r"\w+=.*", words[0])):
            words.pop(0)
        yield from (arguments for word in words if "yt8m " in word for arguments in yt8m_arguments(word))
        is_launched = bool(words) and (words[0] in ("torchrun", "srun") or words[:2] == ["docker", "run"])
        is_module = len(words) > 2 and words[0].startswith("python") and words[1:3] == ["-m", "yt8m"]
        if "yt8m" in words and (words[0] == "yt8m" or is_launched or is_module):
            yield words[words.index("yt8m") + 1 :]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse the arguments of `yt8m` without running anything; the values of the command's parameters."""
    name, *rest = arguments
    if name.startswith("-"):
        # These options take effect while they are parsed (`--install-completion`), so only their names are checked.
        assert {name, *rest} <= options_of(COMMANDS, "yt8m")
        return {}
    assert name in COMMANDS.commands, f"there is no command {name}"
    if "--help" in rest:
        return {}
    values: dict[str, Any] = COMMANDS.commands[name].make_context(name, rest).params
    return values


def options_of(command: Any, name: str) -> set[str]:
    """Names of a command's options."""
    with command.context_class(command, info_name=name) as context:
        return {option for parameter in command.get_params(context) for option in parameter.opts}


def documented_commands() -> list[tuple[str, str]]:
    """Place and line of every `yt8m` command of the documentation."""
    scripts = [(name_of(page), block) for page in PAGES for block in blocks(page.read_text(), *SH_LANGUAGES)]
    for file in [*RECIPES, ROOT / "Dockerfile"]:
        # Code in comments is indented.
        examples = re.findall(r"^# {4,}(.*)$", file.read_text(), re.MULTILINE)
        scripts.append((name_of(file), "\n".join(examples)))
    # Usage lines in docs/cli.md contain placeholders, such as [OPTIONS].
    lines = [(place, line) for place, script in scripts for line in command_lines(script)]
    return [(place, line) for place, line in lines if re.search(r"\byt8m ", line) and "[OPTIONS]" not in line]


def test_commands_are_found_in_shell_lines() -> None:
    def found(line: str) -> list[list[str]]:
        return list(yt8m_arguments(line))

    assert found("yt8m describe data --json | jq '.[].num_videos'  # all") == [["describe", "data", "--json"]]
    assert found("until yt8m run a; do [ $? -eq 75 ] || break; done") == [["run", "a"]]
    assert found("torchrun --nproc-per-node 8 --no-python yt8m run a") == [["run", "a"]]
    assert found("torchrun --nproc-per-node 2 -m yt8m run a") == [["run", "a"]]
    assert found("sbatch --wrap 'srun torchrun --no-python yt8m run a'") == [["run", "a"]]
    assert found("WANDB_MODE=offline python -m yt8m run a && yt8m demo") == [["run", "a"], ["demo"]]
    assert found("yt8m recipes demo > my-recipe.yaml") == [["recipes", "demo"]]
    assert found("pip install yt8m") == found("docker build --tag yt8m .") == []
    assert list(command_lines("$ yt8m run a \\\n    --out b")) == ["yt8m run a      --out b"]


def test_the_documentation_contains_commands() -> None:
    places = {place for place, _ in documented_commands()}
    assert {"README.md", "docs/how-to.md", "docs/cli.md", "Dockerfile"} <= places


@pytest.mark.parametrize(("place", "line"), documented_commands())
def test_a_documented_command_parses(place: str, line: str) -> None:
    for arguments in yt8m_arguments(line):
        try:
            values = parse(arguments)
        except Exception as error:  # the parser may raise any exception
            pytest.fail(f"{place}: {line}: {error}")
        overrides = values.get("overrides") or values.get("merge") or []
        if "recipe" in values:
            read_recipe(_shipped(values["recipe"]), overrides)
        elif overrides:
            merge_config([], overrides)


def _shipped(recipe: str) -> Path:
    return ROOT / recipe if (ROOT / recipe).is_file() else find_recipe(recipe)


def inline_commands() -> list[tuple[str, str]]:
    """Place and text of every code span in the prose that begins with `yt8m`."""
    pages = [page for page in PAGES if page != HISTORY]
    spans = [(page, span) for page in pages for span in re.findall(r"`(yt8m [^`]+)`", prose(page.read_text()))]
    return [(name_of(page), " ".join(span.split())) for page, span in spans]


@pytest.mark.parametrize(("place", "span"), inline_commands())
def test_a_command_named_in_the_prose_exists(place: str, span: str) -> None:
    _, name, *arguments = span.split()
    if name.startswith("-"):
        name, arguments, command = "yt8m", [name], COMMANDS
    else:
        assert name in COMMANDS.commands, f"{place}: {span}"
        command = COMMANDS.commands[name]
    named = {word for word in arguments if word.startswith("--")}
    assert named <= options_of(command, name), f"{place}: {span}"


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads(path: Path) -> None:
    assert find_recipe(path.stem).samefile(path)
    read_recipe(path)


def yaml_blocks() -> list[tuple[str, str]]:
    return [(name_of(page), block) for page in PAGES for block in blocks(page.read_text(), "yaml")]


@pytest.mark.parametrize(("place", "block"), yaml_blocks())
def test_settings_in_the_documentation_are_valid(place: str, block: str) -> None:
    """Each block is part of a recipe, or a description of features."""
    given = parse_yaml(block)
    is_features = given.keys() <= Features.model_fields.keys()
    values = {} if is_features else read_yaml(ROOT / "recipes" / "demo.yaml")
    for key, value in given.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    try:
        validated(Features if is_features else Recipe, values, place)
    except UsageError as error:
        pytest.fail(str(error))


def test_the_python_of_the_how_to_runs(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the models of a tiny run in place of the demo's."""
    script = "".join(blocks((ROOT / "docs" / "how-to.md").read_text(), "python"))
    for documented, tiny in (("agnostic-dbof", "bare"), ("aware-dbof-nextvlad", "aware")):
        folder = f'"build/demo/run/finetune/{documented}/model"'
        assert folder in script
        script = script.replace(folder, repr(str(finished_run.model(f"finetune/{tiny}"))))
    values: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(script, values)
    assert index_folder(tmp_path / "mine").features.size == 512
    num_classes = len(values["classes"])
    assert values["classes"].names
    assert values["probabilities"].shape == (2, num_classes)


# --- Generated pages and pictures ------------------------------------------------------------------------------------


def test_the_reference_of_recipe_keys_is_current(tmp_path: Path) -> None:
    written = tmp_path / "recipes.md"
    command = [sys.executable, ROOT / "docs/recipe_reference.py", written]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)})
    assert written.read_text() == (ROOT / "docs/recipes.md").read_text(), "run `make docs`"


def recipe_keys(kind: type[Settings]) -> Iterator[str]:
    """Keys of a group of settings and of those inside it."""
    schema = kind.model_json_schema()
    for group in (schema, *schema["$defs"].values()):
        yield from group["properties"]


def test_the_reference_explains_every_key() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.*?) \|$", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE
    )
    assert Counter(key for key, *_ in rows) == Counter(recipe_keys(Recipe))
    assert all(meaning for *_, meaning in rows)


def test_the_figure_of_the_method_is_current(tmp_path: Path) -> None:
    written = tmp_path / "method.svg"
    subprocess.run([sys.executable, ROOT / "docs/method_figure.py", written], check=True)
    assert written.read_text() == (ROOT / "docs/images/method.svg").read_text(), "run `make docs`"
    ET.parse(written)


# --- Links and paths -------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def relative_links() -> list[tuple[Path, str]]:
    """Page and target of every link to a file of the repository."""
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text()))]
    return [(page, link) for page, link in links if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize(("page", "link"), relative_links(), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_the_target_of_a_link_exists(page: Path, link: str) -> None:
    target, _, anchor = link.partition("#")
    path = page if not target else page.parent / target
    assert path.exists()
    assert not anchor or anchor in anchors(path)


def named_paths() -> list[tuple[str, str]]:
    """Place and text of every code span that names a file, a folder or a module of this repository."""
    pages = [page for page in PAGES if page != HISTORY]
    spans = [(page, span) for page in pages for span in re.findall(r"`([^`\s]+)`", prose(page.read_text()))]
    pattern = r"(src|tests|benchmarks|docs|recipes|\.ci)/[\w./-]*|[\w/]+\.py|yt8m(\.\w+)+"
    return [(name_of(page), span) for page, span in spans if re.fullmatch(pattern, span)]


def is_importable(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute)
    return True


@pytest.mark.parametrize(("place", "named"), named_paths())
def test_a_path_in_the_documentation_exists(place: str, named: str) -> None:
    if named.startswith("yt8m."):
        assert is_importable(named), place
        return
    folders = (ROOT, PACKAGE, (ROOT / place).parent, ROOT / "benchmarks", ROOT / "tests")
    assert any((folder / named).exists() for folder in folders), place


def test_the_architecture_page_lists_every_module() -> None:
    [tree] = [
        block for block in blocks((ROOT / "docs" / "architecture.md").read_text(), "text") if "src/yt8m/" in block
    ]
    listed, folders = set[str](), list[str]()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.findall(r"^ *([\w./]+)", line):
            folders = [*folders[:depth], name.rstrip("/")]
            listed.add("/".join(folders))
    modules = {f"src/yt8m/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
    expected = {module for module in modules if not module.endswith(("__init__.py", "__main__.py"))}
    assert {name for name in listed if name.endswith(".py")} == expected


def comments_and_docstrings(path: Path) -> str:
    """All comments and docstrings of a module, including those of attributes, as one text."""
    source = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    statements = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    strings = [node.value for node in statements if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n\n".join([*comments, *strings])


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sections_cited_in_the_code_exist(path: Path) -> None:
    text = " ".join(re.sub(r"\s*#", " ", comments_and_docstrings(path)).split())
    sections = re.findall(r'docs/method\.md, "([^"]+)"', text)
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE)
    assert set(sections) <= set(headings)
    for cited in re.findall(r"\b(?:docs|benchmarks)/[\w/]+\.(?:md|py)\b", text):
        assert (ROOT / cited).is_file(), cited


# --- Prose -----------------------------------------------------------------------------------------------------------

INTERNAL = re.compile("|".join((r"\bSP" + r"EC\b", r"\bDES" + r"IGN\b", "/work" + "/", "shared" + "/data")))
"""Documents and folders that the repository does not contain."""

DIALECT = re.compile(
    r"\ban? (row|line|folder|process|file|bar) an? (video|class|line|stage|run|frame|segment|model|problem|shard)\b"
    r"|\b(copy|byte|line|row|folder|process|figure)s? an? (video|frame|segment|class|stage|run|item|case|model)\b"
    r"|\bin any company\b|\bthe (whole )?road\b|\banew\b|\bmend(s|ed|ing)?\b|\bas ever\b|\bas (it|torch) comes\b"
    r"|\b(code|file|page|recipe|model|command|error|test|setting|mixture)s? (says?|tells?|knows?|wants?|asks?)\b"
    r"|\b(judged|chosen) by (its|the) (auc|loss|map)\b|\bof no use\b|\b(whoever|nobody)\b"
    r"|\ba say (for|in)\b|\bhas a say\b|\bwas predicted\b|\bpredicted (was|were)\b|\bthe goal (was|for)\b"
    r"|\bin the time there was\b|\btaken over\b|\btakes? over\b|\bgoes on\b|\bwent on\b|\bgo on\b",
    re.IGNORECASE,
)
"""Wording to avoid: literal translations, personified code, and narratives in the past tense."""


def texts() -> list[tuple[Path, str]]:
    pages = [(page, page.read_text()) for page in PAGES]
    return pages + [(path, comments_and_docstrings(path)) for path in SOURCES]


def test_no_file_cites_documents_missing_from_the_repository() -> None:
    files = [*PAGES, *SOURCES, *RECIPES, *(ROOT / "tests").rglob("*.py")]
    files += [ROOT / name for name in ("Makefile", "Dockerfile", "pyproject.toml", "constraints.txt")]
    found = {name_of(path): match[0] for path in files if (match := INTERNAL.search(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(("path", "text"), texts(), ids=lambda value: name_of(value) if isinstance(value, Path) else "")
def test_the_prose_is_plain(path: Path, text: str) -> None:
    flat = " ".join(text.split())
    found = [flat[max(0, match.start() - 40) : match.end() + 40] for match in DIALECT.finditer(flat)]
    assert found == [], name_of(path)
