"""The REST application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from service import __version__
from service.api.auth import Doorkeeper
from service.api.errors import install_error_handlers
from service.api.gate import Gate
from service.api.limits import Limits
from service.api.openapi import DESCRIPTION, install_openapi
from service.api.routes import (
    adapt,
    admin,
    evidence,
    feedback,
    history,
    openrlhf,
    rerank,
    score,
    status,
    suggest,
    users,
    vllm,
)
from service.observability.event_loop import measure_lag
from service.observability.requests import RequestObserver
from service.observability.tracing import open_tracing
from service.runtime import Runtime
from service.settings import Settings


def create_app(runtime: Runtime, settings: Settings) -> FastAPI:
    """The application over a runtime; it closes the runtime when it shuts down.

    Raises:
        ConfigurationError: Traces are asked for and cannot be sent.
    """
    tracing = open_tracing(settings.otlp_endpoint, settings.trace_sample_ratio, "metareward")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.warm_up()
        background = [
            asyncio.create_task(task)
            for task in (
                runtime.keep_house(),
                runtime.watch_dependencies(),
                runtime.checkpoints.watch(),
                runtime.self_checks.repeat(),
                measure_lag(runtime.metrics),
            )
        ]
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            await runtime.leave()
            await asyncio.to_thread(runtime.close)
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="metareward",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's own would tell paths, bodies that did not validate, and messages of exceptions.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.runtime = runtime
    app.state.limits = Limits(settings.max_pairs, settings.max_completions, settings.max_text_bytes)
    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    # Whatever follows `/users/{user_id:path}/` must be tried before `/users/{user_id:path}`.
    routers = [
        module.router
        for module in (score, rerank, vllm, openrlhf, adapt, feedback, suggest, history, evidence, users, status, admin)
    ]
    for router in routers:
        app.include_router(router)
    install_error_handlers(app)
    install_openapi(app)
    app.add_middleware(Doorkeeper, access=runtime.access)
    app.add_middleware(
        Gate,
        routes=[route for router in routers for route in router.routes],
        metrics=runtime.metrics,
        lifecycle=runtime.lifecycle,
        host_names=settings.host_names,
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.request_timeout_s,
        observer=RequestObserver(runtime.metrics, settings.access_log, tracing),
    )
    return app
