"""A pad token that cannot be taken for the end of a text.

`*ForSequenceClassification` in transformers reads the label of the last token that is not the pad id. Where rendered
texts end in that id, it reads another token's than the last, silently. So the pad id has to be one that no rendered
text ends with, whatever its completion ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from service.backbone.protocol import Message, Renderer, UnrenderableText
from service.errors import BackboneError

if TYPE_CHECKING:
    import tokenizers

_PROMPT: Final[tuple[Message, ...]] = ({"role": "user", "content": "Yes or no?"},)
_COMPLETIONS: Final = ("Yes.", "no\n", "", " ", "1 + 1 = 2", "日本")


@dataclass(frozen=True, slots=True)
class PadToken:
    """A pad id that no rendered text ends with.

    Attributes:
        id: What the model's config is to name.
        text: What the tokenizer is to name; None where the tokenizer has no token of that id, so that only a caller
            who pads by himself can use it.
    """

    id: int
    text: str | None


def choose_pad_token(
    renderer: Renderer, tokenizer: tokenizers.Tokenizer, *, current: str | None, embeddings: int
) -> PadToken:
    """The first of the special tokens, then of the ids that have no token, that cannot end a text.

    The ending that the template gives every text is avoided whole, not only its last token: clients strip line ends.

    Args:
        renderer: What renders the model's texts.
        tokenizer: Its tokenizer.
        current: The tokenizer's pad token, kept where it does.
        embeddings: How many ids the model reads; a pad id is looked up like any other.

    Raises:
        BackboneError: Every id can be the end of a text.
    """
    ending = _common_ending(renderer)
    added = {
        identity: str(token.content)
        for identity, token in tokenizer.get_added_tokens_decoder().items()
        if identity < embeddings and identity not in ending
    }

    def preference(identity: int) -> tuple[bool, bool, bool, int]:
        text = added[identity]
        return (text != current, "pad" not in text.lower(), "reserved" not in text.lower(), identity)

    for identity in sorted(added, key=preference):
        if not _can_end_with(renderer, identity, added[identity]):
            return PadToken(identity, added[identity])
    for identity in range(tokenizer.get_vocab_size(with_added_tokens=True), embeddings):
        if tokenizer.id_to_token(identity) is None:
            return PadToken(identity, None)
    raise BackboneError(
        "every token of this model can be the last one of a text, so none can be its pad token: end its chat template "
        "with a token of its own (chat_template.jinja beside its tokenizer), and train the checkpoint with that"
    )


def _common_ending(renderer: Renderer) -> frozenset[int]:
    """The ids that every text ends with, as the template adds them after a completion."""
    texts = [ids for completion in _COMPLETIONS if (ids := _rendered(renderer, completion))]
    ending: set[int] = set()
    for last in zip(*(reversed(ids) for ids in texts), strict=False):
        if len(set(last)) > 1:
            break
        ending.add(last[0])
    return frozenset(ending)


def _can_end_with(renderer: Renderer, identity: int, text: str) -> bool:
    """Whether a completion that ends with this token's text makes a rendered text that ends with its id."""
    endings = (text, f"Yes.{text}", f"Yes.\n{text}", f"{text} ", f"{text}\n")
    return any((ids := _rendered(renderer, completion)) and ids[-1] == identity for completion in endings)


def _rendered(renderer: Renderer, completion: str) -> Sequence[int]:
    try:
        return renderer.tokenise(_PROMPT, completion, truncate=True).token_ids
    except UnrenderableText:
        return ()
