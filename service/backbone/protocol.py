"""What every backbone offers: text to token ids (`Renderer`), token ids to hidden states (`Backbone`).

The two halves are apart because an API replica whose engine is remote renders and tokenises without torch, while a
worker that is sent token ids never renders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypedDict

from service.backbone.prefix_cache import PrefixCacheStats

if TYPE_CHECKING:
    import torch

    from service.backbone.prompt_memo import PromptMemo

BackboneKind = Literal["minilm", "huggingface"]
Dtype = Literal["float32", "bfloat16", "float8"]


MAX_TURNS: Final = 1024
"""The longest conversation that is read out of a text, or out of messages that may be empty: a template writes more for
every turn than the turn itself takes, so the bound on a text's bytes is none on what is tokenised."""


class Message(TypedDict):
    """One turn of a prompt. `role` is ``system``, ``user`` or ``assistant``; validated by the operations."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """One rendered (prompt, completion) as the backbone reads it.

    Attributes:
        token_ids: Everything that the backbone reads, special tokens included; at least one.
        truncated: Whether something of the caller's text was left out to fit `Renderer.max_tokens`.
    """

    token_ids: tuple[int, ...]
    truncated: bool


class UnrenderableText(ValueError):
    """This text cannot become token ids; the operations turn it into `errors.InvalidInput` with its field.

    The message says what is wrong and how to mend it, and never echoes the text.
    """


class TextTooLong(UnrenderableText):
    """The text has more tokens than the backbone reads, and truncation was not asked for."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(tokens, limit)
        self.tokens = tokens
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"has {self.tokens} tokens where the backbone reads at most {self.limit}; shorten it, or have it truncated"
        )


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What a backbone is, for `/info` and for a checkpoint's manifest.

    Attributes:
        id: The name it was loaded by: ``minilm``, a hub id, or a path.
        kind: Which implementation reads it.
        fingerprint: SHA-256 (hex) of what determines its hidden states; the same for every dtype, device and path.
        template_id: Short hash of how a text becomes token ids; part of every text_key.
        hidden_size: D, the numbers in a hidden state.
        max_tokens: The longest text, in tokens, that it reads.
        dtype: What it computes in; ``float8`` means its matrix products, on bfloat16 states. Hidden states are returned
            in float32 in any case.
        device: Where it computes: ``cpu`` or ``cuda``.
        pooling: How token states become one hidden state, in words.
        model_type: The architecture's name in Hugging Face's words: ``llama``, ``qwen3``, ``bert``.
    """

    id: str
    kind: BackboneKind
    fingerprint: str
    template_id: str
    hidden_size: int
    max_tokens: int
    dtype: Dtype
    device: str
    pooling: str
    model_type: str

    def as_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


class DoubledBos:
    """Leaves one BOS at the start of a text, however many the template, the tokenizer and the text put there.

    A second one shifts rewards, and no model was trained with it. A BOS further on is the text's own.
    """

    def __init__(self, bos: int | None, noted: Callable[[], None] | None = None) -> None:
        """`bos` is None for a tokenizer without one; `noted` is called for every text that had more than one."""
        self.bos = bos
        self.noted = noted

    def drop(self, ids: list[int]) -> list[int]:
        """The ids, from the last of the leading BOS on."""
        extra = 0
        while self.bos is not None and ids[extra : extra + 2] == [self.bos, self.bos]:
            extra += 1
        if not extra:
            return ids
        if self.noted is not None:
            self.noted()
        return ids[extra:]


class Renderer(Protocol):
    """Text to token ids. Needs no torch, and any number of threads may call it at once."""

    @property
    def template_id(self) -> str:
        """Short hash of how a text becomes token ids."""

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens."""

    @property
    def doubled_bos(self) -> DoubledBos:
        """What drops a second BOS from ids that come from elsewhere too."""

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to this, exclusive; a device may not survive another one."""

    @property
    def has_chat_template(self) -> bool:
        """Whether clients can render a conversation as it does."""

    def tokenise(
        self, messages: Sequence[Message], completion: str, *, truncate: bool, memo: PromptMemo | None = None
    ) -> TokenisedText:
        """Render prompt and completion and tokenise them.

        Args:
            messages: The prompt, oldest turn first; at least one. Roles are validated by the caller.
            completion: The assistant's answer to be scored.
            truncate: Whether a text of more than `max_tokens` tokens is shortened (from the start of the prompt
                first) or refused.
            memo: The same one for texts with these messages: then they may be tokenised faster.

        Raises:
            TextTooLong: More than `max_tokens` tokens and not `truncate`.
            UnrenderableText: The template refuses these messages (no system role, say), or the text is not Unicode.
        """

    def tokenise_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenise a text that its sender rendered, as it is and however long.

        A doubled BOS at its start, its own or one beside the tokenizer's, becomes one.

        Raises:
            UnrenderableText: It is not Unicode.
        """

    def settle(self, prompt: str, answer: str) -> str | None:
        """A prompt and an answer that were rendered in this chat template, ended as the template ends an answer.

        A policy ends its answers as it likes, and some not at all. None where `prompt` does not end as this template
        ends a question.
        """

    def fit(self, ids: list[int], *, truncate: bool) -> TokenisedText:
        """Token ids as the backbone may read them: where they are too many, the first ones go, but the end stays.

        What opens every text (BOS, say) stays too.

        Raises:
            TextTooLong: More than `max_tokens`, and not `truncate`.
        """


class Backbone(Protocol):
    """Token ids to hidden states. Not thread-safe: one thread owns it (the worker's, or a command's main thread)."""

    @property
    def spec(self) -> BackboneSpec:
        """What it is."""

    @property
    def renderer(self) -> Renderer:
        """How its texts become token ids."""

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to this, exclusive; a device may not survive another one."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether texts of a batch that begin alike share the computation of what they have in common."""

    @property
    def runs_by(self) -> str:
        """What runs its batches, for `/info`."""

    @property
    def prefixes(self) -> PrefixCacheStats | None:
        """What it keeps of prefixes between batches; None where it keeps nothing."""

    def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        """Hidden states of a batch of texts, each equal to its own alone within the dtype's tolerance.

        Args:
            batch: B >= 1 texts as token ids, each of 1 to `spec.max_tokens` ids, in any order and of any lengths.
                How they are sorted, padded or packed is the backbone's own business.
            scopes: For each text whose it is: texts of different scopes share no computation and no cached keys and
                values. None: all are of the scope b"".

        Returns:
            [B, D] float32 in the order of `batch`, on the backbone's device, without gradients.

        Raises:
            ValueError: An empty batch or text, or a text longer than `spec.max_tokens`.
        """

    def release_memory(self) -> None:
        """Give back what can be computed again: the device ran out of memory."""
