"""Engines with a mistake, from the start or while they serve: found, told with the figure, and out until they pass."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from prometheus_client import CollectorRegistry
from scripted_backbone import LetterRenderer, ScriptedBackbone
from workers import GOLDEN, MODEL, PACKING, TIMEOUT_S, LiveWorker, expected, remote_engine, until

from service.api.app import create_app
from service.backbone.golden import golden_texts_id, golden_token_ids
from service.checkpoints import BackboneIdentity, Checkpoint, Golden
from service.errors import BackboneError, Unavailable
from service.mrm import GaussianStart
from service.observability.metrics import Metrics, WorkerMetrics
from service.operations.self_check import Report, SelfChecks
from service.runtime import build_runtime
from service.runtime.engine import FailedSelfCheck, start_worker
from service.settings import Settings
from service.worker.selfcheck import TOLERANCES, Verdict

ROOT = Path(__file__).resolve().parents[2]
HEADS, HIDDEN = 3, 6
GENERATOR = torch.Generator().manual_seed(0)
STATES = torch.randn(1000, HIDDEN, generator=GENERATOR)
FREQUENCIES = torch.linspace(0.05, 0.5, HIDDEN)


class DoublingRenderer(LetterRenderer):
    """Begins a text twice."""

    def tokenise(self, messages: Any, completion: str, *, truncate: bool, memo: object = None) -> Any:
        return super().tokenise(messages, completion[:1] + completion, truncate=truncate)


class FaultyBackbone(ScriptedBackbone):
    """Every token and its position count; `fault` is what it does wrong."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.spec = type(self.spec)(**{**self.spec.as_json(), "hidden_size": HIDDEN})
        if fault == "template":
            self.renderer = DoublingRenderer()

    def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        super().forward(batch)
        hidden_BD = torch.stack([self.state(token_ids, 0) for token_ids in batch])
        if self.fault == "leak" and len(batch) > 1:
            hidden_BD += 0.1 * hidden_BD.roll(1, dims=0)
        if self.fault == "positions":
            for index, token_ids in enumerate(batch):
                if any(len(token_ids) > 1 and tuple(other[:2]) == tuple(token_ids[:2]) for other in batch[:index]):
                    hidden_BD[index] = self.state(token_ids, 1)
        if self.fault == "nan":
            hidden_BD[-1] = math.nan
        if self.fault == "weights":
            hidden_BD *= 1.5
        return hidden_BD

    @staticmethod
    def state(token_ids: Sequence[int], first: int) -> torch.Tensor:
        positions_T = torch.arange(first, first + len(token_ids))
        return (STATES[list(token_ids)] * torch.cos(positions_T[:, None] * FREQUENCIES)).mean(dim=0)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Heads over the right backbone, and what they give for the golden texts."""
    rng = np.random.default_rng(0)
    A_KD, b_K = rng.normal(size=(HEADS, HIDDEN)).astype(np.float32), rng.normal(size=HEADS).astype(np.float32)
    spec = FaultyBackbone().spec
    hidden_GD = np.stack(
        [FaultyBackbone.state(text, 0).double().numpy() for text in golden_token_ids(LetterRenderer())]
    )
    return Checkpoint(
        name="scripted",
        backbone=BackboneIdentity(
            id=spec.id, fingerprint=spec.fingerprint, template_id=spec.template_id, hidden_size=HIDDEN
        ),
        A_KD=A_KD,
        b_K=b_K,
        start=GaussianStart(np.ones(HEADS), np.eye(HEADS), 1.0),
        golden=Golden(texts_id=golden_texts_id(), base_rewards=(hidden_GD @ A_KD.T + b_K).tolist()),
    )


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(f"metareward_{name}", labels)
    assert found is not None, name
    return found


# At the start


def test_a_right_engine_starts(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker, check = start_worker(checkpoint, FaultyBackbone(), max_batch_tokens=512, max_queue_tokens=10_000)
    worker.stop(drain=True, timeout_s=TIMEOUT_S)
    assert check.passed
    assert check.difference("neighbours") == 0.0
    assert f"self-check passed: {check}" in caplog.text


@pytest.mark.parametrize(
    ("fault", "against"),
    [("leak", "neighbours"), ("leak", "batched"), ("positions", "batched"), ("template", "recorded"),
     ("weights", "recorded"), ("nan", "recorded")],
)  # fmt: skip
def test_a_wrong_engine_does_not_start(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture, fault: str, against: Any
) -> None:
    metrics = WorkerMetrics()
    with pytest.raises(BackboneError) as refused:
        start_worker(checkpoint, FaultyBackbone(fault), max_batch_tokens=512, max_queue_tokens=10_000, metrics=metrics)
    assert isinstance(refused.value, FailedSelfCheck)
    figure = refused.value.check.difference(against)
    assert figure is not None
    assert not figure <= getattr(TOLERANCES["float32"], against)
    assert f"NOT {against} {figure:.1e}" in caplog.text
    assert f"NOT {against} {figure:.1e}" in str(refused.value)
    told = value(metrics.registry, "selfcheck_difference", against=against)
    assert told == figure or (math.isnan(told) and math.isnan(figure) and fault == "nan")


# While a server runs


class LiveServer:
    """The REST application over a faulty backbone, on a socket."""

    def __init__(self, runtime: Any, settings: Settings, backbone: FaultyBackbone) -> None:
        self.runtime, self.backbone = runtime, backbone
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(runtime, settings), log_config=None, access_log=False, lifespan="on")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=TIMEOUT_S)

    def check(self) -> dict[str, Any]:
        """A check that is not the last one told again."""
        before = self.ask()["ended_at"]
        found: list[dict[str, Any]] = []
        until(lambda: (found.append(self.ask()) or found[-1]["ended_at"]) != before)
        return found[-1]

    def ask(self) -> dict[str, Any]:
        response = self.client.post("/admin/self-check", json={})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def close(self) -> None:
        self.backbone.may_go_on.set()
        self.client.close()
        self.server.should_exit = True
        self.thread.join(TIMEOUT_S)


@pytest.fixture
def serve(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LiveServer]]:
    checkpoint.save(tmp_path / "checkpoint")
    started: list[LiveServer] = []

    def serve(**given: Any) -> LiveServer:
        backbone = FaultyBackbone()
        monkeypatch.setattr("service.runtime.engine.load_backbone", lambda *_, **__: backbone)
        settings = Settings(_env_file=None, checkpoint=tmp_path / "checkpoint", data_dir=tmp_path / "data", **given)
        started.append(LiveServer(build_runtime(settings, Metrics()), settings, backbone))
        return started[-1]

    yield serve
    for server in started:
        server.close()


def test_an_engine_that_goes_bad_makes_the_server_unready_until_it_passes(
    serve: Callable[..., LiveServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = serve()
    registry = server.runtime.metrics.registry
    assert server.check()["passed"]
    assert server.client.get("/ready").json() == {"ready": True, "degraded": []}
    server.backbone.fault = "leak"
    wrong = server.check()
    (here,) = wrong["workers"]
    assert (wrong["passed"], here["worker"], here["status"]) == (False, "here", "failed")
    figures = {comparison["against"]: comparison for comparison in here["comparisons"]}
    assert figures["batched"]["difference"] > figures["batched"]["tolerance"]
    assert figures["recorded"]["passed"], "alone it is right"
    unready = server.client.get("/ready")
    assert (unready.status_code, unready.json()["ready"]) == (503, False)
    assert here["detail"] in unready.json()["degraded"][0]
    assert f"failed: {here['detail']}" in caplog.text
    assert value(registry, "selfcheck_passed") == 0
    assert value(registry, "selfcheck_difference", against="batched") == figures["batched"]["difference"]
    assert value(registry, "selfchecks_total", result="failed") >= 1
    server.backbone.fault = ""
    assert server.check()["passed"]
    assert server.client.get("/ready").status_code == 200
    assert value(registry, "selfcheck_passed") == 1
    assert "self-check passed again" in caplog.text


def test_numbers_that_are_not_finite_are_a_failure_too(serve: Callable[..., LiveServer]) -> None:
    server = serve()
    server.backbone.fault = "nan"
    (here,) = server.check()["workers"]
    assert here["status"] == "failed"
    assert None in [comparison["difference"] for comparison in here["comparisons"]]
    assert server.client.get("/ready").status_code == 503
    assert math.isnan(value(server.runtime.metrics.registry, "selfcheck_difference", against="recorded"))


def test_calls_at_the_same_time_share_a_check_and_one_that_hangs_says_nothing_of_the_numbers(
    serve: Callable[..., LiveServer],
) -> None:
    server = serve(engine_timeout_s=0.3)
    server.backbone.may_go_on.clear()
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda _: server.ask(), range(6)))
    assert len({answer["ended_at"] for answer in answers}) == 1
    (here,) = answers[0]["workers"]
    assert (here["status"], here["comparisons"]) == ("unavailable", [])
    assert "0.3 s" in here["detail"]
    assert server.runtime.self_checks.failure is None
    server.backbone.may_go_on.set()
    until(lambda: server.ask()["passed"])
    registry = server.runtime.metrics.registry
    assert value(registry, "selfchecks_total", result="unavailable") >= 1


def test_it_is_repeated_by_itself_and_also_where_only_failures_are() -> None:
    async def live() -> None:
        statuses: list[Any] = ["failed"]
        asked: asyncio.Queue[str] = asyncio.Queue()

        async def check() -> list[Verdict]:
            await asked.put(statuses[-1])
            return [Verdict("here", statuses[-1], "a figure")]

        on_failure = SelfChecks(check, WorkerMetrics(), interval_s=0.0, recheck_s=0.001, rest_s=0.0)
        repeating = asyncio.create_task(on_failure.repeat())
        await asyncio.sleep(0)
        assert not (await on_failure()).passed
        async with asyncio.timeout(TIMEOUT_S):
            assert [await asked.get() for _ in range(3)] == ["failed"] * 3, "twice by itself"
            statuses.append("passed")
            while await asked.get() != "passed":
                pass
        repeating.cancel()
        assert (await on_failure()).passed
        assert on_failure.failure is None

        often = SelfChecks(check, WorkerMetrics(), interval_s=0.001, rest_s=0.0)
        repeating = asyncio.create_task(often.repeat())
        async with asyncio.timeout(TIMEOUT_S):
            assert [await asked.get() for _ in range(3)] == ["passed"] * 3
        repeating.cancel()
        await often.close()

    asyncio.run(live())


def test_who_leaves_ends_nobody_elses_check() -> None:
    async def live() -> None:
        may_end = asyncio.Event()

        async def check() -> list[Verdict]:
            await may_end.wait()
            return [Verdict("here", "passed", "a figure")]

        checks = SelfChecks(check, WorkerMetrics())
        leaves, stays = asyncio.create_task(checks()), asyncio.create_task(checks())
        await asyncio.sleep(0)
        leaves.cancel()
        may_end.set()
        report = await stays
        assert isinstance(report, Report)
        assert report.passed

    asyncio.run(live())


# Workers behind sockets


def leaking(worker: LiveWorker) -> Callable[[], None]:
    """Texts of one batch see each other from now on; what is returned ends that."""
    forward = worker.backbone.forward

    def wrong(batch: Sequence[Sequence[int]], *more: Any) -> torch.Tensor:
        hidden_BD = forward(batch, *more)
        return hidden_BD + (0.5 * hidden_BD.roll(1, dims=0) if len(batch) > 1 else 0.0)

    worker.backbone.forward = wrong  # type: ignore[method-assign]

    def mend() -> None:
        worker.backbone.forward = forward  # type: ignore[method-assign]

    return mend


def test_a_worker_tells_at_its_own_door() -> None:
    with LiveWorker() as worker, httpx.Client(base_url=worker.url, timeout=TIMEOUT_S) as client:
        assert client.post("/self-check", json={}).json()["passed"]
        mend = leaking(worker)
        (here,) = client.post("/self-check", json={}).json()["workers"]
        assert here["status"] == "failed"
        unready = client.get("/ready")
        assert (unready.status_code, unready.json()["status"]) == (503, "the self-check failed")
        refused = client.get("/v1/models")
        assert refused.status_code == 503
        assert here["detail"] in refused.json()["error"]["message"]
        mend()
        assert client.post("/self-check", json={}).json()["passed"]
        assert client.get("/ready").status_code == 200
        assert client.get("/v1/models").json()["data"][0]["id"] == MODEL
        for body in (b"", b"[]", b'{"x": 1}', b"{"):
            refused = client.post("/self-check", content=body, headers={"content-type": "application/json"})
            assert refused.status_code == 400
        assert client.post("/self-check").status_code == 415


def test_each_remote_worker_is_checked_by_name_and_one_that_fails_is_out_until_it_passes() -> None:
    with LiveWorker() as good, LiveWorker() as bad:
        engine = remote_engine(good.url, bad.url, packing=PACKING)
        names = [url.removeprefix("http://") for url in (good.url, bad.url)]
        try:
            assert [v.status for v in engine.self_check(TIMEOUT_S).result(TIMEOUT_S)] == ["passed", "passed"]
            mend = leaking(bad)
            right, wrong = engine.self_check(TIMEOUT_S).result(TIMEOUT_S)
            assert [(v.worker, v.status) for v in (right, wrong)] == [(names[0], "passed"), (names[1], "failed")]
            assert wrong.check is not None
            registry = engine.metrics.registry
            figure = value(registry, "engine_selfcheck_difference", worker=names[1], against="batched")
            assert figure == wrong.check.difference("batched")
            assert f"{figure:.1e}" in wrong.detail
            assert value(registry, "engine_worker_up", worker=names[1]) == 0
            assert value(registry, "engine_ejections_total", worker=names[1], reason="golden") == 1
            assert engine.healthy
            np.testing.assert_allclose(engine.submit([[1, 2]])[0].result(TIMEOUT_S), expected([1, 2]))
            mend()
            assert engine.self_check(TIMEOUT_S).result(TIMEOUT_S)[1].status == "passed"
            assert value(registry, "engine_worker_up", worker=names[1]) == 1
            bad.stop()
            assert engine.self_check(TIMEOUT_S).result(TIMEOUT_S)[1].status == "unavailable"
            bad.start()
        finally:
            engine.close(1.0)
        with pytest.raises(Unavailable):
            engine.self_check(1.0)


def test_a_worker_that_knows_itself_wrong_is_taken_out_by_whoever_looks_after_it() -> None:
    with LiveWorker() as worker, httpx.Client(base_url=worker.url, timeout=TIMEOUT_S) as client:
        engine = remote_engine(worker.url)
        try:
            mend = leaking(worker)
            assert not client.post("/self-check", json={}).json()["passed"]
            until(lambda: not engine.healthy)
            mend()
            assert client.post("/self-check", json={}).json()["passed"]
            until(lambda: engine.healthy)
        finally:
            engine.close(1.0)


def test_a_worker_that_leaks_is_not_let_in() -> None:
    with LiveWorker() as worker:
        mend = leaking(worker)
        engine = remote_engine(worker.url, packing=PACKING)
        try:
            assert not engine.healthy
            asked = {tuple(text) for batch in worker.backbone.batches for text in batch}
            assert asked & set(GOLDEN)
            mend()
            until(lambda: engine.healthy)
        finally:
            engine.close(1.0)


# The command


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "selfcheck", *arguments],
        env={"PATH": os.environ["PATH"], "OMP_WAIT_POLICY": "passive", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_loads_and_checks_what_would_be_served() -> None:
    done = command("--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    (here,) = answer["workers"]
    assert (answer["passed"], here["status"], here["dtype"]) == (True, "passed", "float32")
    assert {comparison["against"] for comparison in here["comparisons"]} == {"batched", "neighbours", "recorded"}


def test_the_command_asks_one_that_runs_and_ends_with_1_where_it_fails() -> None:
    key = "k" * 32
    with LiveWorker(key=key) as worker:
        leaking(worker)
        done = command("--url", worker.url, METAREWARD_KEY=key)
        assert done.returncode == 1, done.stderr
        assert "batched" in done.stdout
        assert "FAILED" in done.stdout
        assert "self-check failed" in done.stdout
        refused = command("--url", worker.url, "--key", "x" * 32)
        both = command("--url", worker.url, "--dtype", "float32")
    assert refused.returncode == 2
    assert "--key" in refused.stderr
    assert key not in refused.stderr + refused.stdout
    assert (both.returncode, "leave out" in both.stderr) == (2, True)
    bare = command("--url", worker.url.removeprefix("http://"))
    assert (bare.returncode, "write http://" in bare.stderr) == (2, True)


def test_the_command_cuts_nothing_off_on_a_narrow_terminal() -> None:
    with LiveWorker() as worker:
        done = command(ENGINE_URL=worker.url, COLUMNS="40")
    assert done.returncode == 1, done.stderr
    assert "it serves another checkpoint; its heads_id is not the one of this server" in done.stdout
