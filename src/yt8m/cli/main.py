"""The `yt8m` command: its commands by group, and how errors end it. A command's docstring is its help."""

import atexit
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from yt8m.cli import data, extraction, models, prediction, results, search, training
from yt8m.cli.options import with_quiet
from yt8m.errors import Interrupted, Stopped, Yt8mError, printable
from yt8m.runtime.console import replace_unprintable
from yt8m.runtime.environment import is_first_process, prepare_environment
from yt8m.runtime.signals import ignore_signals, stopped_by_signals

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""

app = typer.Typer(
    help="Find the moments in videos where a concept appears: train, merge, rank and score temporal localizers on "
    "YouTube-8M features.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """A command whose errors of unknown options say how to pass an argument that begins with a dash."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Recent versions of typer contain click, so its exceptions have no one name to import.
            option = str(getattr(error, "option_name", "--"))
            if not option.startswith("--"):
                hint = "an argument that begins with a dash, such as the id of a video, goes after `--`"
                vars(error)["message"] = f"{getattr(error, 'message', '')}; {hint}."
            raise


GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Search": {"search": search.search, "locate": prediction.locate},
    "Data": {
        "download": data.download,
        "index": data.index,
        "describe": data.describe,
        "splice": data.splice,
        "extract": extraction.extract,
        "weights": extraction.weights,
    },
    "Training": {
        "recipes": training.recipes,
        "run": training.run,
        "estimate": training.estimate,
        "pretrain": training.pretrain,
        "finetune": training.finetune,
        "find-lr": training.find_lr,
        "demo": training.demo,
    },
    "Prediction": {"predict": prediction.predict, "merge": prediction.merge},
    "Results": {"check": results.check, "evaluate": results.evaluate},
    "Models": {"import-2019": models.import_2019},
}
"""The commands, by the panel that the help shows them in."""

ENDED_BY_DEFAULT = frozenset(["search", "locate", "describe", "recipes", "estimate", "check", "evaluate"])
"""Commands that a signal ends as it ends any program: they have nothing to continue. Any other one exits with 75."""

for _panel, _commands in GROUPS.items():
    for _name, _function in _commands.items():
        app.command(_name, cls=_Command, rich_help_panel=_panel)(with_quiet(_function))


def _version(wanted: bool) -> None:
    if wanted:
        from yt8m import __version__

        typer.echo(f"yt8m {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in ENDED_BY_DEFAULT:
        resources: ExitStack = context.obj
        resources.enter_context(stopped_by_signals())


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    """Turn errors that the user can fix into one sentence on standard error and an exit status; raise any others."""
    try:
        yield
    except (Interrupted, Stopped) as stopped:
        # All processes of a run stop together.
        _exit(str(stopped) if is_first_process() else "", stopped.exit_code)
    except Yt8mError as error:
        _exit(str(error), error.exit_code)
    except SystemExit as left:
        # Typer ends an interrupted command with this status and without a message.
        if left.code != INTERRUPTED:
            raise
        _exit(
            "Interrupted. Run the same command to continue: a download keeps its complete files, and training resumes "
            "from its last checkpoint.",
            INTERRUPTED,
        )
    except BrokenPipeError:
        # The reader of the output has closed it; standard output must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE):
            raise
        _exit(f"{error.filename or 'Writing a file'}: {error.strerror}.", 1)


def _exit(sentence: str, status: int) -> None:
    if sentence:
        # Plain, so that long paths are not wrapped.
        print(f"yt8m: {printable(sentence, chr(10))}", file=sys.stderr)  # noqa: T201
    sys.exit(status)


def main() -> None:
    """Entry point of the `yt8m` command."""
    prepare_environment()
    replace_unprintable()
    warnings.filterwarnings("ignore", module="lightning_fabric|torch")
    # Signal handlers stay until the last message is printed; the end of the interpreter takes a moment more, in which
    # everything is done and a signal must not change the exit status.
    with ExitStack() as resources, _errors_as_sentences():
        try:
            app(obj=resources)
        finally:
            atexit.register(ignore_signals)


if __name__ == "__main__":
    main()
