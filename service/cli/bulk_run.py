"""A run of `metareward score`: from users and choices on the command line to the last line of the output."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service.api.schemas import USER_ID_PATTERN, USER_ID_RULE
from service.cli.progress import LINE_EVERY_S, Flow, flow, three_digits
from service.datasets.candidates import CandidateRules, Rejected, read_candidates, scored_line
from service.datasets.jsonl import Choice, read_choices
from service.datasets.line_source import LineSource, Mark
from service.datasets.resumable_output import ResumableOutput, beside, is_stream, replace_file
from service.errors import ConfigurationError, InvalidInput, MetarewardError, TemporaryError
from service.observability.metrics import Metrics
from service.operations.bulk_score import BulkScore, Patience, People, ScoredLine, StoredPeople
from service.operations.few_shot import adapt_in_memory
from service.operations.keys import check_tenant_id
from service.operations.said import PreferencePair
from service.operations.serving import ServedCheckpoint
from service.operations.solving import Solver
from service.runtime import Runtime, build_runtime
from service.settings import Settings

_POPULATION: Final = "population"
_ALL: Final = "all"
_SYNC_EVERY_S: Final = 2.0
_PAGE: Final = 1000
_USER_ID: Final = re.compile(USER_ID_PATTERN)
_LINES_OF: Final = "lines_"


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a run.

    Attributes:
        counts: Since the output was begun: rows, texts, lines, rejected, truncated, and lines by state of their user.
        before: Those of earlier runs.
        seconds: That this run took, without loading the model.
        checkpoint_id: What it scored with.
    """

    counts: Counter[str]
    before: Counter[str]
    seconds: float
    checkpoint_id: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        names = ("rows", "texts", "lines", "rejected", "truncated")
        states = {key.removeprefix(_LINES_OF): n for key, n in self.counts.items() if key.startswith(_LINES_OF)}
        return {
            **{name: self.counts[name] for name in names},
            "user_states": states,
            "rows_before": self.before["rows"],
            "seconds": round(self.seconds, 3),
            "checkpoint_id": self.checkpoint_id,
        }

    def as_text(self, output: Path) -> str:
        """For people."""
        counts, rows, texts = self.counts, *(self.counts[name] - self.before[name] for name in ("rows", "texts"))
        if self.before and counts == self.before:
            return f"{output}: nothing to do, all {counts['rows']} rows are there"
        states = ", ".join(f"{count} {state}" for state, count in sorted(self.as_json()["user_states"].items()))
        told = [
            f"{output}: {counts['rows']} rows, {counts['texts']} texts, {counts['lines']} lines"
            + (f" ({states})" if states else ""),
            f"this run: {rows} rows in {self.seconds:.1f} s, {three_digits(rows / self.seconds)} rows/s, "
            f"{three_digits(texts / self.seconds)} texts/s",
        ]
        if counts["truncated"]:
            told.append(f"{counts['truncated']} texts were longer than the backbone reads, and were shortened")
        if counts["rejected"]:
            told.append(f"{counts['rejected']} rows could not be scored: {beside(output, 'rejected.jsonl')} says why")
        return "\n".join(told)


class BulkRun:
    """Everything that the command line says, and what makes an output of it."""

    def __init__(
        self,
        settings: Settings,
        source: LineSource,
        *,
        name: str,
        output: Path,
        users: str,
        choices: Path | None,
        tenant: str,
        truncate: bool,
        skip_bad: bool,
        drop_texts: bool,
        fresh: bool,
        in_flight: int,
        patience_s: float,
    ) -> None:
        """What can be wrong without a model is found out here; see `metareward score --help` for the options.

        Raises:
            ConfigurationError, InvalidInput: It is.
        """
        check_tenant_id(tenant)
        self._settings = settings
        self._source = source
        self._name = name
        self._output = output
        self._tenant = tenant
        self._truncate = truncate
        self._skip_bad = skip_bad
        self._fresh = fresh
        self._in_flight = in_flight
        self._patience_s = patience_s
        self._choices = None if choices is None else read_choices("--choices", choices, settings.support_limit)
        self._listed = None if users == _ALL and choices is None else _users(users, self._choices)
        self._plan = {
            # Somebody may be called None.
            "--users": _ALL if self._listed is None else _digest(json.dumps(self._listed).encode()),
            "--tenant": tenant,
            "--choices": "" if choices is None else _digest(choices.read_bytes()),
            "--truncate": str(truncate),
            "--drop-texts": str(drop_texts),
        }
        self._rules = CandidateRules(
            max_completions=settings.max_completions,
            max_text_bytes=settings.max_text_bytes,
            user_id=None if self._choices is not None else (_USER_ID, USER_ID_RULE),
            drop_texts=drop_texts,
        )

    def __call__(self) -> Summary:
        """Score what is left.

        Raises:
            MetarewardError: What went wrong; all before it is on the disk.
        """
        # A large model loads for minutes: what can be refused is refused before.
        with ResumableOutput(
            "--output",
            self._output,
            plan=self._plan,
            fresh=self._fresh,
            resumable=self._source.size is not None,
        ) as out:
            if out.mark is not None:
                self._source.skip(out.mark)
            runtime = build_runtime(self._settings, Metrics())
            try:
                served = runtime.serving.active
                out.settle("checkpoint", served.checkpoint_id)
                users = self._everybody(runtime, out) if self._listed is None else self._listed
                with flow("scoring", self._source.size, self._source.position) as shown:
                    return asyncio.run(self._score(runtime, served, users, out, shown))
            finally:
                runtime.close()

    def _everybody(self, runtime: Runtime, out: ResumableOutput) -> list[str | None]:
        """All users of the tenant when the run began: they are written beside the output, for whoever goes on."""
        file = beside(self._output, "users.txt")
        if out.mark is not None and file.exists():
            return list(file.read_text("utf-8").split())
        users: list[str | None] = []
        after: str | None = None
        while page := runtime.repository.list(self._tenant, after, _PAGE):
            users += [user.user_id for user in page]
            after = page[-1].user_id
        if not users:
            raise ConfigurationError(f"--users all: nobody of tenant {self._tenant} has adapted; adapt users first")
        if not is_stream(self._output):
            replace_file(file, "\n".join(map(str, users)).encode())
        return users

    async def _score(
        self,
        runtime: Runtime,
        served: ServedCheckpoint,
        users: Sequence[str | None],
        out: ResumableOutput,
        shown: Flow,
    ) -> Summary:
        counts = Counter(out.counts)
        before = Counter(out.counts)
        mark = out.mark or Mark(0, 0, "")
        whole = True
        began = synced = time.monotonic()
        try:
            bulk = await self._bulk(runtime, served, users, shown)
            async with contextlib.aclosing(bulk(read_candidates(self._source, self._rules))) as lines:
                async for each in lines:
                    if isinstance(each, Rejected):
                        if not self._skip_bad:
                            raise InvalidInput.single(f"{self._name}, line {each.line}", f"{each.reason}; {_MEND}")
                        out.reject(each.as_line())
                        counts["rejected"] += 1
                        mark = each.mark
                    else:
                        # Nothing is synced while the output is ahead of the mark, wherever this is interrupted.
                        whole = False
                        out.write(_line(each, served.checkpoint_id))
                        counts["lines"] += 1
                        counts[_LINES_OF + each.scored.standing] += 1
                        if each.last:
                            mark = each.row.mark
                            counts["rows"] += 1
                            counts["texts"] += len(each.row.completions)
                            counts["truncated"] += len(each.scored.truncated)
                            whole = True
                            speeds = {what: counts[what] - before[what] for what in ("rows", "texts")}
                            shown.step(self._source.position, speeds)
                    if whole and time.monotonic() - synced > _SYNC_EVERY_S:
                        out.sync(mark, counts)
                        synced = time.monotonic()
            out.sync(mark, counts)
        except BaseException as error:
            # Half of a row is cut when the output is left.
            if whole:
                with contextlib.suppress(MetarewardError):
                    out.sync(mark, counts)
            if isinstance(error, TemporaryError):
                shown.say("given up waiting; run the same command to go on")
            raise
        finally:
            await runtime.leave()
        seconds = max(time.monotonic() - began, 1e-9)
        return Summary(counts, before, seconds, served.checkpoint_id)

    async def _bulk(
        self, runtime: Runtime, served: ServedCheckpoint, users: Sequence[str | None], shown: Flow
    ) -> BulkScore:
        patience = Patience(self._patience_s, _Waiting(shown))
        people: People
        if self._choices is None:
            people = StoredPeople(served.users, self._tenant, patience, self._settings.user_cache_entries)
        else:
            people = await adapt_in_memory(
                {user: [_pair(choice) for choice in said] for user, said in self._choices.items()},
                served=served,
                tenant_id=self._tenant,
                solver=Solver(self._settings.half_life),
                patience=patience,
                truncate=self._truncate,
            )
        return BulkScore(
            served=served,
            tenant_id=self._tenant,
            people=people,
            users=users,
            patience=patience,
            truncate=self._truncate,
            texts_in_flight=self._in_flight,
        )


_MEND: Final = (
    "mend it and run the same command to go on (what is scored stays), or set such rows aside with --skip-bad"
)


class _Waiting:
    """Says now and then what is waited for."""

    def __init__(self, shown: Flow) -> None:
        self._shown = shown
        self._said = float("-inf")

    def __call__(self, error: TemporaryError, pause_s: float) -> None:
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_S:
            self._said = now
            self._shown.say(f"waiting, the next try is in {pause_s:.1f} s: {error}")


def _users(text: str, choices: dict[str, list[Choice]] | None) -> list[str | None]:
    """Whom `--users` names."""
    if text == _POPULATION:
        return [None]
    if text == _ALL and choices is not None:
        return list(choices)
    if text.startswith("@"):
        try:
            ids = [line.strip() for line in Path(text[1:]).read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--users {text} cannot be read as UTF-8 text: {error}") from error
    else:
        ids = [part.strip() for part in text.split(",") if part.strip()]
    if not ids:
        raise ConfigurationError("--users names nobody: give ids by comma, @file, all or population")
    if len(set(ids)) < len(ids):
        raise ConfigurationError("--users names somebody twice")
    if choices is None and (bad := [place for place, each in enumerate(ids, 1) if not _USER_ID.fullmatch(each)]):
        raise ConfigurationError(f"--users: number {bad[0]} is no user's id, which has {USER_ID_RULE}")
    return list(ids)


def _pair(choice: Choice) -> PreferencePair:
    messages = [{"role": role, "content": content} for role, content in choice.messages]
    return PreferencePair(messages, choice.chosen, choice.rejected, choice.strength, None)  # type: ignore[arg-type]


def _line(each: ScoredLine, checkpoint_id: str) -> bytes:
    scored = each.scored
    return scored_line(
        each.row.carried,
        {
            "user_id": scored.user_id,
            "user_state": scored.standing,
            "version": scored.version,
            "rewards": scored.rewards,
            "reward_std": scored.reward_std,
            "best_probability": scored.best_probability,
            "order": scored.order,
            "truncated": scored.truncated,
            "checkpoint_id": checkpoint_id,
        },
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
