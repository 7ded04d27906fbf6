"""Texts to base rewards: content caches, rendering, single flight, engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.backbone.prompt_memo import PromptMemo
from service.backbone.protocol import Renderer, TokenisedText, UnrenderableText
from service.errors import FieldIssue, InvalidInput, MetarewardError, Overloaded
from service.observability.metrics import Metrics
from service.operations.base_reward_requests import BaseRewards, LookedUp, TokenMeter, Usage
from service.operations.engine import Engine
from service.operations.rendered import tokenise_rendered
from service.operations.single_flight import SingleFlight
from service.operations.texts import AnyText, RenderedText, TextKeys, token_key
from service.store.caches import BaseRewardCache, CachedBaseRewards
from service.store.shared import SharedBaseRewards, SharedClaims

CacheScope = Literal["tenant", "shared"]
# The longest wait for another replica's answer, and half of the request's time at most. A replica that died loses its
# claim sooner; one that renews it lives, and a CPU takes seconds for 64 texts.
_JOIN_S = 10.0


Flights = SingleFlight[npt.NDArray[np.float64]]


class BaseRewardReader:
    """The only way from a text to base rewards; every front door and every adaptation goes through it.

    Lives on one event loop. Entries of the cache hold numbers under a keyed digest, no user and no text.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        renderer: Renderer,
        keys: TextKeys,
        cache: BaseRewardCache,
        cache_scope: CacheScope,
        metrics: Metrics,
        shared: SharedBaseRewards | None = None,
        meter: TokenMeter | None = None,
        timeout_s: float | None = None,
        columns: slice = slice(None),
        flights: Flights | None = None,
    ) -> None:
        """Reads one checkpoint's base rewards.

        Args:
            engine: Its answers hold these base rewards, and perhaps those of other checkpoints on its backbone.
            renderer: Of the backbone.
            keys: Of texts; the same for all checkpoints of a backbone.
            cache: This checkpoint's own.
            cache_scope: Who shares it.
            metrics: Where to count.
            shared: The replicas' cache of this checkpoint.
            meter: Whom tenants pay.
            timeout_s: How long a request may take: what the engine has not begun by then is not begun.
            columns: Where this checkpoint's base rewards stand in an answer of the engine.
            flights: What is being computed for all readers of the engine; None where this is the only one.
        """
        self._engine = engine
        self._renderer = renderer
        self._keys = keys
        self._cache = cache
        self._cache_scope = cache_scope
        self._metrics = metrics
        self._shared = shared
        self._meter = meter
        self._timeout_s = timeout_s
        self._columns = columns
        self._flights = SingleFlight() if flights is None else flights
        self._readers = [self]

    def share_answers(self, readers: Sequence[BaseRewardReader]) -> None:
        """Hand what the engine answers to all `readers` of it, this one among them: each remembers its own columns."""
        self._readers = list(readers)

    @property
    def renderer(self) -> Renderer:
        """How its texts become token ids."""
        return self._renderer

    @property
    def tells_times(self) -> bool:
        """Whether the caller may learn how long its texts took: in a shared cache that tells what others scored."""
        return self._cache_scope == "tenant"

    def timings_ms(self, base: BaseRewards, user_s: float, started: float) -> dict[str, float]:
        """Milliseconds by stage of a request that read `base` and a user, as far as the caller may learn them.

        Args:
            base: What was read.
            user_s: Seconds until the user was known.
            started: When the request began, by `time.perf_counter`.
        """
        timings_ms = {"user": user_s * 1e3}
        if self.tells_times:
            if base.tokens:
                timings_ms |= {"tokenise": base.tokenise_s * 1e3, "engine": base.engine_s * 1e3}
            timings_ms["total"] = (time.perf_counter() - started) * 1e3
        return timings_ms

    async def read(
        self, tenant_id: str, texts: Sequence[AnyText], *, truncate: bool, metered: bool = True
    ) -> BaseRewards:
        """Base rewards of `texts`, from the caches or the engine: `look_up`, then `complete`.

        Raises:
            See both.
        """
        return await self.complete(await self.look_up(tenant_id, texts, truncate=truncate, metered=metered))

    async def look_up(
        self, tenant_id: str, texts: Sequence[AnyText], *, truncate: bool, metered: bool = True
    ) -> LookedUp:
        """What the caches know of `texts`; to be completed soon. The tenant pays for the rest where it is `metered`.

        Raises:
            Overloaded: Texts are missing, and the engine's queue is full; nothing was done yet.
        """
        scope = tenant_id if self._cache_scope == "tenant" else ""
        with self._metrics.stage("cache") as cache:
            keys = self._text_keys(scope, texts)
            now = time.monotonic()
            entries: list[CachedBaseRewards | None] = [self._cache.get(key, now) for key in keys]
            missing = _missing(entries, truncate)
            self._metrics.base_reward_cache.labels("memory", "hit").inc(len(texts) - len(missing))
            if missing:
                self._metrics.base_reward_cache.labels("memory", "miss").inc(len(missing))
                if self._shared is not None:
                    await self._ask_shared(self._shared, keys, entries, now)
                    missing = _missing(entries, truncate)
            cache.attributes = {"texts": len(texts), "hits": len(texts) - len(missing)}
        if missing:
            self._require_room(len(missing), self._keys.scope(scope))
        deadline = None if self._timeout_s is None else now + self._timeout_s
        return LookedUp(tenant_id, scope, texts, truncate, keys, entries, missing, deadline, metered)

    async def complete(self, looked_up: LookedUp) -> BaseRewards:
        """Base rewards of all texts; those that are missing come from the engine.

        Raises:
            InvalidInput: Texts are too long and were not to be truncated, or cannot be rendered; every one is listed.
            QuotaExceeded: The tenant's tokens of this minute are used up; nothing was computed.
            Overloaded: The engine's queue is full; nothing was computed.
            Unavailable, EngineError: From the engine.
        """
        keys, entries, missing = looked_up.keys, looked_up.entries, looked_up.missing
        tokenise_s = engine_s = 0.0
        tokens = 0
        lengths: dict[int, int] = {}
        if missing:
            # Redis is asked who computes the texts while they are tokenised.
            claims = None if self._shared is None else self._shared.claim([keys[i] for i in missing])
            try:
                with self._metrics.stage("tokenise") as tokenise:
                    texts = [looked_up.texts[i] for i in missing]
                    tokenised = await asyncio.to_thread(self._tokenise, texts, looked_up.truncate)
                    lengths = {i: len(text.token_ids) for i, text in zip(missing, tokenised, strict=True)}
                    tokens = sum(lengths.values())
                    tokenise.attributes = {"texts": len(missing), "tokens": tokens}
                with self._metrics.stage("engine") as engine:
                    engine.attributes = {"texts": len(missing), "tokens": tokens}
                    async with self._metered(looked_up, tokens) as usage:
                        computed = await self._compute(looked_up, tokenised, usage, claims)
            finally:
                if claims is not None:
                    claims.release()
            tokenise_s, engine_s = tokenise.seconds, engine.seconds
            for i, entry in zip(missing, computed, strict=True):
                entries[i] = entry
        known = [entry for entry in entries if entry is not None]
        return BaseRewards(
            rewards_BK=np.array([entry.base_rewards_K for entry in known]),
            keys=keys,
            truncated=[i for i, entry in enumerate(known) if entry.truncated],
            tokens=tokens,
            tokenise_s=tokenise_s,
            engine_s=engine_s,
            lengths=lengths,
        )

    async def count_tokens(self, texts: Sequence[AnyText], base: BaseRewards, *, truncate: bool) -> int:
        """Tokens of `texts`, whose base rewards are `base`; those that were cached are tokenised for it."""
        cached = [text for i, text in enumerate(texts) if i not in base.lengths]
        counted = await asyncio.to_thread(self._tokenise, cached, truncate) if cached else []
        return sum(base.lengths.values()) + sum(len(text.token_ids) for text in counted)

    @contextlib.asynccontextmanager
    async def _metered(self, looked_up: LookedUp, tokens: int) -> AsyncIterator[Usage]:
        """Work that the tenant pays for; `tokens` is the most that it can cost."""
        meter = self._meter if looked_up.metered else None
        if meter is not None:
            await meter.charge_tokens(looked_up.tenant_id, tokens)
        usage = Usage()
        try:
            yield usage
        except MetarewardError as error:
            # Nobody pays for what was refused or failed. Who leaves does: the work may have been done.
            usage.taken = usage.answered
            if isinstance(error, Overloaded):
                self._metrics.refusals.labels("queue").inc()
            raise
        finally:
            if meter is not None:
                await meter.settle_tokens(looked_up.tenant_id, charged=tokens, used=usage.taken)

    async def _ask_shared(
        self,
        shared: SharedBaseRewards,
        keys: Sequence[bytes],
        entries: list[CachedBaseRewards | None],
        now: float,
    ) -> None:
        """Fill gaps in `entries` with what other replicas computed, and remember it."""
        wanted = [i for i, entry in enumerate(entries) if entry is None]
        hits = 0
        for i, entry in zip(wanted, await shared.get([keys[i] for i in wanted]), strict=True):
            if entry is not None:
                entries[i] = entry
                self._cache.put(keys[i], entry, now)
                hits += 1
        self._metrics.base_reward_cache.labels("redis", "hit").inc(hits)
        self._metrics.base_reward_cache.labels("redis", "miss").inc(len(wanted) - hits)

    def _require_room(self, texts: int, scope: bytes) -> None:
        """Refuse before rendering what the engine would refuse after it: a text has one token at least."""
        try:
            self._engine.check_room(texts, scope=scope)
        except Overloaded:
            self._metrics.refusals.labels("queue").inc()
            raise

    def _text_keys(self, scope: str, texts: Sequence[AnyText]) -> list[bytes]:
        prompt_keys: dict[int, bytes] = {}
        keys = []
        for text in texts:
            if isinstance(text, RenderedText):
                keys.append(self._keys.rendered(scope, text))
                continue
            prompt_key = prompt_keys.get(id(text.messages))
            if prompt_key is None:
                prompt_key = prompt_keys[id(text.messages)] = self._keys.prompt(scope, text.messages)
            keys.append(self._keys.text(prompt_key, text.completion))
        return keys

    def _tokenise(self, texts: Sequence[AnyText], truncate: bool) -> list[TokenisedText]:
        tokenised = []
        issues = []
        memos: dict[int, PromptMemo] = {}
        for text in texts:
            try:
                if isinstance(text, RenderedText):
                    tokenised.append(tokenise_rendered(self._renderer, text, truncate=truncate))
                    continue
                memo = memos.setdefault(id(text.messages), PromptMemo())
                tokenised.append(self._renderer.tokenise(text.messages, text.completion, truncate=truncate, memo=memo))
            except UnrenderableText as error:
                issues.append(FieldIssue(text.field, str(error)))
        if issues:
            raise InvalidInput(issues)
        return tokenised

    async def _compute(
        self, looked_up: LookedUp, texts: Sequence[TokenisedText], usage: Usage, claims: SharedClaims | None
    ) -> list[CachedBaseRewards]:
        """Missing texts: from memory by now, from other replicas that compute them, and from the engine."""
        now = time.monotonic()
        keys = [looked_up.keys[i] for i in looked_up.missing]
        # Others may have computed a text while this request was being tokenised.
        found = [self._cache.get(key, now) for key in keys]
        wanted = [i for i, known in enumerate(found) if known is None or known.truncated != texts[i].truncated]
        elsewhere: list[int] = []

        def take(i: int, entry: CachedBaseRewards | None) -> bool:
            if entry is None or entry.truncated != texts[i].truncated:
                return False
            found[i] = entry
            self._cache.put(keys[i], entry, now)
            return True

        if claims is not None and wanted:
            answers = await claims.answers()
            elsewhere = [i for i in wanted if answers[i] is False]
            others = set(elsewhere)
            wanted = [
                i
                for i in wanted
                if i not in others and not (isinstance(entry := answers[i], CachedBaseRewards) and take(i, entry))
            ]

        async def compute(indices: Sequence[int]) -> None:
            some = [texts[i] for i in indices]
            answers = await self._ask_engine(looked_up, [keys[i] for i in indices], some, usage)
            for i, answer in zip(indices, answers, strict=True):
                found[i] = self._entry(answer, texts[i].truncated)

        async def join(claims: SharedClaims) -> None:
            left_s = _JOIN_S if looked_up.deadline is None else (looked_up.deadline - time.monotonic()) / 2
            entries = await claims.wait(elsewhere, min(_JOIN_S, left_s))
            late = [i for i, entry in zip(elsewhere, entries, strict=True) if not take(i, entry)]
            self._metrics.joined_texts.labels("answered").inc(len(elsewhere) - len(late))
            self._metrics.joined_texts.labels("late").inc(len(late))
            if late:
                await compute(late)

        if claims is None or not elsewhere:
            if wanted:
                await compute(wanted)
        else:
            tasks = [asyncio.create_task(join(claims))]
            if wanted:
                tasks.append(asyncio.create_task(compute(wanted)))
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return [known for known in found if known is not None]

    async def rows(self, tenant_id: str, texts: Sequence[AnyText], *, truncate: bool) -> npt.NDArray[np.float64]:
        """The engine's whole answers [B, W], for what no cache holds; the caches remember their part of them.

        Raises:
            As `look_up` and `complete` do.
        """
        scope = tenant_id if self._cache_scope == "tenant" else ""
        self._require_room(len(texts), self._keys.scope(scope))
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        keys = self._text_keys(scope, texts)
        looked_up = LookedUp(tenant_id, scope, texts, truncate, keys, [None] * len(texts), range(len(texts)), deadline)
        tokenised = await asyncio.to_thread(self._tokenise, texts, truncate)
        tokens = sum(len(text.token_ids) for text in tokenised)
        async with self._metered(looked_up, tokens) as usage:
            return np.array(await self._ask_engine(looked_up, keys, tokenised, usage))

    async def _ask_engine(
        self, looked_up: LookedUp, keys: Sequence[bytes], texts: Sequence[TokenisedText], usage: Usage
    ) -> list[npt.NDArray[np.float64]]:
        """The engine's answers, once for all requests of this process that wait for them."""
        scope = self._keys.scope(looked_up.scope)
        now = time.monotonic()
        computed: dict[bytes, tuple[npt.NDArray[np.float64], bool]] = {}

        def submit(indices: Sequence[int]) -> Sequence[Future[npt.NDArray[np.float64]]]:
            submitted = [texts[i].token_ids for i in indices]
            futures = self._engine.submit(submitted, scope=scope, deadline=looked_up.deadline)
            usage.taken += sum(map(len, submitted))
            return futures

        def remember(i: int, answer: npt.NDArray[np.float64]) -> None:
            computed[keys[i]] = answer, texts[i].truncated
            for reader in self._readers:
                reader._cache.put(keys[i], reader._entry(answer, texts[i].truncated), now)

        def landed(i: int, answer: npt.NDArray[np.float64]) -> None:
            usage.answered += len(texts[i].token_ids)
            remember(i, answer)

        try:
            flown = [token_key(scope, text.token_ids) for text in texts]
            answers = await self._flights.run(flown, submit, landed, looked_up.deadline)
            for i, answer in enumerate(answers):
                if keys[i] not in computed:  # computed for another request, which may have called it by another key
                    remember(i, answer)
        finally:
            # Where one text failed, other replicas need not compute the rest again.
            for reader in self._readers if computed else ():
                if reader._shared is not None:
                    reader._shared.put({key: reader._entry(*known) for key, known in computed.items()})
        return answers

    def _entry(self, answer: npt.NDArray[np.float64], truncated: bool) -> CachedBaseRewards:
        """This checkpoint's part of an answer; copied, so that the rest of it can go."""
        rewards_K = answer[self._columns]
        return CachedBaseRewards(rewards_K if len(rewards_K) == len(answer) else rewards_K.copy(), truncated)


def _missing(entries: Sequence[CachedBaseRewards | None], truncate: bool) -> list[int]:
    """Indices of texts that are not known.

    A text that was shortened for another caller is no answer for one who did not ask for that: rendering it again
    reports its length.
    """
    return [i for i, entry in enumerate(entries) if entry is None or (entry.truncated and not truncate)]
