"""Requests to a worker in this process: as many as it can take, or at a rate of their own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from service.errors import Overloaded
from service.worker.worker import Worker

Requests = Callable[[], Iterator[list[list[int]]]]
"""Makes requests without end, each some texts as token ids, which nobody sent before."""


def closed_loop(worker: Worker, requests: Requests, seconds: float, callers: int = 64) -> tuple[float, float]:
    """Items a second with so many callers that always wait, and the share of the time that the device idles."""
    ends = time.perf_counter() + seconds
    done = [0] * callers
    before = worker.stats.busy_s

    def call(caller: int) -> None:
        for request in requests():
            if time.perf_counter() > ends:
                return
            for answer in worker.submit(request):
                answer.result(60)
            done[caller] += len(request)

    began = time.perf_counter()
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    return sum(done) / took, 1.0 - (worker.stats.busy_s - before) / took


def device_idle(worker: Worker, requests: Requests) -> float:
    """The share of a second in which no kernel runs, as the profiler sees it."""
    from torch.profiler import ProfilerActivity, profile

    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        closed_loop(worker, requests, 1.0)
    took = time.perf_counter() - started
    return 1.0 - sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / took


def open_loop(worker: Worker, requests: Requests, items_per_s: float, seconds: float) -> tuple[float, float, float]:
    """Items answered a second, and p50 and p99 in ms, where requests come at random whatever is answered."""
    numbers = random.Random(1)
    waits: list[float] = []
    finished = threading.Semaphore(0)
    asked = 0
    began = at = time.perf_counter()
    for request in requests():
        at += numbers.expovariate(items_per_s / len(request))
        if at - began > seconds:
            break
        time.sleep(max(0.0, at - time.perf_counter()))
        try:
            answers = worker.submit(request)
        except Overloaded:
            waits.append(float("inf"))
            continue
        asked += 1
        left = [len(answers)]

        def landed(_: Any, came: float = at, left: list[int] = left) -> None:
            left[0] -= 1  # all on the worker's thread
            if not left[0]:
                waits.append(time.perf_counter() - came)
                finished.release()

        for answer in answers:
            answer.add_done_callback(landed)
    for _ in range(asked):
        finished.acquire()
    took = time.perf_counter() - began
    p50, p99 = np.percentile(waits, [50, 99])
    return 10 * asked / took, 1e3 * float(p50), 1e3 * float(p99)
