"""Options that more than one command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Host = Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs keys.")]
CheckpointOption = Annotated[Path | None, typer.Option(help="Checkpoint directory; default: the demo checkpoint.")]
BackboneOption = Annotated[
    str | None, typer.Option(help="`minilm`, a hub id or a path; default: the one of the checkpoint.")
]
Device = Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`.")]
DtypeOption = Annotated[str | None, typer.Option(help="`auto`, `float32`, `bfloat16` or, on CUDA, `float8`.")]
