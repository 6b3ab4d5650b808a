"""The one door: `aut <verb>`. A verb a stage, and what a person needs around them.

Nothing heavy is imported until a verb needs it: `aut --help` answers in under half a second.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from aut.errors import AutError

app = typer.Typer(
    name="aut",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make audio encoders from Whisper, and prove them.",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["AUT_DEBUG"] = "1"


@app.command()
def version() -> None:
    """Print the version of aut."""
    from aut import __version__

    typer.echo(__version__)


def main() -> None:
    """Runs a verb; an AutError becomes one sentence on stderr and its exit code."""
    from aut.cli import adapters, doctor, runs, serve, services, sources, stages, sweep

    for module in (runs, sweep, stages, sources, adapters, serve, services, doctor):
        module.add_to(app)
    try:
        app()
    except AutError as error:
        if os.environ.get("AUT_DEBUG"):
            raise
        typer.echo(f"aut: {error}", err=True)
        sys.exit(error.code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if os.environ.get("AUT_DEBUG"):
            raise
        if full := _no_room(error):
            typer.echo(f"aut: {full}", err=True)
            sys.exit(full.code)
        # a mistake of ours: still one sentence, and where to find more
        if "DVC_STAGE" in os.environ:  # a stage's output goes to a log, where the traceback is wanted
            traceback.print_exc()
        typer.echo(f"aut: unexpected {type(error).__name__}: {error} (--debug shows the traceback)", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("aut: stopped", err=True)
        sys.exit(130)


def _no_room(error: Exception) -> AutError | None:
    """A full disk is nobody's mistake, whichever verb met it. Exit code 1: the flow tries such a stage again."""
    import tempfile

    from aut.files import no_room

    folders = [Path.cwd(), Path(os.environ.get("AUT_WORK") or ".aut"), Path(tempfile.gettempdir())]
    return no_room(error, folders)
