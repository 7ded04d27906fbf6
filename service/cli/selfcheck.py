"""`metareward selfcheck`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from service.cli.options import BackboneOption, CheckpointOption, Device, DtypeOption
from service.errors import ConfigurationError, Unavailable
from service.settings import read_settings

_TIMEOUT_S = 300.0
_MARKS = {"passed": ("passed", "green"), "failed": ("FAILED", "red"), "unavailable": ("no answer", "yellow")}


def selfcheck(
    url: Annotated[
        str, typer.Option(help="A server or worker that runs; left out, checkpoint and backbone are loaded here.")
    ] = "",
    key: Annotated[
        str,
        typer.Option(
            envvar="METAREWARD_KEY", help="For --url: an API key of the role admin, or a worker's ENGINE_API_KEY."
        ),
    ] = "",
    checkpoint: CheckpointOption = None,
    backbone: BackboneOption = None,
    device: Device = None,
    dtype: DtypeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="What the route answers, as JSON.")] = False,
) -> None:
    """Check that the engine gives the numbers that its checkpoint recorded, packed with other texts and alone.

    Without --url it loads checkpoint and backbone as `metareward serve` would, or asks the workers of ENGINE_URL.
    Exit status 0 where every worker passed, 1 where one did not, 2 where a setting is wrong.

    Example: metareward selfcheck --checkpoint runs/mine --device cuda
    """
    settings = read_settings(checkpoint=checkpoint, backbone=backbone, device=device, dtype=dtype)
    if url:
        if checkpoint or backbone or device or dtype:
            raise ConfigurationError(
                "--url asks what runs there: leave out --checkpoint, --backbone, --device, --dtype"
            )
        answer = _ask(url.rstrip("/"), key)
    else:
        from service.runtime.selfcheck import check_settings

        if not settings.engine_urls:
            typer.echo(f"Loading {settings.checkpoint} ...", err=True)
        answer = check_settings(settings).as_json()
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        _print(answer)
    if not answer["passed"]:
        raise typer.Exit(1)


def _ask(url: str, key: str) -> dict[str, Any]:
    """Ask a server or a worker; which of them it is, its OpenAPI document says.

    Raises:
        Unavailable: It does not answer, or has no time.
        ConfigurationError: It refuses.
    """
    import httpx

    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--url: {url!r} is no URL; write http://HOST:PORT")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            paths = client.get("/openapi.json").json()["paths"]
            path = next(path for path in ("/admin/self-check", "/self-check") if path in paths)
            response = client.post(path, json={})
            answer: dict[str, Any] = response.json()
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unavailable(f"--url: {url} does not answer ({type(error).__name__})") from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigurationError(f"--url: what listens at {url} is no metareward server or worker") from error
    if response.status_code == 200:
        return answer
    detail = (answer.get("detail") or answer.get("error", {}).get("message", "")).rstrip(".")
    if response.status_code in (503, 504):
        raise Unavailable(f"--url: {url} answers {response.status_code}: {detail}")
    raise ConfigurationError(f"--url: {url} answers {response.status_code}: {detail}; give another --key or --url")


def _print(answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("worker", "dtype", "against"):
        table.add_column(title, no_wrap=True)
    for title in ("difference", "at most"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("", no_wrap=True)
    console = Console(highlight=False, soft_wrap=True, width=1000)  # cut nothing off, however narrow the terminal is
    for worker in answer["workers"]:
        for comparison in worker["comparisons"]:
            difference = comparison["difference"]
            mark, colour = _MARKS["passed" if comparison["passed"] else "failed"]
            table.add_row(
                worker["worker"],
                worker["dtype"],
                comparison["against"],
                "not finite" if difference is None else f"{difference:.1e}",
                f"{comparison['tolerance']:g}",
                f"[{colour}]{mark}[/]",
            )
    if table.row_count:
        console.print(table)
    for worker in answer["workers"]:
        if not worker["comparisons"]:
            mark, colour = _MARKS[worker["status"]]
            typer.echo(f"{worker['worker']}  {typer.style(mark, fg=colour)}: {worker['detail']}")
    verdict = "passed" if answer["passed"] else "failed"
    typer.echo(f"\nself-check {verdict} in {answer['seconds']:.1f} s")
