"""Workers on real sockets inside the test's process, over the scripted backbone, and one that is not ours."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import uvicorn
from scripted_backbone import ScriptedBackbone

from service.api.worker_app import WorkerApp
from service.observability.metrics import Metrics, WorkerMetrics
from service.operations.classify import Classify, Flights
from service.operations.lifecycle import Lifecycle
from service.operations.self_check import SelfChecks, check_engine
from service.operations.single_flight import SingleFlight
from service.runtime.worker import WorkerRuntime
from service.worker.connection import Connection, worker_names
from service.worker.messages import BaseRewardHeads, StackedHeads
from service.worker.remote import RemoteEngine
from service.worker.selfcheck import GoldenRecord, Verdict
from service.worker.worker import Worker

MODEL = "a" * 64
A_KD = np.array([[1.0, 0.5, 0.25], [0.1, 0.2, 0.3]])
BIASES_K = np.array([7.0, -7.0])
GOLDEN = [(5, 6, 7), (1,), (9, 8), (300, 2, 2, 2), (50, 60), (11, 12, 13, 14, 15)]
PACKING = [(5, 6, 9, 9, 4), (5, 6, 9, 8), (5, 6), (9, 8), (5,), (50, 60, 70, 80, 90)]
TIMEOUT_S = 30.0


def golden_record(heads_KD: np.ndarray = A_KD, packing: Sequence[Sequence[int]] = ()) -> GoldenRecord:
    recorded_GK = np.array([heads_KD @ ScriptedBackbone.hidden(text).double().numpy() for text in GOLDEN])
    return GoldenRecord(GOLDEN, recorded_GK, "float32", "float32", packing)


def without_biases(token_ids: Sequence[int]) -> np.ndarray:
    return A_KD @ ScriptedBackbone.hidden(token_ids).double().numpy()


def expected(token_ids: Sequence[int]) -> np.ndarray:
    return without_biases(token_ids) + BIASES_K


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


class LiveWorker:
    """The worker's application on a socket. It keeps its port when it is started again."""

    def __init__(
        self,
        *,
        key: str = "",
        model: str = MODEL,
        heads_KD: np.ndarray = A_KD,
        max_batch_tokens: int = 64,
        max_queue_tokens: int = 100_000,
        max_body_bytes: int = 1_000_000,
        max_in_flight: int = 1000,
        timeout_s: float = 20.0,
        further: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """`further` are heads of other models that it answers for."""
        self.further = dict(further or {})
        self.backbone = ScriptedBackbone()
        self.backbone.vocab_size = 1000
        self.key, self.model, self.heads_KD = key, model, heads_KD
        self.limits = {"max_batch_tokens": max_batch_tokens, "max_queue_tokens": max_queue_tokens}
        self.max_body_bytes, self.max_in_flight, self.timeout_s = max_body_bytes, max_in_flight, timeout_s
        self.metrics = WorkerMetrics()
        self.port = 0
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> LiveWorker:
        models = {self.model: self.heads_KD, **self.further}
        heads = StackedHeads(tuple(BaseRewardHeads.of(each, np.zeros(len(each))) for each in models.values()))
        self.worker = Worker(self.backbone, heads, metrics=self.metrics, **self.limits)
        self.worker.start()
        self.lifecycle = Lifecycle(self.max_in_flight, 10**9)
        flights: Flights = SingleFlight()
        classify = {
            model: Classify(
                engine=self.worker,
                renderer=self.backbone.renderer,
                vocab_size=self.backbone.vocab_size,
                max_tokens=self.backbone.spec.max_tokens,
                max_text_bytes=1000,
                columns=columns,
                flights=flights,
            )
            for model, columns in zip(models, heads.columns, strict=True)
        }
        runtime = WorkerRuntime(
            engine=self.worker,
            classify=classify,
            lifecycle=self.lifecycle,
            self_checks=SelfChecks(self._check, self.metrics, rest_s=0.0),
            dtype="float32",
            max_tokens=self.backbone.spec.max_tokens,
            name="scripted",
            backbone="scripted",
            close=lambda: self.worker.stop(drain=False, timeout_s=TIMEOUT_S),
        )
        app = WorkerApp(runtime, key=self.key, max_body_bytes=self.max_body_bytes, timeout_s=self.timeout_s)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        until(lambda: self._server is not None and self._server.started)
        return self

    async def _check(self) -> list[Verdict]:
        golden = golden_record(self.heads_KD, packing=PACKING)
        verdict = await check_engine(
            self.worker,
            golden,
            len(self.heads_KD),
            timeout_s=self.timeout_s,
            metrics=self.metrics,
            columns=slice(len(self.heads_KD)),
        )
        return [verdict]

    def stop(self) -> None:
        """Ends at once: connections are cut."""
        assert self._server is not None
        self.backbone.may_go_on.set()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        # a server that is forced to end does not close its application; a broken device would be tried for ever
        self.worker.stop(drain=False, timeout_s=TIMEOUT_S)

    def __enter__(self) -> LiveWorker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()


class StockServer:
    """Answers as stock vLLM documents it: no header of ours, `/v1/models`, K numbers a text; `say` overrides."""

    def __init__(self, say: Callable[[list[list[int]]], tuple[int, Any]] | None = None, model: str = MODEL) -> None:
        stock = self
        self.asked: list[dict[str, Any]] = []
        self.say = say

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                models = [{"id": model, "object": "model", "owned_by": "vllm", "max_model_len": 64}]
                self.answer(200, {"object": "list", "data": models})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                stock.asked.append(request)
                texts = request["input"]
                if stock.say is not None and any(tuple(text) not in GOLDEN for text in texts):
                    self.answer(*stock.say(texts))
                    return
                self.answer(200, stock_answer(texts, model))

            def answer(self, status: int, content: Any) -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> StockServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def stock_answer(texts: Sequence[Sequence[int]], model: str = MODEL) -> dict[str, Any]:
    rows = [
        {"index": i, "label": "LABEL_0", "probs": without_biases(text).tolist(), "num_classes": 2}
        for i, text in enumerate(texts)
    ]
    tokens = sum(map(len, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return {"id": "classify-1", "object": "list", "created": 1, "model": model, "data": rows, "usage": usage}


def remote_engine(
    *urls: str,
    key: str = "",
    timeout_s: float = 10.0,
    packing: Sequence[Sequence[int]] = (),
    model: str = MODEL,
    heads_KD: np.ndarray = A_KD,
    **limits: Any,
) -> RemoteEngine:
    """A started engine over workers of the scripted backbone."""
    golden, heads = golden_record(heads_KD, packing=packing), len(heads_KD)
    connect = {
        name: lambda url=url: Connection(url, key=key, model=model, heads=heads, timeout_s=timeout_s)
        for name, url in worker_names(urls).items()
    }
    defaults = {"max_batch_tokens": 8192, "max_queue_tokens": 1_000_000, "max_queue_wait_s": 1e6}
    metrics = Metrics()
    biases_K = BIASES_K if heads_KD is A_KD else np.zeros(heads)
    engine = RemoteEngine(connect, golden, biases_K, timeout_s=timeout_s, metrics=metrics, **{**defaults, **limits})
    engine.metrics = metrics  # for the tests to look at
    engine.start(5.0)
    return engine
