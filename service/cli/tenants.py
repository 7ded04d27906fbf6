"""`metareward tenants set|list`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from service.cli.database import DatabaseUrl, current_database
from service.cli.table import print_table
from service.errors import FieldIssue, InvalidInput

app = typer.Typer(help="Tenants and their quotas.", no_args_is_help=True)

_UNLIMITED = "unlimited"
# The databases' largest integer; a quota beyond it is none.
_LARGEST = 2**63 - 1


@app.command(
    "set",
    epilog="Example: metareward tenants set acme --requests-per-minute 600 --tokens-per-minute 500000 --max-users "
    "unlimited",
)
def set_quotas(
    tenant: Annotated[str, typer.Argument(help="Which one; made if unknown.")],
    requests_per_minute: Annotated[
        str | None, typer.Option(metavar=f"N|{_UNLIMITED}", help="Requests, refused ones included.")
    ] = None,
    tokens_per_minute: Annotated[
        str | None,
        typer.Option(metavar=f"N|{_UNLIMITED}", help="Tokens that the engine computes; cached texts are free."),
    ] = None,
    max_users: Annotated[str | None, typer.Option(metavar=f"N|{_UNLIMITED}", help="Users that have adapted.")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set quotas of a tenant; what is not named stays as it is.

    Requests and tokens are counted for callers with a key, in Redis where there is one, else in each process. Servers
    notice a change within AUTH_CACHE_S seconds (60).
    """
    from service.operations.keys import check_tenant_id
    from service.store.tenants import TenantRepository

    check_tenant_id(tenant)
    issues: list[FieldIssue] = []
    quotas: dict[str, int | None] = {}
    for name, text, least in (
        ("requests_per_minute", requests_per_minute, 1),
        ("tokens_per_minute", tokens_per_minute, 1),
        ("max_users", max_users, 0),
    ):
        if text is None:
            continue
        if text == _UNLIMITED:
            quotas[name] = None
        elif text.isascii() and text.isdigit() and least <= int(text) <= _LARGEST:
            quotas[name] = int(text)
        else:
            issues.append(
                FieldIssue(f"--{name.replace('_', '-')}", f"must be a whole number from {least} on, or {_UNLIMITED}")
            )
    if issues:
        raise InvalidInput(issues)
    with current_database(database_url) as database:
        stored = TenantRepository(database).set_quotas(tenant, **quotas).quotas
    parts = [
        f"{name} {_text(getattr(stored, name))}" for name in ("requests_per_minute", "tokens_per_minute", "max_users")
    ]
    typer.echo(f"{tenant}: {', '.join(parts)}")


@app.command("list", epilog="Example: metareward tenants list --json")
def list_tenants(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs; null is unlimited.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List tenants and their quotas."""
    from service.store.tenants import TenantRepository

    with current_database(database_url) as database:
        tenants = TenantRepository(database).list()
    rows = [
        {
            "tenant": tenant.tenant_id,
            "requests_per_minute": tenant.quotas.requests_per_minute,
            "tokens_per_minute": tenant.quotas.tokens_per_minute,
            "max_users": tenant.quotas.max_users,
            "created_at": tenant.created_at.isoformat(timespec="seconds"),
        }
        for tenant in tenants
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        print_table(
            [
                {"tenant": tenant.tenant_id}
                | {
                    title: _text(limit)
                    for title, limit in (
                        ("requests/min", tenant.quotas.requests_per_minute),
                        ("tokens/min", tenant.quotas.tokens_per_minute),
                        ("users", tenant.quotas.max_users),
                    )
                }
                | {"created": tenant.created_at.date().isoformat()}
                for tenant in tenants
            ]
        )
    else:
        typer.echo("no tenants; `metareward keys create --tenant T --role adapt` makes one with a key", err=True)


def _text(value: int | None) -> str:
    return _UNLIMITED if value is None else str(value)
