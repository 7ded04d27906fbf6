"""Every setting, read once at the top: environment variables or a `.env` file, overridden by command-line flags.

`.env.example` lists them all; a test keeps the two equal.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import ConfigurationError

DEMO_CHECKPOINT = Path(__file__).parent / "checkpoints" / "demo"

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Noise = Annotated[float, Field(ge=0, le=0.5), BeforeValidator(lambda value: 0.5 if value == "" else value)]


class Settings(BaseSettings):
    """The server's settings. Frozen: nothing below the composition root sees this class, only values."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", frozen=True, extra="ignore")

    # Where it listens, and to whom
    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs API keys.")
    port: Port = Field(8000, description="Port of the REST API; 0 picks a free one.")
    metrics_port: Port | None = Field(9464, description="Port of /metrics on the same address; empty turns it off.")
    auth: Literal["auto", "required", "off"] = Field(
        "auto", description="API keys. auto: required unless HOST is loopback. off: only on loopback."
    )
    allowed_hosts: str = Field(
        "", description="Host names that requests may name, by comma; empty: loopback's without keys, any with keys."
    )
    auth_cache_s: Seconds = Field(60.0, description="How long a verified key is trusted; also a revoked one at most.")
    auth_stale_s: Seconds = Field(
        3600.0, description="How long a verified key is trusted while the database does not answer."
    )

    # What it serves
    checkpoint: Path = Field(DEMO_CHECKPOINT, description="Checkpoint directory.")
    checkpoints: str = Field(
        "", description="Further checkpoint directories, by comma: loaded beside CHECKPOINT, to be made active."
    )
    min_fidelity: float = Field(
        0.5, ge=0, le=1, description="Least fidelity of a map that carries users from another checkpoint."
    )
    backbone: str = Field("", description="`minilm`, a hub id or a path; empty takes the one the checkpoint names.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    dtype: Literal["auto", "float32", "bfloat16", "float8"] = Field(
        "auto",
        description="auto: bfloat16 on CUDA (MiniLM: float32), else float32. float8: CUDA of Ada, Hopper or newer.",
    )
    executor: Literal["auto", "packed", "masked", "padded"] = Field(
        "auto",
        description="How a decoder runs: packed, masked, padded; auto: the first of them that is right at start.",
    )
    attention: Literal["auto", "path", "masked", "flex", "varlen", "paged"] = Field(
        "auto",
        description="path, masked, flex, varlen, paged; auto: path on a CPU, the fastest measured on CUDA.",
    )
    prefix_cache_mb: Annotated[int, Field(ge=0)] = Field(
        512, description="MiB of device memory for keys and values of prompts seen before; 0 keeps none."
    )
    max_tokens: Count | None = Field(None, description="Longest text in tokens; empty: 4096 or the model's own limit.")
    max_batch_tokens: Count = Field(8192, description="Tokens in one forward pass.")
    max_queue_tokens: Count = Field(
        524_288, description="Tokens that may wait ahead of a request; beyond it it gets 503."
    )
    max_queue_wait_s: Seconds = Field(
        4.0, description="Longest wait for the engine, as estimated on arrival; beyond it requests get 503."
    )
    coalesce_ms: float = Field(
        4.0, ge=0, le=100, description="Longest that an idle device waits for texts of other callers; 0: never."
    )

    # The worker as a process of its own
    engine_url: str = Field("", description="URLs of workers, by comma; empty: the worker runs in this process.")
    engine_api_key: SecretStr = Field(
        SecretStr(""), description="Bearer key between the REST layer and its workers; 32 characters at least."
    )
    engine_timeout_s: Seconds = Field(30.0, description="Longest wait for a worker's answer.")
    self_check_interval_s: Annotated[float, Field(ge=0)] = Field(
        3600.0, description="How often a running engine scores golden texts; 0: at start and on demand only."
    )
    worker_port: Port = Field(8100, description="Port of `metareward worker`; 0 picks a free one.")
    worker_metrics_port: Port | None = Field(9465, description="Port of its /metrics; empty turns it off.")

    # Where it keeps users
    data_dir: Path = Field(Path(".metareward"), description="Folder of the embedded database and the generated secret.")
    database_url: SecretStr = Field(
        SecretStr(""), description="postgresql://user:password@host/name; empty: SQLite in DATA_DIR."
    )
    database_pool_size: Count = Field(
        8, description="Threads that ask the database, a connection each; keys and /ready have 3 more."
    )
    database_timeout_s: Seconds = Field(5.0, description="Longest wait for a connection or a statement.")
    auto_migrate: bool | None = Field(None, description="Migrate at start; empty: only an embedded SQLite database.")
    secret_key: SecretStr = Field(
        SecretStr(""), description="Keys the digests of texts; empty: generated in DATA_DIR. Replicas must share one."
    )

    # What it remembers
    redis_url: SecretStr = Field(
        SecretStr(""), description="redis://:password@host:6379/0, Redis 6.2 or newer; empty: none. Needs SECRET_KEY."
    )
    redis_timeout_s: Seconds = Field(0.1, description="Longest wait for Redis; then the database answers.")
    redis_user_ttl_s: Seconds = Field(30.0, description="Age at which a user's state in Redis is read again.")
    tombstone_ttl_s: Seconds = Field(86_400.0, description="How long Redis remembers that a user was erased.")
    cache_scope: Literal["tenant", "shared"] = Field("tenant", description="Who shares cached base rewards.")
    base_reward_cache_entries: Count = Field(200_000, description="Texts whose base rewards stay in memory.")
    base_reward_cache_ttl_s: Seconds = Field(86_400.0, description="Age at which they expire.")
    user_cache_entries: Count = Field(100_000, description="Users whose state stays in memory.")
    stale_limit_s: Seconds = Field(300.0, description="Longest time to serve a user's cached state without a database.")

    retention: Literal["base_rewards", "hidden_states", "texts"] = Field(
        "base_rewards",
        description="What is kept of evidence: base_rewards, K numbers a text; hidden_states, also what the backbone "
        "makes of it; texts, also prompt and completions.",
    )
    half_life: Annotated[float, Field(gt=0)] | Literal["auto"] | None = Field(
        None,
        description="Days after which evidence counts half; auto: found for each user, where their taste changes; "
        "empty: age never matters.",
    )

    # What it accepts
    support_limit: Count = Field(1000, description="Newest pairs of a user that a solve uses.")
    max_pairs: Count = Field(
        1000, description="Pairs in one adapt request, or twice as many texts of pairs, ratings and rankings."
    )
    max_completions: Count = Field(4096, description="Completions in one score request.")
    max_text_bytes: Count = Field(262_144, description="Bytes of one prompt or completion.")
    max_body_bytes: Count = Field(33_554_432, description="Bytes of one request.")
    idempotency_ttl_s: Seconds = Field(86_400.0, description="How long an Idempotency-Key is remembered.")
    history_versions: int = Field(
        20, ge=0, description="Earlier versions of a user that a rollback can go to; 0 keeps nothing that was replaced."
    )
    request_timeout_s: Seconds = Field(60.0, description="Longest time a request may take; then 503.")
    max_in_flight: Count = Field(1024, description="Requests worked on at once; beyond it they get 503.")
    max_in_flight_bytes: Count = Field(268_435_456, description="Bytes of their bodies; beyond it they get 503.")

    # How far events are to be trusted (docs/feedback.md)
    feedback_noise_chosen: Noise = Field(
        0.1, description="Probability that a choice points at the wrong one of two texts; 0.5: choices are not taken."
    )
    feedback_noise_thumbs: Noise = Field(0.1, description="The same of a thumbs up or down.")
    feedback_noise_edited: Noise = Field(0.15, description="The same of an edit.")
    feedback_noise_copied: Noise = Field(0.2, description="The same of a copy.")
    feedback_noise_regenerated: Noise = Field(0.25, description="The same of a completion that was asked for again.")
    feedback_noise_dwell: Noise = Field(
        0.35, description="The same of a text read for long beside one hardly looked at; near times are noisier."
    )
    feedback_noise_alone: Noise = Field(
        0.2, description="Further noise of events about a text that stood alone; 0.5: these are not taken."
    )

    # How it ends
    drain_delay_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="After SIGTERM: seconds of serving on while /ready says no, for load balancers to notice."
    )
    drain_timeout_s: Seconds = Field(30.0, description="Then: longest wait for requests in flight.")

    # What it tells
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level to log.")
    log_format: Literal["auto", "text", "json"] = Field("auto", description="auto: text on a terminal, else json.")
    access_log: Literal["all", "errors", "off"] = Field(
        "errors", description="Which requests get a log line; errors: refused, failed and slower than a second."
    )
    otlp_endpoint: str = Field(
        "", description="Where traces go (OTLP over HTTP): http://host:4318/v1/traces; empty: no traces."
    )
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="Part of the requests traced.")

    @field_validator("backbone", "device", mode="after")
    @classmethod
    def _no_blank_ends(cls, value: str) -> str:
        return value.strip()

    @field_validator("host", mode="after")
    @classmethod
    def _address_without_brackets(cls, value: str) -> str:
        return value.strip().removeprefix("[").removesuffix("]")

    @field_validator("metrics_port", "worker_metrics_port", "max_tokens", "auto_migrate", "half_life", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("checkpoint", "data_dir", mode="before")
    @classmethod
    def _empty_is_the_default(cls, value: Any, info: ValidationInfo) -> Any:
        # Compose files pass a variable on as empty where it is not set; as a path that would be the current folder.
        return cls.model_fields[str(info.field_name)].default if value == "" else value

    @model_validator(mode="after")
    def _keys_where_others_reach(self) -> Settings:
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(
                f"auth: off is refused with HOST {self.host!r} (from --host, .env or the environment variable HOST): "
                "without keys it listens on loopback only; leave AUTH empty or set HOST to 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _replicas_share_a_secret(self) -> Settings:
        if self.redis_url.get_secret_value() and not self.secret_key.get_secret_value():
            raise ValueError(
                "redis_url: needs SECRET_KEY, the same on every replica, or they would not find each other's entries; "
                "make one with `openssl rand -hex 32`"
            )
        return self

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Settings:
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError("max_queue_tokens must be at least max_batch_tokens")
        return self

    @property
    def keys_required(self) -> bool:
        """Whether every request but those of the public routes needs an API key."""
        return self.auth == "required" or (self.auth == "auto" and not is_loopback(self.host))

    @property
    def further_checkpoints(self) -> tuple[Path, ...]:
        """The directories of CHECKPOINTS."""
        return tuple(Path(part.strip()) for part in self.checkpoints.split(",") if part.strip())

    @property
    def engine_urls(self) -> tuple[str, ...]:
        """The workers behind this server; empty where it runs its own."""
        return tuple(url.strip().rstrip("/") for url in self.engine_url.split(",") if url.strip())

    @property
    def host_names(self) -> frozenset[str] | None:
        """Names in lower case that a request's Host may have; empty: loopback's only; None: any."""
        names = frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())
        return None if not names and self.keys_required else names

    @property
    def embedded_database(self) -> bool:
        """Whether users live in the SQLite file under `data_dir`."""
        return not self.database_url.get_secret_value()

    @property
    def resolved_database_url(self) -> str:
        """`database_url`, or that of the embedded SQLite file. Holds a password: do not log it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'metareward.db'}"


def is_loopback(host: str) -> bool:
    """Whether a listening address is reachable from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`, with `overrides` (None means: not given) on top.

    Raises:
        ConfigurationError: A value is impossible; the message names the setting and says why.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}"
            if e["loc"]
            else e["msg"].removeprefix("Value error, ")
            for e in error.errors()
        ]
        raise ConfigurationError("settings: " + "; ".join(problems)) from error
