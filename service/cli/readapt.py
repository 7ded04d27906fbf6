"""`metareward readapt`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.database import DatabaseUrl, current_database
from service.cli.progress import progress, resumable
from service.settings import read_settings

if TYPE_CHECKING:
    from service.operations.readapt import Readapted


class MethodOption(StrEnum):
    """How users get weights of the checkpoint."""

    AUTO = "auto"
    LINEAR = "linear"
    SOLVE = "solve"


@resumable()
def readapt(
    checkpoint: Annotated[
        str, typer.Option(help="Which of CHECKPOINT and CHECKPOINTS, by id or directory; left out: the active one.")
    ] = "",
    method: Annotated[
        MethodOption,
        typer.Option(
            help="solve: from what users said. linear: their weights through a map, quicker. auto: solved, and mapped "
            "where the checkpoint sees nothing of what they said."
        ),
    ] = MethodOption.AUTO,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Users at a time.")] = 2000,
    database_url: DatabaseUrl = None,
) -> None:
    """Carry all users to a checkpoint at once, rather than each when they next come.

    Safe beside running servers: nobody who says something meanwhile is overwritten. A run that was stopped is gone on
    with by the same command. Before the checkpoint is active, servers still answer with the one that is, and solve for
    the users who are carried already when they come.

    Example: CHECKPOINTS=runs/summer metareward readapt --checkpoint runs/summer
    """
    from service.operations.carry import view_of
    from service.operations.readapt import Readapt
    from service.operations.solving import Solver
    from service.runtime.checkpoints import find_checkpoint
    from service.store.carry_over import CarryOver
    from service.store.serving import ServingRepository
    from service.store.users import UserRepository

    settings = read_settings(database_url=database_url)
    with current_database(database_url) as database:
        row = ServingRepository(database).get()
        wanted = find_checkpoint(settings, checkpoint, None if row is None else row.active)
        carry_over = CarryOver(database, settings.support_limit)
        users = carry_over.count(wanted.checkpoint_id)
        typer.echo(
            f"{users} user{'s are' if users != 1 else ' is'} not of {wanted.name} ({wanted.checkpoint_id})", err=True
        )
        work = Readapt(
            carry_over=carry_over,
            repository=UserRepository(database, settings.support_limit, settings.idempotency_ttl_s),
            checkpoint=wanted,
            view=view_of(wanted, settings.min_fidelity),
            solver=Solver(settings.half_life),
            method=method.value,
            batch=batch,
        )
        with progress(f"carrying to {wanted.name}", users) as step:

            def on_page(count: int) -> None:
                for _ in range(count):
                    step("")

            done = work(on_page)
    typer.echo(_told(done))


def _told(done: Readapted) -> str:
    rate = done.seen / done.seconds if done.seconds else 0.0
    told = f"{done.solved} solved, {done.mapped} mapped in {done.seconds:.1f} s ({rate:.0f} users/s)"
    if done.changed:
        told += f"; {done.changed} said something meanwhile and were solved for then"
    if done.left:
        told += (
            f"; {done.left} left as they are: nothing of what they said is measured with these heads or heads that a "
            "good enough map leads from (they start anew, or are measured where texts or hidden states are retained)"
        )
    return told
