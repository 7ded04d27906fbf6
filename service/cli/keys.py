"""`metareward keys create|list|revoke`."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from service.cli.database import DatabaseUrl, current_database
from service.cli.table import print_table
from service.errors import InvalidInput

app = typer.Typer(help="API keys: make, list and revoke them.", no_args_is_help=True)

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class RoleName(StrEnum):
    """How far a key reaches; each as far as those before."""

    score = "score"
    adapt = "adapt"
    admin = "admin"


@app.command(epilog="Example: metareward keys create --tenant acme --role adapt --name 'the trainer' --expires-in 90d")
def create(
    tenant: Annotated[str, typer.Option(help="Whose key; made if unknown. Letters, digits and . _ -.")],
    role: Annotated[
        RoleName,
        typer.Option(help="score: score only. adapt: also adapt, list and erase users. admin: the server too."),
    ],
    name: Annotated[str, typer.Option(help="What the key is for, to tell it from others.")] = "",
    expires_in: Annotated[str | None, typer.Option(help="30m, 12h, 90d or 52w; without it, it lasts.")] = None,
    if_none: Annotated[
        bool, typer.Option("--if-none", help="Only where no usable key is there yet, of anybody; for first starts.")
    ] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it, once: only its digest is stored.

    The key alone goes to stdout, so that KEY=$(metareward keys create ...) works.
    """
    from service.operations.keys import Keys
    from service.store.keys import KeyRepository

    lasts = None if expires_in is None else _duration(expires_in)
    with current_database(database_url) as database:
        if if_none and KeyRepository(database).count_usable():
            typer.echo("There is a usable key already; none was made.", err=True)
            return
        key = Keys(KeyRepository(database)).create(tenant, role.value, name, lasts)
    until = "until revoked" if key.expires_at is None else f"until {_time(key.expires_at)}"
    typer.echo(
        f"Key {key.key_id} of tenant {tenant}, role {role.value}, good {until}. Keep it: it is not shown again.",
        err=True,
    )
    typer.echo(key.secret)
    typer.echo("Send it as the header  Authorization: Bearer mr_...", err=True)


@app.command("list", epilog="Example: metareward keys list --tenant acme --json")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List keys, revoked and expired ones too. The keys themselves are not known here."""
    from service.operations.keys import Keys
    from service.store.keys import KeyRepository

    with current_database(database_url) as database:
        keys = Keys(KeyRepository(database)).list(tenant)
    now = datetime.now(UTC)
    rows = [
        {
            "key_id": key.key_id,
            "tenant": key.tenant_id,
            "role": key.role,
            "name": key.name,
            "state": "revoked" if key.revoked_at else "expired" if key.expires_at and key.expires_at <= now else "good",
            "created_at": _time(key.created_at),
            "expires_at": _time(key.expires_at),
            "revoked_at": _time(key.revoked_at),
        }
        for key in keys
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        print_table(
            [
                {name: row[name] or "" for name in ("key_id", "tenant", "role", "name", "state")}
                | {what: (row[f"{what}_at"] or "")[:10] for what in ("created", "expires", "revoked")}
                for row in rows
            ]
        )
    else:
        typer.echo("no keys; `metareward keys create --tenant T --role adapt` makes one", err=True)


@app.command(epilog="Example: metareward keys revoke k3v7q2mzab")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id, as `metareward keys list` shows it.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key useless, for good. Servers notice within AUTH_CACHE_S seconds (60)."""
    from service.operations.keys import Keys
    from service.store.keys import KeyRepository

    with current_database(database_url) as database:
        Keys(KeyRepository(database)).revoke(key_id)
    typer.echo(f"revoked {key_id}; servers notice within AUTH_CACHE_S seconds")


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if found is None:
        raise InvalidInput.single("expires-in", "must be a number with m, h, d or w: 30m, 12h, 90d or 52w")
    lasts = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if lasts > timedelta(weeks=5200):
        raise InvalidInput.single("expires-in", "is longer than a century; leave it out for a key that lasts")
    return lasts


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")
