"""`metareward score`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Final

import typer

from service.cli.options import BackboneOption, CheckpointOption, Device, DtypeOption
from service.cli.progress import resumable

_USERS: Final = "Users"
_RUN: Final = "Run"
# Nobody else waits in this process: a bound on its queue would only make it ask again.
_NO_BOUND_S: Final = 86_400.0
_NO_BOUND_TOKENS: Final = 2**40


def score(
    input: Annotated[  # noqa: A002  (the name of the flag)
        Path, typer.Option(help="JSON lines (.gz by name): prompt, completions, perhaps user_id; - for stdin.")
    ],
    output: Annotated[Path, typer.Option(help="JSON lines (.gz by name), continued if unfinished; - for stdout.")],
    users: Annotated[
        str,
        typer.Option(
            help="For whom rows without user_id are scored: ids by comma, @file with an id a line, `all` that are "
            "known, or `population` for the average user.",
            rich_help_panel=_USERS,
        ),
    ] = "population",
    choices: Annotated[
        Path | None,
        typer.Option(
            help="Adapt users in memory from these choices, {user_id, prompt, chosen, rejected} a line; the "
            "database's users are not looked at, and nothing is stored.",
            rich_help_panel=_USERS,
        ),
    ] = None,
    tenant: Annotated[
        str, typer.Option(help="Whose users the database is asked for.", rich_help_panel=_USERS)
    ] = "default",
    checkpoint: CheckpointOption = None,
    backbone: BackboneOption = None,
    device: Device = None,
    dtype: DtypeOption = None,
    database_url: Annotated[
        str | None, typer.Option(help="postgresql://... or sqlite:///file.", rich_help_panel=_USERS)
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the embedded database; default: .metareward here.", rich_help_panel=_USERS),
    ] = None,
    truncate: Annotated[
        bool, typer.Option(help="Shorten texts that the backbone cannot read whole; or their rows are bad.")
    ] = True,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Set bad rows aside in OUTPUT.rejected.jsonl, instead of ending there.")
    ] = False,
    drop_texts: Annotated[
        bool, typer.Option("--drop-texts", help="Leave prompt and completions out of the output; name rows by a field.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew: replace what an earlier run wrote.")] = False,
    in_flight: Annotated[
        int, typer.Option(min=1, help="Texts asked for at once; more for several remote workers.", rich_help_panel=_RUN)
    ] = 512,
    patience: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for a busy engine or an absent database.", rich_help_panel=_RUN),
    ] = 600.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="The summary as one JSON object.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Score a file of any size in this process: every text once, for as many users as you like.

    The output has a line for each row and user: the row's fields, then user_id, user_state, version, rewards,
    reward_std, best_probability, order, truncated, checkpoint_id. Rows keep their order. Memory does not grow with the
    file. A run that was stopped, even by kill -9, goes on where it was when the same command is given again, and also
    takes rows that were appended since.

    Settings are those of `metareward serve`: flags, environment variables, .env; with ENGINE_URL remote workers
    compute.

    Example: metareward score --input candidates.jsonl --users ada,bob --output scored.jsonl
    """
    from service.cli.bulk_run import BulkRun
    from service.cli.places import check_file
    from service.datasets.line_source import STREAM, LineSource
    from service.datasets.resumable_output import beside, is_stream
    from service.errors import ConfigurationError
    from service.observability.logging import configure_logging
    from service.settings import read_settings

    settings = read_settings(
        # Nothing listens here, so no key is needed.
        host="127.0.0.1",
        auth="off",
        checkpoint=checkpoint,
        backbone=backbone,
        device=device,
        dtype=dtype,
        database_url=database_url,
        data_dir=data_dir,
        max_queue_wait_s=_NO_BOUND_S,
        max_queue_tokens=_NO_BOUND_TOKENS,
        request_timeout_s=_NO_BOUND_S,
    )
    configure_logging("warning" if settings.log_level == "info" else settings.log_level, settings.log_format)
    if not is_stream(output):
        check_file("--output", output)
        for flag, path in (("--input", input), ("--choices", choices)):
            if (
                path is not None
                and path.exists()
                and any(file.exists() and file.samefile(path) for file in (output, beside(output, "rejected.jsonl")))
            ):
                raise ConfigurationError(f"--output {output} would be written over {flag} {path}: give another path")
    with LineSource("--input", input, max_bytes=settings.max_body_bytes) as source:
        goes_on = source.size is not None and not is_stream(output)
        with resumable() if goes_on else contextlib.nullcontext():
            summary = BulkRun(
                settings,
                source,
                name=input.name,
                output=output,
                users=users,
                choices=choices,
                tenant=tenant,
                truncate=truncate,
                skip_bad=skip_bad,
                drop_texts=drop_texts,
                fresh=fresh,
                in_flight=in_flight,
                patience_s=patience,
            )()
    typer.echo(json.dumps(summary.as_json()) if as_json else summary.as_text(output), err=output == STREAM)
