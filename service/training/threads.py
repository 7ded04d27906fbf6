"""How many threads linear algebra may use while a recipe is fitted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread per BLAS call, in the whole process, while this is open; also usable as a decorator.

    Fits make thousands of calls on matrices of tens of rows and run steps side by side (`steps.py`). BLAS threads of
    their own only wait for each other there: on a busy machine one round of EM took 15 times the processor time.
    Sums then also have one order, however many cores there are.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
