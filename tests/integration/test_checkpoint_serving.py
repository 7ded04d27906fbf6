"""Several checkpoints in one process, over real databases: who answers, and what becomes of users."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from operating import toy_hidden_state, user_says
from switching import HIDDEN, NEW, OLD, PAIRS, SAID, Switching, adapt, checkpoint, linked, score

from service.errors import Conflict
from service.mrm import Support, solve
from service.observability.metrics import Metrics
from service.operations.carry import Retained
from service.operations.lifecycle import Lifecycle
from service.operations.readiness import ReadinessCheck
from service.operations.said import PreferencePair
from service.operations.texts import Text
from service.store import Database, open_database

STRANGER = checkpoint(3, 2, name="stranger", backbone="other")


@pytest.fixture
def database(sqlite_url: str) -> Any:
    opened = open_database(sqlite_url, pool_size=8)
    yield opened
    opened.close()


def hidden(prompt: str, completion: str) -> np.ndarray:
    return toy_hidden_state(f"{prompt}|{completion}".encode())


def until_true(condition: Any, seconds: float = 20.0) -> Any:
    async def wait() -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never came to that"
            await asyncio.sleep(0.005)

    return wait()


@asynccontextmanager
async def watching(*servers: Switching) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(server.checkpoints.watch()) for server in servers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def test_what_is_computed_for_one_is_known_to_its_siblings(database: Database) -> None:
    server = Switching(database, OLD, NEW, STRANGER)

    async def path() -> None:
        _, scored = await score(server)
        texts = [Text(user_says("q"), c, c) for c in "xyz"]
        computed = server.engines["f"].texts
        for served, expected in zip(server.serving.loaded, (OLD, NEW), strict=False):
            found = await served.base_rewards.read("t", texts, truncate=False)
            for row_K, completion in zip(found.rewards_BK, "xyz", strict=True):
                A, b = expected.A_KD.astype(np.float64), expected.b_K.astype(np.float64)
                np.testing.assert_allclose(row_K, A @ hidden("q", completion) + b, rtol=1e-12)
        assert server.engines["f"].texts == computed == 3
        np.testing.assert_array_equal(
            scored.base_rewards, (await server.serving.active.base_rewards.read("t", texts, truncate=False)).rewards_BK
        )
        assert server.engines["other"].texts == 0

    asyncio.run(path())


def test_a_user_is_carried_by_what_they_said_and_solved_for_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Switching(database, OLD, NEW)
    solved = []
    solver = type(server.solver).__call__
    monkeypatch.setattr(
        type(server.solver), "__call__", lambda self, *a: solved.append(1) or solver(self, *a), raising=True
    )

    async def path() -> None:
        await adapt(server)
        checkpoint_id, scored = await score(server)
        assert (checkpoint_id, scored.carried) == (OLD.checkpoint_id, None)
        await server.checkpoints.activate(NEW.checkpoint_id)
        checkpoint_id, scored = await score(server)
        assert (checkpoint_id, scored.carried, scored.version, scored.standing) == (
            NEW.checkpoint_id,
            "linear",
            1,
            "adapted",
        )
        diffs = [OLD.A_KD.astype(float) @ (hidden("p", p.chosen) - hidden("p", p.rejected)) for p in PAIRS]
        mapped = solve(Support.of(np.array(diffs) @ NEW.maps[0].maps.diffs_KK.T), NEW.start)
        np.testing.assert_allclose(scored.rewards, scored.base_rewards @ mapped.weights_K, atol=1e-9)
        before = len(solved)
        states = server.serving.active.users
        states._revalidate_s = 0.0
        for _ in range(5):
            await score(server)
        assert len(solved) == before
        # What is said from now on is measured with the new heads, and the old checkpoint does not see it: no map leads
        # back. What was said before, it sees as ever.
        await adapt(server, said=[PreferencePair(user_says("p"), "more", "less", None, "6")])
        await server.checkpoints.rollback()
        checkpoint_id, scored = await score(server)
        assert (checkpoint_id, scored.carried, scored.version) == (OLD.checkpoint_id, "exact", 2)
        assert server.metrics.left_out._value.get() == 1

    asyncio.run(path())


def test_a_map_of_low_fidelity_carries_nobody(database: Database) -> None:
    poor = linked(checkpoint(2, 4, name="poor"), OLD, fidelity=0.49)
    server = Switching(database, OLD, poor)

    async def path() -> None:
        await adapt(server)
        await server.checkpoints.activate(poor.checkpoint_id)
        _, scored = await score(server)
        assert (scored.carried, scored.standing, scored.version) == ("start", "cold_start", 1)
        np.testing.assert_allclose(scored.rewards, scored.base_rewards @ poor.start.mean_K, atol=1e-9)
        done = server.readapt(poor)()
        assert (done.seen, done.left, done.solved, done.mapped) == (1, 1, 0, 0)
        row = server.repository.get("t", "ada")
        assert row is not None
        assert row.checkpoint_id == OLD.checkpoint_id

    asyncio.run(path())


@pytest.mark.parametrize("retention", ["hidden_states", "texts"])
def test_what_is_retained_is_measured_with_the_new_heads(database: Database, retention: Any) -> None:
    unlinked = checkpoint(2, 4, name="unlinked")
    server = Switching(database, OLD, unlinked, STRANGER, retention=retention)

    async def path() -> None:
        await adapt(server, said=SAID)
        for wanted in (unlinked, STRANGER):
            # A shadow sees what there is; it has nothing measured, for which tenants would pay.
            shadow = server.serving.get(wanted.checkpoint_id)
            assert shadow is not None
            assert (await shadow.users.resolve("t", "ada", measure=False)).carried == "start"
            shadow.users._revalidate_s = 0.0
            assert (await shadow.users.resolve("t", "ada", measure=False)).carried == "start"
            await server.checkpoints.activate(wanted.checkpoint_id)
            _, scored = await score(server)
            if retention == "hidden_states" and wanted is STRANGER:
                assert scored.carried == "start"  # its backbone makes other hidden states of these texts
                continue
            assert (scored.carried, scored.version) == ("retained", 1)
            await adapt(server, f"asked by {wanted.name}", SAID)
            _, exact = await score(server, f"asked by {wanted.name}")
            np.testing.assert_allclose(scored.rewards, exact.rewards, atol=1e-5)
            rows = server.repository.support("t", "ada", server.serving.active.view)
            assert {row.heads_id for row in rows} == {wanted.heads_id}
            assert len(rows) == len(SAID)

    asyncio.run(path())


def test_what_another_replica_has_measured_counts_here_too(database: Database) -> None:
    unlinked = checkpoint(2, 4, name="unlinked")
    first, second = (Switching(database, OLD, unlinked, retention="texts") for _ in range(2))

    async def path() -> None:
        await adapt(first, said=SAID)
        await first.checkpoints.activate(unlinked.checkpoint_id)
        await second.checkpoints.poll()
        for server in (first, second):  # both see the user before either has measured anything
            states = server.serving.active.users
            states._revalidate_s = 0.0
            assert (await states.resolve("t", "ada", measure=False)).carried == "start"
        (_, one), (_, other) = await score(first), await score(second)
        assert one.carried == other.carried == "retained"
        assert one.rewards == other.rewards

    asyncio.run(path())


def test_what_a_change_leaves_out_is_measured_behind_it(database: Database) -> None:
    """Somebody who says something under the new checkpoint before they ask it anything."""
    unlinked = checkpoint(2, 4, name="unlinked")
    first, second = (Switching(database, OLD, unlinked, retention="texts") for _ in range(2))
    more = [PreferencePair(user_says("p"), "more", "less", None, "more")]

    async def path() -> None:
        await adapt(first, said=SAID)
        await first.checkpoints.activate(unlinked.checkpoint_id)
        await second.checkpoints.poll()
        assert await adapt(first, said=more) == 2
        states = first.serving.active.users
        await until_true(lambda: not states._measuring)
        await adapt(first, "asked in one go", [*SAID, *more])
        _, exact = await score(first, "asked in one go")
        for server in (first, second):
            _, scored = await score(server)
            assert (scored.carried, scored.version) == ("retained", 2)
            np.testing.assert_allclose(scored.rewards, exact.rewards, atol=1e-5)
        user = first.repository.get("t", "ada")
        assert user is not None
        assert (user.pairs, user.checkpoint_id) == (len(SAID) + 1, unlinked.checkpoint_id)
        # Who changes meanwhile keeps what the change solved for.
        await adapt(first, said=[PreferencePair(user_says("p"), "even more", "less", None, "even more")])
        assert not first.carry_over.solved_anew(user)

    asyncio.run(path())


def test_who_is_erased_while_being_measured_stays_erased(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    unlinked = checkpoint(2, 4, name="unlinked")
    server = Switching(database, OLD, unlinked, retention="texts")
    measure = Retained.measure

    async def then_gone(self: Retained, carried: Any) -> bool:
        measured = await measure(self, carried)
        server.serving.forget("t", "ada", server.repository.erase("t", "ada"))
        return measured

    monkeypatch.setattr(Retained, "measure", then_gone)

    async def path() -> None:
        await adapt(server, said=SAID)
        await server.checkpoints.activate(unlinked.checkpoint_id)
        await score(server)
        _, scored = await score(server)
        assert (scored.standing, scored.version, scored.carried) == ("cold_start", 0, None)

    asyncio.run(path())


def test_hidden_states_come_from_the_engine_and_fill_the_caches(database: Database) -> None:
    server = Switching(database, OLD, NEW, retention="hidden_states")

    async def path() -> None:
        texts = [Text(user_says("q"), c, c) for c in "xy"]
        states_ND = await server.serving.active.hidden_states("t", texts)
        assert (states_ND.dtype, states_ND.shape) == (np.float32, (2, HIDDEN))
        np.testing.assert_array_equal(states_ND, [hidden("q", c) for c in "xy"])
        for served in server.serving.loaded:
            await served.base_rewards.read("t", texts, truncate=False)
        assert server.engines["f"].texts == 2

    asyncio.run(path())


def test_replicas_follow_one_row(database_url: str) -> None:
    databases = [open_database(database_url, pool_size=4) for _ in range(2)]
    first, second = (Switching(each, OLD, NEW) for each in databases)

    async def path() -> None:
        async with watching(first, second):
            told = await first.checkpoints.activate(NEW.checkpoint_id)
            assert (told.wanted, told.generation) == (NEW.checkpoint_id, 2)
            assert first.serving.active.checkpoint_id == NEW.checkpoint_id
            await until_true(lambda: second.serving.active.checkpoint_id == NEW.checkpoint_id)
            await second.checkpoints.rollback()
            await until_true(lambda: first.serving.active.checkpoint_id == OLD.checkpoint_id)
            await first.checkpoints.rollback()
            assert first.serving.active.checkpoint_id == NEW.checkpoint_id
        third = Switching(databases[0], OLD, NEW)
        assert third.serving.active.checkpoint_id == NEW.checkpoint_id

    asyncio.run(path())
    for each in databases:
        each.close()


def test_a_replica_without_the_active_checkpoint_goes_on_and_says_so(database: Database) -> None:
    both, alone = Switching(database, OLD, NEW), Switching(database, OLD)

    async def path() -> None:
        await adapt(alone)
        readiness = ReadinessCheck(
            engine=lambda: alone.serving.active.engine,
            database=database,
            lifecycle=Lifecycle(10, 1000),
            metrics=Metrics(),
            shortcomings=alone.serving.shortcomings,
        )
        assert (await readiness()).degraded == []
        await both.checkpoints.activate(NEW.checkpoint_id)
        await alone.checkpoints.poll()
        checkpoint_id, scored = await score(alone)
        assert (checkpoint_id, scored.version) == (OLD.checkpoint_id, 1)
        answer = await readiness()
        assert answer.ready
        assert len(answer.degraded) == 1
        assert NEW.checkpoint_id in answer.degraded[0]
        assert alone.metrics.checkpoint_missing._value.get() == 1
        with pytest.raises(
            Conflict, match=f"has not loaded checkpoint {NEW.checkpoint_id}; it has {OLD.checkpoint_id}"
        ):
            await alone.checkpoints.activate(NEW.checkpoint_id)
        await both.checkpoints.rollback()
        await alone.checkpoints.poll()
        assert (await readiness()).degraded == []
        assert alone.metrics.checkpoint_missing._value.get() == 0
        readiness.close()

    asyncio.run(path())


def test_what_cannot_be_is_refused(database: Database) -> None:
    server = Switching(database, OLD, NEW)

    async def path() -> None:
        for call in (
            server.checkpoints.rollback(),
            server.checkpoints.activate("0" * 16),
            server.checkpoints.shadow("0" * 16),
            server.checkpoints.shadow(OLD.checkpoint_id),
        ):
            with pytest.raises(Conflict):
                await call
        server.engines["f"].healthy = False
        with pytest.raises(Conflict, match="No engine answers"):
            await server.checkpoints.activate(NEW.checkpoint_id)
        assert server.serving.active.checkpoint_id == OLD.checkpoint_id

    asyncio.run(path())


def test_a_commit_under_another_checkpoint_outdates_what_this_one_remembers(database: Database) -> None:
    server = Switching(database, OLD, NEW)

    async def path() -> None:
        await adapt(server)
        new = server.serving.get(NEW.checkpoint_id)
        assert new is not None
        assert (await new.users.resolve("t", "ada")).version == 1
        assert (await new.users.resolve("t", "bob")).version == 0
        more = [PreferencePair(user_says("p"), "more", "less", None, "6")]
        await adapt(server, said=more)
        await adapt(server, "bob", more)
        # Both were remembered a moment ago; without the commits they would be good for a second.
        assert (await new.users.resolve("t", "ada")).version == 2
        assert (await new.users.resolve("t", "bob")).version == 1

    asyncio.run(path())


def test_a_shadow_scores_behind_the_answers_and_is_compared(database: Database) -> None:
    twin = linked(dataclasses.replace(OLD, A_KD=-OLD.A_KD, name="twin"), OLD)
    server = Switching(database, OLD, twin)

    async def path() -> None:
        await adapt(server)
        await score(server)
        assert not server.shadow._running
        await server.checkpoints.shadow(twin.checkpoint_id)
        for completions in ("xyz", "xy", "x"):
            await score(server, completions=completions)
            await until_true(lambda: not server.shadow._running)
        told = next(each for each in server.checkpoints.list().loaded if each.shadow).agreement
        assert told is not None
        assert (told.items, told.pairs, told.failed, told.dropped) == (2, 4, 0, 0)
        # Minus the same hidden state with mapped weights is the same reward, up to what their starts say.
        assert told.kendall_tau is not None
        assert told.mean_probability_difference is not None
        # Many at once: what cannot be compared beside the rest is dropped, and every answer is there.
        answers = await asyncio.gather(*(score(server, f"user {i}") for i in range(40)))
        assert len(answers) == 40
        await until_true(lambda: not server.shadow._running)
        assert told.dropped > 0
        assert told.dropped + told.items - 2 == 40
        await server.checkpoints.shadow(None)
        await score(server)
        assert not server.shadow._running

    asyncio.run(path())
