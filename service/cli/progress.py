"""Progress of long work: a rich bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import typer

LINE_EVERY_S: Final = 10.0


@contextmanager
def resumable() -> Iterator[None]:
    """Say of work that was interrupted (Ctrl-C) how to go on.

    Raises:
        typer.Exit: With status 130, in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command to go on", err=True)
        raise typer.Exit(130) from None


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Show that work of `total` steps goes on, on stderr.

    Args:
        title: What is being done.
        total: Number of steps.
        done: Steps that an earlier run did.

    Yields:
        A function to be called after each step with what was done (may be empty).
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[step]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total, completed=done, step="")
            yield lambda step: bar.update(task, advance=1, step=step)
        return

    before = done
    started = said = time.monotonic()

    def line(step: str) -> None:
        nonlocal done, said
        done += 1
        now = time.monotonic()
        if now - said >= LINE_EVERY_S or done == total:
            said = now
            rate = (done - before) / max(now - started, 1e-9)
            left = f", {rate:.3g}/s, {(total - done) / rate:.0f} s left" if done < total else ""
            print(f"{title}: {done}/{total} after {now - started:.0f} s{left} {step}".rstrip(), file=sys.stderr)

    yield line
