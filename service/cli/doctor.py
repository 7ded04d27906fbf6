"""`metareward doctor`."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Final

import typer

from service.settings import read_settings

_MARKS: Final = {
    "ok": ("ok", typer.colors.GREEN),
    "warning": ("WARN", typer.colors.YELLOW),
    "failed": ("FAIL", typer.colors.RED),
    "skipped": ("-", None),
}


def doctor(
    load: Annotated[
        bool, typer.Option("--load", help="Also load the backbone and run its self-check; minutes for a large one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead.")] = False,
) -> None:
    """Explain a configuration: what is there, what is broken, and what mends it. Changes nothing.

    Reads the settings as `metareward serve` does and looks at ports, secret, database, keys, Redis, checkpoint and
    engine. Exit status 2 where the server would not serve.

    Example: DATABASE_URL=postgresql://me@db/metareward metareward doctor
    """
    settings = read_settings()

    from service.runtime.diagnosis import diagnose, overall

    findings = []
    for finding in diagnose(settings, load_engine=load):
        findings.append(finding)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(finding)))
            continue
        mark, colour = _MARKS[finding.status]
        typer.secho(f"{mark:>4}  ", fg=colour, nl=False)
        typer.echo(f"{finding.part:<14} {finding.detail}")
        if finding.fix:
            typer.echo(f"{'':<21} {finding.fix}")
    if not as_json:
        typer.echo(f"\n{overall(findings, settings)}")
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(2)
