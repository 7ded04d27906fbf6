"""What the engine has no room for is refused before anything is rendered."""

from __future__ import annotations

import asyncio

import pytest
from operating import ByteRenderer, ToyEngine, user_says

from service.errors import Overloaded
from service.observability.metrics import Metrics
from service.operations.base_rewards import BaseRewardReader
from service.operations.texts import Text, TextKeys
from service.store.caches import BaseRewardCache


class CountingRenderer(ByteRenderer):
    rendered = 0

    def tokenise(self, messages, completion, *, truncate, memo=None):
        self.rendered += 1
        return super().tokenise(messages, completion, truncate=truncate)


def test_an_overloaded_engine_costs_no_rendering_and_cached_texts_still_score():
    async def scenario() -> None:
        engine, renderer, metrics = ToyEngine(), CountingRenderer(), Metrics()
        reader = BaseRewardReader(
            engine=engine,
            renderer=renderer,
            keys=TextKeys(b"secret", "bytes"),
            cache=BaseRewardCache(100, 60.0),
            cache_scope="tenant",
            metrics=metrics,
        )
        messages = user_says("why")
        texts = [Text(messages, f"because {i}", f"completions[{i}]") for i in range(3)]
        known = await reader.read("t", texts[:2], truncate=False)
        assert renderer.rendered == 2
        engine.failure = Overloaded("no room", 3.0)
        with pytest.raises(Overloaded):
            await reader.read("t", texts, truncate=False)
        assert renderer.rendered == 2
        assert metrics.registry.get_sample_value("metareward_refusals_total", {"reason": "queue"}) == 1
        again = await reader.read("t", texts[:2], truncate=False)
        assert (again.rewards_BK == known.rewards_BK).all()

    asyncio.run(scenario())
