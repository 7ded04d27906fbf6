"""One remote worker over HTTP: asks, and says what became of it in `wire`'s words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import httpx
import numpy as np
import numpy.typing as npt

from service.errors import ConfigurationError
from service.observability.tracing import propagation_headers
from service.worker import wire
from service.worker.selfcheck import GoldenRecord, SelfCheck, judge, questions
from service.worker.wire import WorkerFailed

_CONNECT_TIMEOUT_S: Final = 2.0
# Shorter than uvicorn's, ours and vLLM's: a connection that the other side is just closing is never picked up.
_KEEP_IDLE_S: Final = 2.0
_PROBE_TIMEOUT_S: Final = 5.0


class Connection:
    """To one worker. Lives on one event loop."""

    def __init__(self, url: str, *, key: str, model: str, heads: int, timeout_s: float) -> None:
        self._model = model
        self._heads = heads
        # No proxy of the environment: workers are on a private network, and texts go nowhere else.
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_IDLE_S),
            trust_env=False,
        )
        self._probe_timeout_s = min(timeout_s, _PROBE_TIMEOUT_S)
        self.queued_tokens: int | None = None

    async def classify(
        self, texts: Sequence[Sequence[int]], *, scope: bytes = b"", timeout_s: float | None = None
    ) -> npt.NDArray[np.float64]:
        """A h of each text [B, K].

        Args:
            texts: Token ids, all of one `scope`.
            scope: Whose they are: the worker shares nothing between scopes.
            timeout_s: After which nobody wants the answer; the worker is told, and begins nothing any more.

        Raises:
            WorkerFailed, WorkerBusy, TextsRefused: As `wire.read_classify`; no answer at all is a `WorkerFailed`.
        """
        body = wire.classify_body(self._model, texts, scope)
        extra = {} if timeout_s is None else wire.timeout_header(timeout_s)
        status, headers, content = await self._ask("POST", wire.CLASSIFY_PATH, body, extra)
        return wire.read_classify(status, headers, content, model=self._model, texts=len(texts), heads=self._heads)

    async def probe(self) -> wire.ServedModel:
        """Whether it answers, and serves what it should; quick where it hangs.

        Raises:
            WorkerFailed, WorkerBusy: It does not.
        """
        status, headers, content = await self._ask("GET", wire.MODELS_PATH, timeout_s=self._probe_timeout_s)
        return wire.read_models(status, headers, content, model=self._model)

    async def check(self, golden: GoldenRecord, *, thorough: bool = True) -> SelfCheck:
        """Let it score the golden texts, in company and one by one. What to do where it fails is up to the caller.

        Raises:
            WorkerFailed: It does not serve this model, or does not answer golden texts.
            WorkerBusy: It has no time for them.
        """
        served = await self.probe()
        try:
            answers = [
                await self.classify(question.texts, scope=question.scope)
                for question in questions(golden, thorough=thorough)
            ]
        except wire.TextsRefused as error:
            raise WorkerFailed("golden", f"it does not answer golden texts: {error.message}") from error
        return judge(golden, answers, dtype=served.dtype, thorough=thorough)

    async def close(self) -> None:
        """Let its connections go."""
        await self._client.aclose()

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        extra: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            response = await self._client.request(
                method,
                path,
                content=body,
                # Texts of several requests may travel together; the one that set them off is named.
                headers={
                    **propagation_headers(),
                    **({} if body is None else {"content-type": "application/json"}),
                    **(extra or {}),
                },
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
        except httpx.ConnectTimeout as error:
            raise WorkerFailed("connection", "it does not take connections", hangs=True, reached=False) from error
        except httpx.TimeoutException as error:
            raise WorkerFailed("timeout", "it does not answer in time", hangs=True) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            reached = not isinstance(error, httpx.ConnectError)
            message = f"the connection failed ({type(error).__name__})"
            raise WorkerFailed("connection", message, reached=reached) from error
        self.queued_tokens = wire.read_queued_tokens(response.headers)
        return response.status_code, response.headers, response.content


def worker_names(urls: Sequence[str]) -> dict[str, str]:
    """URLs by what logs and metrics call them: host, port and path, never a password.

    Raises:
        ConfigurationError: One is no URL of a worker, or comes twice.
    """
    names: dict[str, str] = {}
    for url in urls:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.userinfo:
            raise ConfigurationError(
                "ENGINE_URL: give URLs like http://worker:8100, by comma, without a user, a password or a query"
            )
        name = f"{parsed.netloc.decode('ascii')}{parsed.path.rstrip('/')}"
        if name in names:
            raise ConfigurationError(f"ENGINE_URL: {name} comes twice")
        names[name] = url
    return names
