"""CHECKPOINTS from the settings down: what is loaded, refused, carried by the command, and shared through Redis."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer
from operating import ByteRenderer, user_says
from redis_server import RedisServer
from sharing import replica_client
from switching import StackedEngine, checkpoint, linked
from typer.testing import CliRunner

from service.checkpoints import Checkpoint, load_checkpoint
from service.cli.readapt import readapt
from service.errors import ConfigurationError
from service.observability.metrics import Metrics, WorkerMetrics
from service.operations.base_rewards import BaseRewardReader
from service.operations.carry import view_of
from service.operations.texts import Text, TextKeys
from service.runtime.checkpoints import load_checkpoints
from service.runtime.diagnosis import diagnose
from service.runtime.engine import open_engines, stack
from service.runtime.worker import build_worker
from service.settings import DEMO_CHECKPOINT, Settings
from service.store import Append, NewEvidence, ServingRepository, Solution, migrate, open_database
from service.store.caches import BaseRewardCache
from service.store.records import HeadsView
from service.store.redis_base_rewards import RedisBaseRewards
from service.store.redis_writer import RedisWriter
from service.store.users import UserRepository

OLD = checkpoint(1, 3, name="old")
NEW = linked(checkpoint(2, 4, name="new"), OLD)


def settings(*directories: Path, **others: object) -> Settings:
    first, *further = directories
    return Settings(_env_file=None, checkpoint=first, checkpoints=", ".join(map(str, further)), **others)  # type: ignore[call-arg, arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    """Directories of checkpoints by name."""
    stranger = checkpoint(3, 2, name="stranger", backbone="other")
    for each in (OLD, NEW, stranger):
        each.save(tmp_path / each.name)
    return {name: tmp_path / name for name in ("old", "new", "stranger")}


def test_a_checkpoint_is_named_once_and_hidden_states_need_the_backbone_here(saved: dict[str, Path]) -> None:
    both = settings(saved["old"], saved["new"])
    assert [each.name for each in load_checkpoints(both)] == ["old", "new"]
    with pytest.raises(ConfigurationError, match="name it once"):
        load_checkpoints(settings(saved["old"], saved["new"], saved["old"]))
    remote = settings(saved["old"], engine_url="http://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match="RETENTION"):
        open_engines(remote, [OLD], with_hidden=True)
    with pytest.raises(ConfigurationError, match="another backbone"):
        build_worker(settings(saved["old"], saved["stranger"]), WorkerMetrics())


def test_a_worker_answers_for_every_checkpoint_of_its_settings(tmp_path: Path) -> None:
    demo = load_checkpoint(DEMO_CHECKPOINT)
    other = Checkpoint("other", demo.backbone, 2 * demo.A_KD, demo.b_K, demo.start)
    other.save(tmp_path)
    runtime = build_worker(settings(DEMO_CHECKPOINT, tmp_path, device="cpu"), WorkerMetrics())
    try:
        assert list(runtime.classify) == [demo.heads_id, other.heads_id]

        async def ask() -> list[np.ndarray]:
            texts = [[101, 2339, 1029, 102], [101, 2138, 1012, 102]]
            return [(await classify.ids(texts)).rewards_BK for classify in runtime.classify.values()]

        one_BK, two_BK = asyncio.run(ask())
        assert one_BK.shape == (2, demo.heads)
        np.testing.assert_allclose(two_BK, 2 * one_BK, rtol=1e-9)
        report = asyncio.run(runtime.self_checks())
        assert report.passed
        assert len(report.verdicts) == 2
    finally:
        runtime.close()


def test_the_command_carries_users_of_the_database(saved: dict[str, Path], sqlite_url: str, monkeypatch) -> None:
    database = open_database(sqlite_url)
    repository = UserRepository(database, 100, 60.0)
    view = HeadsView(OLD.checkpoint_id, OLD.heads_id, OLD.heads, {})
    rng = np.random.default_rng(0)
    for i in range(5):
        item = NewEvidence("0", bytes(32), "pair", rng.normal(size=3), event_time=datetime.now(UTC))
        repository.change("t", f"{i}", Append([item]), view, None, lambda _: Solution(np.zeros(3), None, {}))
    monkeypatch.setenv("CHECKPOINT", str(saved["old"]))
    monkeypatch.setenv("CHECKPOINTS", str(saved["new"]))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(readapt)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["--database-url", sqlite_url, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    said = run("--checkpoint", NEW.checkpoint_id, "--batch", "2")
    assert f"5 users are not of new ({NEW.checkpoint_id})" in said
    assert "5 solved, 0 mapped" in said
    assert "0 solved, 0 mapped" in run("--checkpoint", str(saved["new"]))
    row = repository.get("t", "0")
    assert row is not None
    assert (row.checkpoint_id, row.carried, row.version) == (NEW.checkpoint_id, "linear", 1)
    assert "5 solved" in run("--method", "solve")  # nothing was ever activated: CHECKPOINT
    with pytest.raises(ConfigurationError, match="is none of"):
        run("--checkpoint", "0" * 16)
    database.close()


def test_what_is_computed_for_one_is_shared_for_its_siblings(redis_server: RedisServer) -> None:
    redis_server.flush()

    async def path() -> None:
        async with replica_client(redis_server) as client:
            writer = RedisWriter(client, Metrics())
            shared = [
                RedisBaseRewards(client, writer, heads_id=each.heads_id, heads=each.heads, ttl_s=60.0)
                for each in (OLD, NEW)
            ]

            def readers() -> tuple[StackedEngine, list[BaseRewardReader]]:
                engine = StackedEngine(stack([OLD, NEW], with_biases=True))
                made = [
                    BaseRewardReader(
                        engine=engine,
                        renderer=ByteRenderer(),
                        keys=TextKeys(b"secret", "bytes"),
                        cache=BaseRewardCache(100, 60.0),
                        cache_scope="tenant",
                        metrics=Metrics(),
                        shared=each,
                        columns=columns,
                    )
                    for each, columns in zip(shared, engine.heads.columns, strict=True)
                ]
                for reader in made:
                    reader.share_answers(made)
                return engine, made

            texts = [Text(user_says("q"), c, c) for c in "xyz"]
            _, (first, _) = readers()
            await first.read("t", texts, truncate=False)
            await writer.close(5.0)
            engine, (one, two) = readers()  # another replica
            for reader, each in ((one, OLD), (two, NEW)):
                found = await reader.read("t", texts, truncate=False)
                assert found.rewards_BK.shape == (3, each.heads)
            assert engine.texts == 0

    asyncio.run(path())


def test_a_map_in_a_manifest_is_used_from_min_fidelity_on(saved: dict[str, Path]) -> None:
    loaded = load_checkpoint(saved["new"])
    poor = dataclasses.replace(
        loaded,
        maps=(dataclasses.replace(loaded.maps[0], fidelity=dataclasses.replace(loaded.maps[0].fidelity, mean=0.5)),),
    )
    assert list(view_of(poor, 0.5).maps) == [OLD.heads_id]
    assert list(view_of(poor, 0.51).maps) == []


def test_the_doctor_looks_at_further_checkpoints(saved: dict[str, Path], tmp_path: Path) -> None:
    wanted = settings(saved["old"], saved["new"], saved["stranger"], tmp_path / "nothing", data_dir=tmp_path)
    found = {finding.part: finding for finding in diagnose(wanted, load_engine=False)}
    told = [found[f"checkpoint {path}"].status for path in wanted.further_checkpoints]
    assert told == ["ok", "warning", "failed"]
    assert "metareward checkpoint link" in found[f"checkpoint {saved['stranger']}"].fix
    strict = settings(saved["old"], saved["new"], data_dir=tmp_path, min_fidelity=1.0)
    assert {f.part: f.status for f in diagnose(strict, load_engine=False)}[f"checkpoint {saved['new']}"] == "ok"


def test_the_doctor_misses_the_checkpoint_that_is_active(saved: dict[str, Path], tmp_path: Path) -> None:
    def found(*names: str) -> list[str]:
        wanted = settings(*(saved[name] for name in names), data_dir=tmp_path)
        return [each.status for each in diagnose(wanted, load_engine=False) if each.part == "active"]

    database = open_database(f"sqlite:///{tmp_path / 'metareward.db'}")
    migrate.upgrade(database)
    assert found("old") == []
    ServingRepository(database).activate(NEW.checkpoint_id)
    database.close()
    assert found("old", "new") == ["ok"]
    assert found("old") == ["warning"]
