"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip at home, fail in CI: there everything that a test needs is expected to be present."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded numbers and real preferences beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        # The project passes without it, in anybody's CI too.
        pytest.skip("needs the folder ../shared (recorded numbers, real preferences)")
    return folder
