"""The prompt of several texts tokenised once.

Special tokens are found in a text before anything else is done to it, and what lies between two of them is tokenised
by itself. So the ids of a text are those of its part before such a token and of the rest, one after the other. That
holds for every tokenizer of the library, but not for every special token: one that takes blanks from its left, or that
overlaps with another one, may be something else where the text is cut. Those are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


class PromptMemo:
    """What the texts of one prompt begin with. Lives as long as a request is tokenised, and no longer: it is text."""

    __slots__ = ("cut", "head", "ids")

    def __init__(self) -> None:
        self.head = ""  # up to and with the special token at which the text is cut
        self.cut = 0
        self.ids: list[int] = []


class Seams:
    """The special tokens of a tokenizer at which a text may be cut."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        added = list(tokenizer.get_added_tokens_decoder().values())
        contents = {token.content for token in added}
        self._seams = [
            token.content
            for token in added
            if token.special
            and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
            and not any(_touch(token.content, other) for other in contents)
        ]
        if tokenizer.encode_special_tokens:  # it takes special tokens for plain text
            self._seams = []

    def encode(self, encode: Callable[[str], list[int]], text: str, completion: str, memo: PromptMemo) -> list[int]:
        """The ids that `encode(text)` gives.

        Args:
            encode: The tokenizer, without special tokens of its own.
            text: A rendered text.
            completion: What is not in common with the texts of `memo` that follow.
            memo: Of one prompt; remembers where it ends.
        """
        if not memo.head or not text.startswith(memo.head):
            completion = completion.strip()
            if not completion:  # it shows no place at which to cut; a longer one will
                return encode(text)
            end = text.rfind(completion)
            cut, seam = max(((text.rfind(seam, 0, max(0, end)), seam) for seam in self._seams), default=(-1, ""))
            if cut <= 0:
                return encode(text)
            memo.head, memo.cut, memo.ids = text[: cut + len(seam)], cut, encode(text[:cut])
        return [*memo.ids, *encode(text[memo.cut :])]


def _touch(token: str, other: str) -> bool:
    """Whether one may begin where the other has not ended."""
    if token != other and (token in other or other in token):
        return True
    return any(other.endswith(token[:length]) for length in range(1, min(len(token), len(other))))
