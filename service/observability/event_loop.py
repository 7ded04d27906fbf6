"""How long the event loop makes requests wait: for a long step of another one, or for the processor."""

from __future__ import annotations

import asyncio

from service.observability.metrics import Metrics

INTERVAL_S = 0.25


async def measure_lag(metrics: Metrics) -> None:
    """Observe for ever how late this loop wakes up; to be cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        metrics.event_loop_lag.observe(max(0.0, loop.time() - due))
