"""`metareward serve` whose backbone quotes callers' texts in its errors, as libraries do, and fails in every way.

Run as a script. What a text contains decides what happens to it:

    tokenizer-fails   an exception in the thread that tokenises
    device-fails      an exception in the worker's thread, on every attempt
    device-slow       no answer within two seconds
    loop-fails        an exception in a callback of the event loop, and one in a task that nobody awaits
    worker-dies       an exception that ends the worker's thread
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from service.backbone import minilm
from service.cli import main
from service.operations.base_rewards import BaseRewardReader

TEXTS: dict[tuple[int, ...], str] = {}

tokenise = minilm.MiniLMRenderer.tokenise
forward = minilm.MiniLM.forward
look_up = BaseRewardReader.look_up


class IndiscreetError(ValueError):
    pass


class DeadlyError(BaseException):
    pass


def indiscreet_tokenise(self: Any, messages: Any, completion: str, *, truncate: bool, memo: Any = None) -> Any:
    if "tokenizer-fails" in completion:
        raise IndiscreetError(f"cannot tokenise {messages} and {completion}")
    tokenised = tokenise(self, messages, completion, truncate=truncate, memo=memo)
    TEXTS[tuple(tokenised.token_ids)] = f"{messages} {completion}"
    return tokenised


def indiscreet_forward(self: Any, token_ids: Any, scopes: Any = None) -> Any:
    text = " ".join(TEXTS.get(tuple(ids), "") for ids in token_ids)
    if "device-slow" in text:
        time.sleep(2.0)
    if "worker-dies" in text:
        raise DeadlyError(text)
    if "device-fails" in text:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise IndiscreetError(f"cannot compute {text}") from error
    return forward(self, token_ids, scopes)


async def indiscreet_look_up(self: Any, tenant_id: str, texts: Any, **options: Any) -> Any:
    said = " ".join(text.completion for text in texts)
    if "loop-fails" in said:

        def fails(text: str) -> None:
            raise IndiscreetError(text)

        async def fails_alone() -> None:
            raise IndiscreetError(said)

        asyncio.get_running_loop().call_soon(fails, said)
        task = asyncio.create_task(fails_alone())
        await asyncio.sleep(0.01)
        del task
        logging.getLogger("service.test").warning("an error as an argument: %s", IndiscreetError(said))
        logging.getLogger("service.test").warning("and as a field", extra={"error": IndiscreetError(said), "o": [self]})
        logging.getLogger("service.test").warning("too few arguments: %s %s", said)
    return await look_up(self, tenant_id, texts, **options)


minilm.MiniLMRenderer.tokenise = indiscreet_tokenise  # type: ignore[method-assign]
minilm.MiniLM.forward = indiscreet_forward  # type: ignore[method-assign]
BaseRewardReader.look_up = indiscreet_look_up  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
