"""`metareward embed`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.datasets.texts import PreferenceData


class InputFormat(StrEnum):
    """What the input is."""

    JSONL = "jsonl"
    RATINGS = "ratings"


def embed(
    input: Annotated[  # noqa: A002  (the name of the flag)
        Path, typer.Option(help="jsonl: the file. ratings: the directory with responses.jsonl and ratings.csv[.gz].")
    ],
    output: Annotated[Path, typer.Option(help="Directory of the embedded data set; continued if unfinished.")],
    format: Annotated[  # noqa: A002  (the name of the flag)
        InputFormat,
        typer.Option(
            help="jsonl: rows {user_id, prompt, chosen, rejected, conversation_id?, split?: seen|unseen, "
            "part?: train|support|query, strength?}. ratings: graded ratings of texts."
        ),
    ] = InputFormat.JSONL,
    backbone: Annotated[
        str, typer.Option(help="minilm, a Hugging Face id, a model's directory, or a .gguf file.")
    ] = "minilm",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto.")] = "auto",
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest text, in tokens; longer ones are truncated and counted.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Makes the splits that the input does not give.")] = 0,
    splits: Annotated[
        int, typer.Option(min=1, help="ratings without ready splits: splits for so many seeds, from --seed on.")
    ] = 5,
    margin: Annotated[
        float,
        typer.Option(
            min=0.0, help="ratings without ready splits: a pair is rating(chosen) - rating(rejected) > margin."
        ),
    ] = 1.0,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one forward pass, padding included.")] = 8192,
    shard_texts: Annotated[int, typer.Option(min=1, help="Texts of a shard: what a kill can cost at most.")] = 1024,
) -> None:
    """Embed preference data with a backbone: texts become hidden states on disk, ready for `metareward train`.

    Every different text is embedded once. A run that was stopped, even by kill -9, goes on where it was when the same
    command is given again.

    Example: metareward embed --format jsonl --input people.jsonl --backbone minilm --output runs/people
    """
    from service.backbone.golden import GOLDEN_TEXTS, golden_texts_id
    from service.backbone.load import load_backbone
    from service.cli.progress import progress
    from service.datasets.embedding import backbone_info, embed_texts
    from service.datasets.manifest import SourceInfo
    from service.datasets.texts import Text
    from service.datasets.writer import EmbeddedDatasetWriter

    data, options = _read(input, format, seed=seed, splits=splits, margin=margin)
    for note in data.notes:
        typer.echo(f"note: {note}")
    model = load_backbone(backbone, device=device, dtype=dtype, max_tokens=max_tokens)
    golden = [
        Text(tuple((message["role"], message["content"]) for message in messages), completion)
        for messages, completion in GOLDEN_TEXTS
    ]
    with EmbeddedDatasetWriter(
        output,
        backbone=backbone_info(model),
        columns=data.columns(),
        source=SourceInfo(format=format.value, name=input.resolve().name, options=options),
        created_by="metareward embed",
        golden_texts_id=golden_texts_id(),
        shard_texts=shard_texts,
    ) as writer:
        if writer.finished:
            typer.echo(f"{output} is complete already: nothing to do")
            return
        shards = writer.shards()
        waiting = sum(len(shards[number]) for number in writer.pending())
        if waiting < writer.texts:
            typer.echo(f"{output}: going on, {writer.texts - waiting} of {writer.texts} texts are there")
        with progress(f"embedding with {backbone}", waiting) as on_step:

            def on_texts(count: int) -> None:
                for _ in range(count):
                    on_step("")

            manifest = embed_texts(model, data.texts, writer, golden, batch_tokens=batch_tokens, on_texts=on_texts)
    if manifest.truncated_texts:
        typer.secho(
            f"warning: {manifest.truncated_texts} of {manifest.texts} texts were longer than the backbone's limit of "
            f"{model.spec.max_tokens} tokens and were truncated",
            fg=typer.colors.YELLOW,
            err=True,
        )
    typer.echo(
        f"{output}: {manifest.texts} texts of {manifest.prompts} prompts, D = {manifest.hidden_size}, "
        f"{manifest.users} users, splits {', '.join(f'{name} ({n} pairs)' for name, n in manifest.splits.items())}"
    )


def _read(
    source: Path, kind: InputFormat, *, seed: int, splits: int, margin: float
) -> tuple[PreferenceData, dict[str, str | int | float | bool | None]]:
    """The data, and the options that shaped it."""
    from service.datasets.jsonl import read_jsonl
    from service.datasets.ratings import read_ratings
    from service.datasets.splits import RatingProtocol

    if kind is InputFormat.JSONL:
        return read_jsonl(source, seed=seed), {"seed": seed}
    data = read_ratings(source, seed=seed, splits=splits, protocol=RatingProtocol(margin=margin))
    return data, {"seed": seed, "splits": splits, "margin": margin}
