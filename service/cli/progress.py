"""Progress of long work: a rich bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import typer

LINE_EVERY_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.2


def three_digits(number: float) -> str:
    """A figure of which three digits matter, without an exponent: 0.0123, 4.57, 15,000."""
    return f"{number:.3g}" if number < 999.5 else f"{float(f'{number:.3g}'):,.0f}"


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
            left = f", {three_digits(rate)}/s, {(total - done) / rate:.0f} s left" if done < total else ""
            print(f"{title}: {done}/{total} after {now - started:.0f} s{left} {step}".rstrip(), file=sys.stderr)

    yield line


class Flow:
    """Tells how quickly a file is worked through; `tell` writes, at most every `every_s`."""

    def __init__(self, every_s: float, tell: Callable[[int, str], None], say: Callable[[str], None]) -> None:
        self.say = say
        """Says something beside the progress."""
        self._every_s = every_s
        self._tell = tell
        self._started = self._told = time.monotonic()

    def step(self, position: int, counts: Mapping[str, int]) -> None:
        """Note that the file was read up to `position`, in bytes, and what this run did so far: rows, texts ..."""
        now = time.monotonic()
        if now - self._told >= self._every_s:
            self._told = now
            seconds = max(now - self._started, 1e-9)
            self._tell(
                position, ", ".join(f"{three_digits(count / seconds)} {what}/s" for what, count in counts.items())
            )


@contextmanager
def flow(title: str, size: int | None, done: int = 0) -> Iterator[Flow]:
    """Show that a file is worked through, on stderr.

    Args:
        title: What is being done.
        size: Bytes of the file; None where nobody knows.
        done: Bytes that an earlier run did.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[speed]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=size, completed=done, speed="")
            yield Flow(
                _LOOK_EVERY_S,
                lambda position, speed: bar.update(task, completed=position, speed=speed),
                lambda message: bar.console.print(message, markup=False, highlight=False),
            )
        return

    started = time.monotonic()

    def line(position: int, speed: str) -> None:
        elapsed = time.monotonic() - started
        if size:
            rate = max(position - done, 1) / elapsed
            where = f"{100 * position / size:.1f} % after {elapsed:.0f} s, {(size - position) / rate:.0f} s left"
        else:
            where = f"after {elapsed:.0f} s"
        print(f"{title}: {where}, {speed}", file=sys.stderr)

    yield Flow(LINE_EVERY_S, line, lambda message: print(message, file=sys.stderr))
