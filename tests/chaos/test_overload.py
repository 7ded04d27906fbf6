"""Ten times what a server can do: every request is answered, with rewards or with advice, and memory stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.overload import SMALL_CACHE, describe_overload, overload
from benchmarks.server import ServerProcess
from chaos.conftest import FULL

SECONDS, PROBES, MOST_GROWTH = (60.0, 100, 1.05) if FULL else (6.0, 10, 1.1)
FACTOR = 10.0


@pytest.mark.timeout(600)
def test_an_overloaded_server_says_so_and_goes_on(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, **SMALL_CACHE) as server:
        found = overload(server, SECONDS, FACTOR, PROBES)
    print(f"\n{describe_overload(found, FACTOR)}")
    statuses = {answer.status for answer in found.load.answers}
    assert statuses == {200, 503}
    assert found.load.unanswered == found.load.not_sent == 0
    assert found.without_advice == 0
    # Buffers and arenas grow to the size of the load, once.
    quarters = [part.mean() for part in np.array_split(np.array(found.memory_mib), 4)]
    assert quarters[3] < quarters[2] * MOST_GROWTH
