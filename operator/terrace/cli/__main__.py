"""``terrace``: the entry point, its groups of commands, and how errors end.

Owns: the tree of commands and the exit code of each kind of failure. Next: ``local.py``.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from terrace import __version__
from terrace.cli import local
from terrace.cli.demo import demo
from terrace.cli.errors import CommandError
from terrace.cli.explain import explain
from terrace.cli.plan import plan
from terrace.cli.screen import clean
from terrace.local.errors import LocalClusterError

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(
    name="terrace",
    help="Serve GGUF language models on Kubernetes, tiered over device, host and disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(local.app, name="local")
app.command()(demo)
app.command()(plan)
app.command()(explain)


def _version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"terrace {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version_wanted: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run a command; a failure that the user can act on is one message, not a traceback."""
    # Like Ctrl-C, so that a command that was told to end takes down what it had started.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)  # the reader of our output, such as `head`, has gone
    except (CommandError, LocalClusterError, OSError) as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"error: {clean(str(error))}", style="red", markup=False)
        sys.exit(error.code if isinstance(error, CommandError) else 1)
    sys.exit(0)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
