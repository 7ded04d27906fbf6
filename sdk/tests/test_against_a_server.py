"""Every method against a real server, the server killed in the middle, and the examples of the README."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from benchmarks.server import ServerProcess
from twins import KINDS, Twin

import metareward_client as mc

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on a port that it keeps when it is started anew."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ServerProcess(tmp_path_factory.mktemp("sdk"), PORT=str(port), RETENTION="texts") as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_lives_and_is_erased(server: ServerProcess, kind: str) -> None:
    name = f"a.b_c:d@e+f=g~h-{kind}"
    with Twin(kind, base_url=server.url) as twin:
        assert twin.ready().ready
        assert twin.live().live
        info = twin.info()
        assert (info.checkpoint.active, info.limits.max_completions) == (True, 4096)

        at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
        adapted = twin.adapt(
            name,
            [mc.Pair(prompt="Name a tree.", chosen="Oak.", rejected="So many...", id="p1", strength=2, event_time=at)],
            ratings=[mc.Rating(prompt="Joke?", completion=text, rating=len(text), id=text) for text in ("a1", "bb2")],
            rankings=[
                {"prompt": "Egg?", "completions": ["Eight minutes.", "Oh, eggs!", "Boil it."], "ranks": [0, 1, 1]}
            ],
        )
        assert (adapted.version, adapted.pairs_stored, adapted.evidence_ids[:3]) == (1, 4, ["p1", "a1", "bb2"])
        scored = twin.score("Sky?", ["Scattering.", "What a question!"], user_id=name, min_version=1)
        assert (scored.user_state, scored.version, scored.user_id) == ("adapted", 1, name)

        fed = twin.feedback(
            name,
            [
                mc.Chosen(prompt="c", shown=["x", "y"], chosen=1),
                mc.Regenerated(prompt="r", completion="x", replacement="y"),
                mc.Copied(prompt="o", completion="x", id="copy-7"),
                mc.Edited(prompt="e", completion="x", edited="y"),
                mc.Dwell(prompt="d", completion="x", seconds=9, shown=[mc.Read(completion="y", seconds=1)]),
                mc.Thumbs(prompt="t", completion="x", up=True),
            ],
        )
        assert (fed.version, fed.events_received) == (2, 6)
        assert fed.stored_by_source.keys() == {"chosen", "regenerated", "copied", "edited", "dwell", "thumbs"}

        suggested = twin.suggest(name, [mc.Candidate(prompt="q", completions=["a", "b", "c"])], count=2)
        assert len(suggested.suggestions) == 2
        assert 0 < suggested.suggestions[0].information_gain_nats < 0.6932

        assert twin.user(name).pairs == 4 + 6
        page = twin.users(limit=1)
        assert len(page.users) == 1
        listed = [each.user_id for each in twin.users(limit=1000).users]
        assert name in listed
        evidence = twin.evidence(name, limit=3)
        rest = twin.evidence(name, after=evidence.next, limit=1000)
        assert (len(evidence.evidence), len(rest.evidence), rest.next) == (3, 7, None)
        (pair,) = [each for each in (*evidence.evidence, *rest.evidence) if each.id == "p1"]
        assert (pair.strength, pair.event_time, pair.live) == (2.0, at, True)
        assert pair.texts is not None
        assert pair.texts["completions"] == ["Oak.", "So many..."]

        back = twin.rollback(name, 1)
        assert (back.version, back.cause, back.exact, back.weights) == (3, "rollback", True, adapted.weights)
        deleted = twin.delete_evidence(name, ["a1", "copy-7"])
        assert (deleted.version, deleted.cause) == (4, "delete")
        assert [each.version for each in twin.versions(name, before=4, limit=2).versions] == [3, 2]
        assert twin.reset(name).pairs_total == 0
        with pytest.raises(mc.Conflict, match=r"^version: this version is not kept: versions 1 to 5 are kept \(status"):
            twin.rollback(name, 77)
        exported = twin.export(name)
        assert exported.user.user_id == name
        assert json.loads(exported.model_dump_json())["format"] == "metareward-user-1"
        assert {each["idempotency_key"] for each in exported.answers}
        assert twin.reset(name, forget=True).cause == "forget"
        twin.erase(name)
        for gone in (lambda: twin.user(name), lambda: twin.erase(name)):
            with pytest.raises(mc.NotFound) as caught:
                gone()
            assert caught.value.request_id is not None


@pytest.mark.parametrize("kind", KINDS)
def test_one_by_one_or_all_together_the_rewards_are_the_same(server: ServerProcess, kind: str) -> None:
    items = [
        mc.ScoreItem(
            prompt=f"Prompt {i % 3}" if i % 2 else [{"role": "user", "content": f"Prompt {i % 3}"}],
            completions=[f"Answer {i}.", "Well..."][: 1 + i % 2],
            user_id=None if i % 4 == 0 else f"user{i % 3}",
        )
        for i in range(24)
    ]
    with Twin(kind, base_url=server.url, batch_size=5) as twin:
        many = twin.score_many(items, return_base_rewards=True)
        for item, score in zip(items, many, strict=True):
            alone = twin.score(item.prompt, item.completions, user_id=item.user_id)
            assert score.rewards == pytest.approx(alone.rewards, abs=1e-5)
            assert (score.user_id, score.user_state) == (item.user_id, alone.user_state)
            assert score.base_rewards is not None
            first = twin.reward(item.prompt, item.completions[0], user_id=item.user_id)
            assert first == pytest.approx(alone.rewards[0], abs=1e-5)
        pairwise = twin.score("Prompt 1", ["a", "b", "c"], user_id="user1", return_pairwise=True)
        assert [row[i] for i, row in enumerate(pairwise.preference_probability)] == [0.5] * 3
        ranked = twin.rerank("Prompt 1", ["a", "b", "c"], user_id="user1", top_n=2)
        assert [each.index for each in ranked.results] == pairwise.order[:2]
        assert [each.reward for each in ranked.results] == pytest.approx(
            [pairwise.rewards[i] for i in pairwise.order[:2]], abs=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_names_what_is_wrong(server: ServerProcess, kind: str) -> None:
    items = [
        mc.ScoreItem(prompt=f"p{i}", completions=["a"], user_id="u" if i != 5 else "no/such\tid") for i in range(8)
    ]
    with Twin(kind, base_url=server.url, batch_size=2, max_retries=0) as twin:
        with pytest.raises(mc.InvalidRequest) as caught:
            twin.score_many(items)
        assert [error.field for error in caught.value.errors] == ["items[5].user_id"]
        with pytest.raises(mc.InvalidRequest) as caught:
            twin.reward([{"role": "robot", "content": "p"}], "a")
        assert [error.field for error in caught.value.errors] == ["prompt[0].role"]
        with pytest.raises(mc.Conflict, match="min_version"):
            twin.reward("p", "a", user_id="nobody-yet", min_version=3)
        with pytest.raises(mc.InvalidRequest, match="shorten"):
            twin.score("p", ["x" * 300_000])
        with pytest.raises(mc.RequestError):
            twin.rerank("q", ["a", "b"], model="no-such-model")


def test_the_examples_of_the_readme_run(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAREWARD_URL", server.url)
    examples = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 6
    names: dict[str, Any] = {"__name__": "readme"}
    for example in examples:
        exec(compile(example, README.name, "exec"), names)
    assert names["score"].order == [0, 1], "ada's choice is followed"
    names["client"].close()


class Cut:
    """Stands before a server, and kills it when it begins to answer an adapt: the answer is lost."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._port = int(server.url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.killed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        adapts = False
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as far:
            while True:
                for end in select.select([near, far], [], [])[0]:
                    some = end.recv(65536)
                    if not some:
                        return
                    adapts = adapts or b"/adapt " in some
                    if end is far and adapts and not self.killed.is_set():
                        self._server.kill()
                        self.killed.set()
                        return
                    (near if end is far else far).sendall(some)

    def close(self) -> None:
        self._listener.close()


def test_a_change_whose_answer_was_lost_to_kill_9_is_made_once(server: ServerProcess) -> None:
    cut = Cut(server)
    adapted: dict[str, Any] = {}
    scored: dict[str, Any] = {}

    def adapt(kind: str) -> None:
        with Twin(kind, base_url=cut.url) as twin:
            adapted[kind] = twin.adapt(f"killed-{kind}", [mc.Pair(prompt="p", chosen="a", rejected="b")])

    def score(kind: str) -> None:
        with Twin(kind, base_url=server.url) as twin:
            scored[kind] = [twin.ready().ready, twin.reward("p", "a"), *twin.score("p", ["a"]).rewards]

    callers = [threading.Thread(target=adapt, args=(kind,)) for kind in KINDS]
    for caller in callers:
        caller.start()
    try:
        assert cut.killed.wait(30), "the server answered a first try"
        with mc.Client(server.url) as client, pytest.raises(mc.TemporaryError) as caught:
            client.erase("nobody", deadline=0.5)
        assert "may have been made" not in str(caught.value), "it was never sent"
        # These find nobody who listens, and wait.
        callers += [threading.Thread(target=score, args=(kind,)) for kind in KINDS]
        for caller in callers[len(KINDS) :]:
            caller.start()
        server.start()
        for caller in callers:
            caller.join(60)
    finally:
        cut.close()
    assert [adapted[kind].version for kind in KINDS] == [1, 1]
    assert any(adapted[kind].replayed for kind in KINDS), "a second try got the first one's answer"
    with mc.Client(server.url) as client:
        assert [client.user(f"killed-{kind}").version for kind in KINDS] == [1, 1]
    for ready, reward, rewards in scored.values():
        assert (ready, reward) == (True, rewards)
    assert scored.keys() == set(KINDS)
