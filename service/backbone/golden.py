"""Texts that every engine must score as its checkpoint recorded them.

They are part of the contract between a checkpoint and the engine that serves it: `metareward embed` embeds them with
the data, `metareward train` records their base rewards in the manifest, and a server compares at start.
Changing a text is a change of format: checkpoints made before fail their check, as they should.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Final

from service.backbone.protocol import Message, Renderer

GOLDEN_TEXTS: Final[tuple[tuple[tuple[Message, ...], str], ...]] = (
    (({"role": "user", "content": "Tell me something about tides."},), "Tides follow the moon."),
    (
        ({"role": "user", "content": "How do I keep basil alive indoors?"},),
        "Give it six hours of light a day, water when the top of the soil is dry, and pinch off the flowers:\n"
        "1. a south window,\n2. a pot with a hole,\n3. harvest from the top.",
    ),
    (
        (
            {"role": "user", "content": "What is a monad?"},
            {"role": "assistant", "content": "A way to chain computations that carry a context."},
            {"role": "user", "content": "Shorter, please."},
        ),
        "Chained context.",
    ),
    (
        ({"role": "user", "content": "¿Cómo se dice “sunrise” en español? 🌅"},),
        "«Amanecer» or «salida del sol» — I think the first is nicer, though it may depend on the region.",
    ),
    (({"role": "user", "content": "List the primes below 30."},), "2, 3, 5, 7, 11, 13, 17, 19, 23, 29"),
    (
        ({"role": "user", "content": "I failed my driving test again."},),
        "I'm so sorry, that is really disheartening! Many people need several tries, and each one taught you where "
        "you hesitate. Shall we go through what happened, step by step, so that the next attempt feels easier? " * 3,
    ),
)


def golden_texts_id() -> str:
    """SHA-256 (hex) of the golden texts: a checkpoint recorded with other texts cannot be compared."""
    return hashlib.sha256(json.dumps(GOLDEN_TEXTS, ensure_ascii=False).encode()).hexdigest()


def golden_token_ids(renderer: Renderer) -> list[tuple[int, ...]]:
    """The golden texts as this backbone reads them, in order; shortened where its limit asks for it."""
    return [renderer.tokenise(messages, completion, truncate=True).token_ids for messages, completion in GOLDEN_TEXTS]


def packing_token_ids(renderer: Renderer) -> list[tuple[int, ...]]:
    """Texts that overlap with the golden ones, and with each other, in every way that packing has to get right.

    No record holds them: their answers in company are compared with their answers alone. One prompt has several
    completions, two of which begin alike; a conversation goes on; one text is the beginning of another, cut in its
    completion and in its prompt; one comes twice; one is a single token.
    """

    def tokens(messages: Sequence[Message], completion: str) -> tuple[int, ...]:
        return renderer.tokenise(messages, completion, truncate=True).token_ids

    (tides, moon), (basil, watering), (monad, short), (_, primes) = (GOLDEN_TEXTS[index] for index in (0, 1, 2, 4))
    whole = tokens(basil, watering)
    return [
        tokens(tides, primes),
        tokens(tides, f"{moon[:-1]}, and a little the sun."),
        tokens(tides, short),
        tokens(tides, moon),
        tokens(monad[:1], monad[1]["content"]),
        whole[: max(1, 3 * len(whole) // 4)],
        whole[: max(1, len(whole) // 3)],
        whole[:1],
    ]
