"""`metareward pairs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from service.cli.progress import flow

# A line of the longest row that can be scored, with its scores.
_MAX_LINE_BYTES: Final = 256 << 20
_KINDS: Final = {True: "text", False: "messages"}


def pairs(
    input: Annotated[  # noqa: A002  (the name of the flag)
        Path, typer.Option(help="What `metareward score` wrote (.gz by name); - for stdin.")
    ],
    output: Annotated[Path, typer.Option(help="JSON lines (.gz by name), there only once it is whole; - for stdout.")],
    per_prompt: Annotated[
        int, typer.Option(min=1, help="Pairs of one row at most: best and worst, second best and second worst, ...")
    ] = 1,
    min_probability: Annotated[
        float,
        typer.Option(min=0.5, max=1.0, help="Least probability that the user prefers the chosen completion."),
    ] = 0.5,
    min_margin: Annotated[float, typer.Option(min=0.0, help="Least difference of the rewards, in log-odds.")] = 0.0,
    conversational: Annotated[
        bool, typer.Option("--conversational", help="Make messages of prompts that are text, and of their completions.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Make a data set for DPO of scored rows: for each user and prompt the best completion against the worst.

    A line has prompt, chosen, rejected, user_id, chosen_reward, rejected_reward, margin, probability, and id where the
    row has one. A prompt that is messages makes chosen and rejected messages too, as TRL takes them. Equal completions
    count once, and equal rewards make no pair. `metareward embed --format jsonl` takes the file as well.

    Example: metareward pairs --input scored.jsonl --min-probability 0.6 --output dpo.jsonl
    """
    from service.cli.places import check_file
    from service.datasets.best_worst import Pairing, pairs_of
    from service.datasets.candidates import read_scored
    from service.datasets.json_rows import BadRow
    from service.datasets.line_source import STREAM, LineSource
    from service.datasets.whole_file import whole_file
    from service.errors import InvalidInput

    if output != STREAM:
        check_file("--output", output)
    pairing = Pairing(per_prompt, min_margin, min_probability, conversational)
    counts = {"rows": 0, "pairs": 0, "near_ties": 0, "rows_without": 0}
    kind: bool | None = None
    with (
        LineSource("--input", input, max_bytes=_MAX_LINE_BYTES) as source,
        flow("pairing", source.size) as shown,
        whole_file("--output", output) as write,
    ):
        try:
            for line, row in read_scored(source):
                as_text = isinstance(row.prompt, str)
                if kind is not None and as_text != kind and not conversational:
                    raise BadRow(
                        f"line {line.number}: prompt is {_KINDS[as_text]}, and before it was {_KINDS[kind]}; a data "
                        "set has one kind: --conversational makes messages of all"
                    )
                kind = as_text
                found = list(pairs_of(row, pairing))
                made = [pair for pair in found if pair is not None]
                for pair in made:
                    write(json.dumps(pair, ensure_ascii=False).encode() + b"\n")
                counts["rows"] += 1
                counts["pairs"] += len(made)
                counts["near_ties"] += len(found) - len(made)
                counts["rows_without"] += not made
                shown.step(source.position, {"rows": counts["rows"]})
        except BadRow as error:
            place, _, reason = str(error).partition(": ")
            raise InvalidInput.single(f"{input.name}, {place}", reason) from None
    typer.echo(json.dumps(counts) if as_json else _told(output, counts), err=output == STREAM)


def _told(output: Path, counts: dict[str, Any]) -> str:
    told = f"{output}: {counts['pairs']} pairs of {counts['rows']} rows"
    if counts["rows_without"]:
        told += f"; none from {counts['rows_without']} rows"
    if counts["near_ties"]:
        told += f"; left out as too near to a tie: {counts['near_ties']}"
    return told
