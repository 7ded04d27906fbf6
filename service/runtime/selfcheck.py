"""The self-check outside a server: of a backbone that is loaded for it, or of remote workers as a server would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.checkpoints import load_checkpoint
from service.operations.self_check import HERE, Report
from service.runtime.engine import FailedSelfCheck, open_worker
from service.runtime.remote_engine import remote_parts
from service.settings import Settings
from service.worker.connection import Connection
from service.worker.selfcheck import GoldenRecord, SelfCheck, Verdict
from service.worker.wire import WorkerBusy, WorkerFailed


def check_settings(settings: Settings) -> Report:
    """Check what a server of these settings would serve with; ENGINE_URL's workers where it is set.

    Raises:
        ConfigurationError: Settings, checkpoint and backbone do not fit each other.
    """
    checkpoint = load_checkpoint(settings.checkpoint)
    if settings.engine_urls:
        remote = remote_parts(settings, checkpoint)
        began = time.monotonic()
        verdicts = [_verdict(name, connect, remote.golden) for name, connect in remote.connect.items()]
        return Report(verdicts, time.monotonic() - began, time.time())
    began = time.monotonic()
    try:
        opened = open_worker(settings, checkpoint, None)
    except FailedSelfCheck as failure:
        check = failure.check
    else:
        check = opened.self_checks[0]
        opened.worker.stop(drain=True, timeout_s=settings.drain_timeout_s)
    return Report([Verdict.of(HERE, check)], time.monotonic() - began, time.time())


async def check_worker(connect: Callable[[], Connection], golden: GoldenRecord) -> SelfCheck:
    """Ask one worker what a server asks before it sends it texts.

    Raises:
        WorkerFailed, WorkerBusy: As `Connection.check`.
    """
    connection = connect()
    try:
        return await connection.check(golden)
    finally:
        await connection.close()


def _verdict(name: str, connect: Callable[[], Connection], golden: GoldenRecord) -> Verdict:
    try:
        return Verdict.of(name, asyncio.run(check_worker(connect, golden)))
    except WorkerBusy:
        return Verdict(name, "unavailable", "it is too busy to score the golden texts")
    except WorkerFailed as failure:
        return Verdict(name, "failed" if failure.tells_wrong else "unavailable", str(failure))
