"""Faults under load: short by default, in full with CHAOS=full (`make chaos`)."""

from __future__ import annotations

import os

import pytest

from chaos.oracle import Oracle

FULL = os.environ.get("CHAOS") == "full"


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """What every answer must be."""
    return Oracle.compute()
