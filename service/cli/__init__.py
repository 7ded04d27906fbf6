"""The command `metareward`: thin commands over the package. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys

import typer

from service import __version__
from service.cli.checkpoint import app as checkpoint_app
from service.cli.database import app as database_app
from service.cli.doctor import doctor
from service.cli.embed import embed
from service.cli.evaluate import evaluate
from service.cli.experiment import experiment
from service.cli.keys import app as keys_app
from service.cli.pairs import pairs
from service.cli.readapt import readapt
from service.cli.score import score
from service.cli.selfcheck import selfcheck
from service.cli.serve import serve
from service.cli.simulate import simulate
from service.cli.tenants import app as tenants_app
from service.cli.train import train
from service.cli.worker import worker
from service.errors import MetarewardError, TemporaryError

app = typer.Typer(
    help="A personalised reward-model server: adapt a user from a few choices, score completions as they would.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(worker)
app.command()(doctor)
app.command()(selfcheck)
app.command()(score)
app.command()(pairs)
app.command()(simulate)
app.command()(embed)
app.command()(train)
app.command()(evaluate)
app.command()(experiment)
app.command()(readapt)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(database_app, name="db")
app.add_typer(keys_app, name="keys")
app.add_typer(tenants_app, name="tenants")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"metareward {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line. What the user can mend is one line on stderr; exit status 2, or 1 for a passing fault."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of libraries would be thousands of characters of log
    try:
        app()
    except MetarewardError as error:
        lines = [f"{issue.field}: {issue.message}" for issue in getattr(error, "issues", ())] or [str(error)]
        typer.secho("\n       ".join([f"error: {lines[0]}", *lines[1:]]), fg=typer.colors.RED, err=True)
        sys.exit(1 if isinstance(error, TemporaryError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
