"""Progress of long work: a rich bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LINE_EVERY_S: Final = 10.0


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show that work of `total` steps goes on, on stderr.

    Args:
        title: What is being done.
        total: Number of steps.

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
            task = bar.add_task(title, total=total, step="")
            yield lambda step: bar.update(task, advance=1, step=step)
        return

    started = said = time.monotonic()
    done = 0

    def line(step: str) -> None:
        nonlocal done, said
        done += 1
        now = time.monotonic()
        if now - said >= LINE_EVERY_S or done == total:
            said = now
            print(f"{title}: {done}/{total} after {now - started:.0f} s {step}".rstrip(), file=sys.stderr)

    yield line
