"""What `metareward doctor` looks at: every part of a deployment, each by itself, with what mends it.

Nothing is changed: no table, no key, no secret is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import httpx

from service.backbone.golden import golden_texts_id
from service.backbone.load import load_renderer
from service.checkpoints import Checkpoint, load_checkpoint
from service.errors import ConfigurationError, MetarewardError
from service.runtime.engine import FailedSelfCheck, open_engine
from service.runtime.remote_engine import remote_parts
from service.runtime.selfcheck import check_worker
from service.settings import Settings, is_loopback
from service.store import migrate
from service.store.database import Database, open_database
from service.store.keys import KeyRepository
from service.store.serving import ServingRepository
from service.worker.wire import WorkerBusy, WorkerFailed

Status = Literal["ok", "warning", "failed", "skipped"]

_MIN_FILES = 4096
_MIN_REDIS = (6, 2)
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: What: ``database``, ``redis`` ...
        status: `warning` serves, but not as an operator would want; `failed` does not serve.
        detail: What was found.
        fix: What to do; empty where all is well.
    """

    part: str
    status: Status
    detail: str
    fix: str = ""


def diagnose(settings: Settings, *, load_engine: bool) -> Iterator[Finding]:
    """Look at one part after the other, in the order in which a server needs them.

    Args:
        settings: As the server would read them.
        load_engine: Also load the backbone and run the self-check (minutes for a large one); only without
            ENGINE_URL.
    """
    yield from _listening(settings)
    yield _files()
    yield _secret(settings)
    yield from _database(settings)
    yield _redis(settings)
    checkpoint = None
    try:
        checkpoint = load_checkpoint(settings.checkpoint)
        detail = f"{checkpoint.name} ({checkpoint.checkpoint_id}), K = {checkpoint.heads}, {checkpoint.backbone.id}"
        yield Finding("checkpoint", "ok", detail)
    except ConfigurationError as error:
        yield Finding("checkpoint", "failed", str(error), "set CHECKPOINT to the folder that `metareward train` wrote")
    for directory in settings.further_checkpoints:
        yield _further(settings, directory, checkpoint)
    if checkpoint is None:
        yield Finding("engine", "skipped", "needs a checkpoint")
    elif settings.engine_urls:
        yield from _workers(settings, checkpoint)
    else:
        yield _backbone(settings, checkpoint, load_engine)


def _further(settings: Settings, directory: Path, first: Checkpoint | None) -> Finding:
    """A checkpoint that is loaded to be made active; without a map its users would start anew."""
    part = f"checkpoint {directory}"
    try:
        checkpoint = load_checkpoint(directory)
    except ConfigurationError as error:
        return Finding(part, "failed", str(error), "correct CHECKPOINTS")
    detail = f"{checkpoint.name} ({checkpoint.checkpoint_id}), K = {checkpoint.heads}, {checkpoint.backbone.id}"
    seen = {each.heads_id for each in checkpoint.maps if each.fidelity.mean >= settings.min_fidelity}
    if first is None or first.heads_id in seen | {checkpoint.heads_id}:
        return Finding(part, "ok", detail)
    fix = f"`metareward checkpoint link {directory} --from` the directory of {first.name}"
    return Finding(
        part, "warning", f"{detail}; no map of MIN_FIDELITY leads from {first.name}, so its users start anew", fix
    )


def _listening(settings: Settings) -> Iterator[Finding]:
    keys = "API keys required" if settings.keys_required else "no API keys: only this machine can call"
    for name, port in (("PORT", settings.port), ("METRICS_PORT", settings.metrics_port)):
        if port is None:
            yield Finding(name.lower(), "warning", "off", "set METRICS_PORT, or nobody will see what this server does")
            continue
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                yield _taken(name, settings.host, port, error)
                continue
        yield Finding(name.lower(), "ok", f"{settings.host}:{port} is free" + (f"; {keys}" if name == "PORT" else ""))


def _taken(name: str, host: str, port: int, error: OSError) -> Finding:
    part, detail = name.lower(), f"{host}:{port}: {error.strerror}"
    if error.errno != errno.EADDRINUSE:
        fix = f"set HOST to an address of this machine and {name} to a port that this account may open"
        return Finding(part, "failed", detail, fix)
    reachable = host if is_loopback(host) else "127.0.0.1"
    path = "/metrics" if name == "METRICS_PORT" else "/live"
    try:
        answer = httpx.get(
            f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}{path}", timeout=_PATIENCE_S
        )
        if answer.status_code == 200 and ("metareward_" in answer.text or answer.json() == {"live": True}):
            return Finding(part, "ok", f"{host}:{port}: metareward serves here already")
    except (httpx.HTTPError, ValueError):
        pass
    return Finding(part, "failed", detail, "stop what listens there, or set another port")


def _files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MIN_FILES:
        fix = f"raise it to {_MIN_FILES} or more: `ulimit -n`, LimitNOFILE= in a systemd unit"
        return Finding("open files", "warning", f"at most {soft}; each connection takes one", fix)
    return Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def _secret(settings: Settings) -> Finding:
    configured = settings.secret_key.get_secret_value()
    if configured:
        if len(configured) < 32:
            return Finding("secret", "failed", "SECRET_KEY is shorter than 32 characters", "`openssl rand -hex 32`")
        return Finding("secret", "ok", "SECRET_KEY is set; every replica must have the same")
    folder = settings.data_dir
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        fix = "make DATA_DIR writable, or set SECRET_KEY and DATABASE_URL"
        return Finding("secret", "failed", f"DATA_DIR {settings.data_dir} cannot be written", fix)
    if not settings.embedded_database:
        fix = "set SECRET_KEY to the same value on every replica: `openssl rand -hex 32`"
        return Finding("secret", "warning", "generated in DATA_DIR, so other replicas have another one", fix)
    return Finding("secret", "ok", f"kept in {settings.data_dir}")


def _database(settings: Settings) -> Iterator[Finding]:
    if settings.embedded_database and not Path(settings.data_dir / "metareward.db").exists():
        yield Finding("database", "ok", f"SQLite in {settings.data_dir}, made at the first start")
        if settings.keys_required:
            yield Finding("keys", "failed", "none", _MAKE_KEY)
        return
    try:
        database = open_database(
            settings.resolved_database_url,
            pool_size=1,
            connect_timeout_s=settings.database_timeout_s,
            statement_timeout_s=settings.database_timeout_s,
        )
    except ConfigurationError as error:
        yield Finding("database", "failed", str(error), "set DATABASE_URL")
        return
    kind = "PostgreSQL" if database.is_postgresql else "SQLite"
    try:
        database.probe()
        problems = migrate.check(database)
        if problems:
            migrates = settings.embedded_database if settings.auto_migrate is None else settings.auto_migrate
            status: Status = "warning" if migrates else "failed"
            yield Finding("database", status, f"{kind} answers, but {problems[0]}", "`metareward db upgrade`")
        elif missing := database.missing_rights():
            fix = "GRANT it to the role of DATABASE_URL; the role that owns the tables has every right"
            yield Finding("database", "failed", f"the role may not {', '.join(missing)}", fix)
        else:
            yield Finding("database", "ok", f"{kind} answers; its schema is current")
            yield _keys(settings, database)
            yield from _active(settings, database)
    except MetarewardError as error:
        fix = "start it, or correct DATABASE_URL (host, port, name, user, password)"
        yield Finding("database", "failed", str(error), fix)
    finally:
        database.close()


def _active(settings: Settings, database: Database) -> Iterator[Finding]:
    """Where a checkpoint was activated: whether a server would load it."""
    row = ServingRepository(database).get()
    if row is None:
        return
    loaded = set()
    for directory in (settings.checkpoint, *settings.further_checkpoints):
        # One that cannot be read has a finding of its own.
        with contextlib.suppress(ConfigurationError):
            loaded.add(load_checkpoint(directory).checkpoint_id)
    if row.active in loaded:
        yield Finding("active", "ok", row.active)
    else:
        fix = "name its directory in CHECKPOINTS, or activate one that every server has"
        yield Finding("active", "warning", f"{row.active} is active and not loaded here; CHECKPOINT would answer", fix)


_MAKE_KEY = "`metareward keys create --tenant NAME --role admin`"


def _keys(settings: Settings, database: Database) -> Finding:
    if not settings.keys_required:
        return Finding("keys", "skipped", "not asked for on loopback (AUTH)")
    usable = KeyRepository(database).count_usable()
    if not usable:
        return Finding("keys", "failed", "no key that could be used", _MAKE_KEY)
    return Finding("keys", "ok", f"{usable} usable")


def _redis(settings: Settings) -> Finding:
    url = settings.redis_url.get_secret_value()
    if not url:
        return Finding("redis", "skipped", "REDIS_URL is empty: replicas share nothing but the database")
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S) as client:
            server = client.info("server")
            version = str(server["redis_version"])
            if tuple(int(part) for part in version.split(".")[:2]) < _MIN_REDIS:
                return Finding("redis", "failed", f"version {version}", "use Redis 6.2 or newer")
            replication = client.info("replication")
            memory = client.info("memory")
    except (redis.RedisError, ValueError, OSError) as error:
        # Without the message: the client puts the URL into some.
        fix = "start it, or correct REDIS_URL (host, port, password, database number); requests do without meanwhile"
        return Finding("redis", "warning", f"does not answer ({type(error).__name__})", fix)
    if replication.get("role") != "master":
        return Finding("redis", "warning", "is a read-only replica", "point REDIS_URL at the primary")
    if memory.get("maxmemory", 0) and memory.get("maxmemory_policy") == "noeviction":
        fix = "`CONFIG SET maxmemory-policy allkeys-lru`: entries expire, and any may go"
        return Finding("redis", "warning", f"version {version}; refuses writes when full (noeviction)", fix)
    return Finding("redis", "ok", f"version {version} answers")


_WORKER_FIXES: Final[dict[str, str]] = {
    "connection": "start `metareward worker` there, or correct ENGINE_URL",
    "timeout": "look at the process: stopped, swapping, or stuck in its device; restart it",
    "status": "look at its /ready and its log; where it refuses our key, set ENGINE_API_KEY to the worker's",
    "model": "start it with this server's CHECKPOINT, and BACKBONE",
    "golden": "its backbone is not the checkpoint's, or computes in another dtype: compare BACKBONE and DTYPE",
    "answer": "what listens there is no worker: correct ENGINE_URL",
}


def _workers(settings: Settings, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Ask each worker what a server asks before it sends it texts."""
    patience_s = min(settings.engine_timeout_s, _PATIENCE_S)
    try:
        remote = remote_parts(settings.model_copy(update={"engine_timeout_s": patience_s}), checkpoint)
    except ConfigurationError as error:
        yield Finding("engine", "failed", str(error), "correct the setting that it names")
        return
    for url, connect in zip(settings.engine_urls, remote.connect.values(), strict=True):
        part = f"worker {url}"
        try:
            result = asyncio.run(check_worker(connect, remote.golden))
            if result.passed:
                yield Finding(part, "ok", f"self-check passed: {result}")
            else:
                yield Finding(part, "failed", f"it scores golden texts differently: {result}", _WORKER_FIXES["golden"])
        except WorkerBusy:
            yield Finding(part, "warning", "is too busy to score the golden texts", "ask again, or add workers")
        except WorkerFailed as failure:
            yield Finding(part, "failed", str(failure), _WORKER_FIXES[failure.reason])


def _backbone(settings: Settings, checkpoint: Checkpoint, load_engine: bool) -> Finding:
    name = settings.backbone or checkpoint.backbone.id
    if checkpoint.golden is not None and checkpoint.golden.texts_id != golden_texts_id():
        return Finding("engine", "failed", "the checkpoint recorded other golden texts", "train it again")
    try:
        if load_engine:
            parts = open_engine(settings, checkpoint)
            parts.close()
            return Finding("engine", "ok", f"{name} loads, fits, and scores the golden texts as recorded")
        renderer = load_renderer(name, max_tokens=settings.max_tokens)
    except FailedSelfCheck as error:
        return Finding("engine", "failed", str(error), "set BACKBONE and DTYPE; `metareward selfcheck` has the figures")
    except ConfigurationError as error:
        return Finding("engine", "failed", str(error), "set BACKBONE, DEVICE and DTYPE")
    if renderer.template_id != checkpoint.backbone.template_id:
        detail = f"{name} has another chat template than in training"
        return Finding("engine", "failed", detail, "set BACKBONE to the one that it was trained on")
    return Finding("engine", "ok", f"{name} is here (not loaded; --load or `metareward selfcheck` checks its numbers)")


def overall(findings: list[Finding], settings: Settings) -> str:
    """The last line: whether this would serve."""
    failed = [finding.part for finding in findings if finding.status == "failed"]
    if failed:
        return f"will not serve: {', '.join(failed)}"
    reach = "this machine only" if is_loopback(settings.host) else "other machines"
    warned = [finding.part for finding in findings if finding.status == "warning"]
    return f"serves {reach}" + (f"; look at: {', '.join(warned)}" if warned else "; all is well")
