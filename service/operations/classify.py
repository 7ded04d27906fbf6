"""What a worker answers: base rewards without their biases, A h, for texts that come as token ids, text or messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.backbone.protocol import Message, Renderer, UnrenderableText
from service.errors import EngineError, FieldIssue, InvalidInput, MetarewardError
from service.operations.engine import Engine
from service.operations.rendered import MAX_ISSUES, check_bytes, checked_ids
from service.operations.single_flight import SingleFlight
from service.operations.texts import token_key

TokenIds = Sequence[int]
Flights = SingleFlight[npt.NDArray[np.float64]]
# Each is a future of 1.6 kB, more than the four bytes that asked for it. A REST layer sends 512.
_MAX_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class Classified:
    """Answers to one request.

    Attributes:
        rewards_BK: A h of each text [B, K], float64.
        tokens: What the texts had together.
    """

    rewards_BK: npt.NDArray[np.float64]
    tokens: int


class Classify:
    """The use case behind `POST /classify`. Lives on one event loop."""

    def __init__(
        self,
        *,
        engine: Engine,
        renderer: Renderer,
        vocab_size: int,
        max_tokens: int,
        max_text_bytes: int,
        columns: slice = slice(None),
        flights: Flights | None = None,
    ) -> None:
        """`engine` gives A h: its heads have no biases. Texts of more than `max_text_bytes` are not tokenised.

        Of an engine that answers for several models at once, `columns` are this one's, and `flights` is what all of
        them share.
        """
        self._engine = engine
        self._renderer = renderer
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._max_text_bytes = max_text_bytes
        self._columns = columns
        self._flights: Flights = SingleFlight() if flights is None else flights

    async def ids(
        self, texts: Sequence[object], *, field: str = "input", scope: bytes = b"", deadline: float | None = None
    ) -> Classified:
        """Answer texts that come as token ids, as a client sent them; `scope` and `deadline` as the engine takes them.

        A doubled BOS at a text's start becomes one.

        Raises:
            InvalidInput: A text is no list of ids, is empty or too long, or holds an id beyond the vocabulary; or
                there are too many.
            Overloaded, Unavailable: From the engine; nothing was computed.
            EngineError: The device failed on texts; names them.
        """
        self._check_number(texts, field)
        ids = checked_ids(texts, field, vocab_size=self._vocab_size, max_tokens=self._max_tokens)
        checked = [self._renderer.doubled_bos.drop(text) for text in ids]
        return await self._compute(checked, field, scope, deadline)

    async def texts(
        self, texts: Sequence[str], *, add_special_tokens: bool, scope: bytes = b"", deadline: float | None = None
    ) -> Classified:
        """Answer texts that a client rendered itself, tokenised as they are.

        Raises:
            As `ids`.
        """
        self._check_number(texts, "input")
        check_bytes(((f"input[{index}]", text) for index, text in enumerate(texts)), self._max_text_bytes)
        self._engine.check_room(len(texts), scope=scope)
        tokenised = await asyncio.to_thread(self._tokenise, texts, add_special_tokens)
        return await self.ids(tokenised, scope=scope, deadline=deadline)

    async def messages(
        self, messages: Sequence[Message], *, scope: bytes = b"", deadline: float | None = None
    ) -> Classified:
        """Answer one conversation whose last message is the completion, in the backbone's own template.

        Raises:
            As `ids`.
        """
        check_bytes([("messages", "".join(message["content"] for message in messages))], self._max_text_bytes)
        self._engine.check_room(1, scope=scope)
        try:
            text = await asyncio.to_thread(
                self._renderer.tokenise, messages[:-1], messages[-1]["content"], truncate=False
            )
        except UnrenderableText as error:
            raise InvalidInput.single("messages", str(error)) from error
        return await self._compute([text.token_ids], "messages", scope, deadline)

    def _check_number(self, texts: Sequence[object], field: str) -> None:
        if len(texts) > _MAX_TEXTS:
            raise InvalidInput.single(field, f"has {len(texts)} texts, at most {_MAX_TEXTS}; send several requests")

    def _tokenise(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        tokenised = []
        issues = []
        for index, text in enumerate(texts):
            try:
                tokenised.append(self._renderer.tokenise_text(text, add_special_tokens=add_special_tokens))
            except UnrenderableText as error:
                issues.append(FieldIssue(f"input[{index}]", str(error)))
        if issues:
            raise InvalidInput(issues[:MAX_ISSUES])
        return tokenised

    async def _compute(self, texts: Sequence[TokenIds], field: str, scope: bytes, deadline: float | None) -> Classified:
        results = await self._outcomes(texts, scope, deadline)
        failures = []
        for index, result in enumerate(results):
            if isinstance(result, MetarewardError) and not isinstance(result, EngineError):
                raise result
            if isinstance(result, BaseException):
                place = f"{field}[{index}]" if field == "input" else field
                failures.append(f"{place}: {result if isinstance(result, EngineError) else 'was given up'}")
        if failures:
            raise EngineError("; ".join(failures[:MAX_ISSUES]))
        return Classified(np.array(results)[:, self._columns], sum(map(len, texts)))

    async def _outcomes(
        self, texts: Sequence[TokenIds], scope: bytes, deadline: float | None
    ) -> list[npt.NDArray[np.float64] | BaseException]:
        """What each text ends in. Replicas that ask for one text of a scope at the same time share its computation.

        A task that is cancelled takes back what nobody else asks for: what did not reach the device never will.
        """

        def submit(indices: Sequence[int]) -> Sequence[Future[npt.NDArray[np.float64]]]:
            return self._engine.submit([texts[i] for i in indices], scope=scope, deadline=deadline)

        return await self._flights.outcomes([token_key(scope, text) for text in texts], submit, _forget, deadline)


def _forget(_index: int, _rewards_K: npt.NDArray[np.float64]) -> None:
    """A worker remembers no answers: the REST layer does."""
