"""`metareward checkpoint show|verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.settings import DEMO_CHECKPOINT

app = typer.Typer(help="Look at a checkpoint, or prove that it is whole.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="Checkpoint directory; without one, the demo checkpoint.")]


@app.command(epilog="Example: metareward checkpoint show runs/mine")
def show(directory: Directory = DEMO_CHECKPOINT) -> None:
    """Print what a checkpoint is and how it was made."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from service.checkpoints import load_checkpoint
    from service.mrm import Support, solve

    checkpoint = load_checkpoint(directory)
    table = Table(show_header=False, title=f"checkpoint {checkpoint.name}", title_justify="left")
    start = solve(Support.empty(checkpoint.heads), checkpoint.start)
    rows = {
        "checkpoint_id": checkpoint.checkpoint_id,
        "heads_id": checkpoint.heads_id[:16],
        "recipe": checkpoint.recipe,
        "K x D": f"{checkpoint.heads} x {checkpoint.backbone.hidden_size}",
        "backbone": checkpoint.backbone.id,
        "start": np.array2string(start.weights_K, precision=3, max_line_width=100),
        **{name: str(value) for name, value in checkpoint.training.items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


@app.command(epilog="Example: metareward checkpoint verify runs/mine --engine")
def verify(
    directory: Directory = DEMO_CHECKPOINT,
    engine: Annotated[
        bool, typer.Option("--engine", help="Also load its backbone and score the golden texts against the records.")
    ] = False,
    backbone: Annotated[str, typer.Option(help="Backbone to load, where it lies elsewhere than in training.")] = "",
) -> None:
    """Read a checkpoint strictly: digests, shapes, numbers; with --engine its rewards too."""
    from service.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(directory)
    typer.echo(f"{directory}: whole; checkpoint_id {checkpoint.checkpoint_id}, K = {checkpoint.heads}")
    if engine:
        from service.backbone.load import load_backbone
        from service.runtime.engine import start_worker

        loaded = load_backbone(backbone or checkpoint.backbone.id)
        worker, result = start_worker(checkpoint, loaded, max_batch_tokens=8192, max_queue_tokens=65_536)
        worker.stop(drain=True, timeout_s=10.0)
        typer.echo(f"engine: {result}")
