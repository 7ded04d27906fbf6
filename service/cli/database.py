"""`metareward db upgrade|downgrade|check`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from service.errors import ConfigurationError
from service.settings import read_settings

if TYPE_CHECKING:
    from service.store.database import Database

app = typer.Typer(help="The database schema.", no_args_is_help=True)

DatabaseUrl = Annotated[
    str | None, typer.Option(help="postgresql://user:password@host/name or sqlite:///file; without it, DATABASE_URL.")
]


@contextmanager
def command_database(url: str | None) -> Iterator[Database]:
    """The database that a command works on, closed afterwards.

    Raises:
        ConfigurationError: It refuses us.
        Unavailable: It does not answer.
    """
    from service.store.database import open_database

    settings = read_settings(database_url=url)
    database = open_database(
        settings.resolved_database_url,
        pool_size=1,
        connect_timeout_s=settings.database_timeout_s,
        statement_timeout_s=settings.database_timeout_s,
    )
    try:
        database.probe()
        yield database
    finally:
        database.close()


@contextmanager
def current_database(url: str | None) -> Iterator[Database]:
    """As `command_database`, with the schema of this version: an embedded database is brought up, others checked."""
    from service.store import migrate

    settings = read_settings(database_url=url)
    migrates = settings.embedded_database if settings.auto_migrate is None else settings.auto_migrate
    with command_database(url) as database:
        if migrates:
            migrate.upgrade(database)
        else:
            migrate.require_current(database)
        yield database


@app.command(epilog="Example: DATABASE_URL=postgresql://me:secret@db/metareward metareward db upgrade")
def upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go up to.")] = "head", database_url: DatabaseUrl = None
) -> None:
    """Bring the schema up to date. Safe to run from several places at once."""
    from service.store import migrate

    with command_database(database_url) as database:
        migrate.upgrade(database, revision)
    typer.echo(f"upgraded to {revision}")


@app.command(epilog="Example: metareward db downgrade base --yes")
def downgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go down to; `base` removes every table.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Take the schema back. Data that the older schema cannot hold is lost."""
    from service.store import migrate

    if not yes:
        typer.confirm(f"Go down to {revision}, losing what it cannot hold?", abort=True)
    with command_database(database_url) as database:
        migrate.downgrade(database, revision)
    typer.echo(f"downgraded to {revision}")


@app.command(epilog="Example: metareward db check")
def check(database_url: DatabaseUrl = None) -> None:
    """Tell whether the schema is the one that this version needs; exit status 2 if not."""
    from service.store import migrate

    with command_database(database_url) as database:
        problems = migrate.check(database)
    if problems:
        raise ConfigurationError("; ".join(problems))
    typer.echo("the schema is current")
