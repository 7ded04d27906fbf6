"""Texts that another model's chat template rendered, read back into the messages that they were.

A policy in training shows its reward server what its own tokenizer made of a conversation. A backbone of another
family has never seen such a text, so the messages are found again, and rendered in the template that it was trained
with. Most formats announce every turn by a header that names its role; what ends a turn is a token of its own.

What a template folded together cannot be parted again: Gemma's and older Mistral templates put a system message into
a user's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.backbone.protocol import MAX_TURNS, Message


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; `completion` is its last turn, without what ends a turn."""

    messages: Sequence[Message]
    completion: str


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How templates of a family write a conversation.

    Attributes:
        name: The family.
        header: What begins a turn; its first group that matched names the role, in the words of `_ROLES`.
        ends: What ends a turn, and what ends a text.
        trims: Whether its templates take blanks from both sides of what is said, or add some.
        preamble: What begins a text whose system message stands before the first header, without one of its own.
    """

    name: str
    header: re.Pattern[str]
    ends: tuple[str, ...]
    trims: bool = False
    preamble: str = ""

    def opens(self, text: str) -> bool:
        """Whether a text is in this format."""
        if self.header.match(text, _begin(text)) is not None:
            return True
        # Elsewhere a header says nothing: it may be the policy that wrote it, into a text of another format.
        return self.preamble != "" and text.lstrip().startswith(self.preamble) and bool(self.header.search(text))

    def read(self, query: str, prompt: str | None) -> Chat | None:
        """The conversation of `query`, which begins with `prompt` or with its end; None where no answer is in it."""
        headers = list(self.header.finditer(query))
        end = None if prompt is None else prompt_end(query, prompt)
        if prompt is None:
            last = max((i for i, header in enumerate(headers) if _role(header) == "assistant"), default=-1)
        elif end is None:
            last = self._last_of(prompt, headers)
        else:
            # Whatever the completion holds that looks like a turn is part of it.
            last = sum(header.start() < end for header in headers) - 1
            follows = last + 1 < len(headers) and not query[end : headers[last + 1].start()].strip()
            if follows and (last < 0 or _role(headers[last]) != "assistant"):
                last += 1  # the policy wrote the header of its turn itself
        if last < 0 or _role(headers[last]) != "assistant":
            return None
        # Of a prompt that was too long for the policy the query has the end only.
        asked = query[: headers[last].start()] if prompt is None else self._asked(prompt)
        turns = self._turns(asked)
        completion = without_ends(query[headers[last].end() :], self.ends)
        completion = _NO_THOUGHT.sub("", completion.strip() if self.trims else completion)
        return Chat(turns, completion) if turns else None

    def _last_of(self, prompt: str, headers: Sequence[re.Match[str]]) -> int:
        """Which header begins the answer where decoding changed letters of the prompt (`NFC`, say); -1 for none.

        The turns of the prompt come first, or those that are left of it. A header more is the policy's own.
        """
        asked, found = list(map(_role, self.header.finditer(prompt))), list(map(_role, headers[:MAX_TURNS]))
        for lost in range(min(len(asked), MAX_TURNS)):
            if found[: len(asked) - lost] == asked[lost:]:
                return len(asked) - lost - 1
        return -1

    def _asked(self, prompt: str) -> str:
        """A prompt without the header that begins the answer."""
        headers = list(self.header.finditer(prompt))
        return prompt[: headers[-1].start()] if headers and _role(headers[-1]) == "assistant" else prompt

    def _turns(self, text: str) -> list[Message]:
        begin = _begin(text)
        headers = list(self.header.finditer(text))
        if len(headers) >= MAX_TURNS:
            return []
        turns: list[Message] = []
        first = headers[0].start() if headers else len(text)
        if self.preamble and text[begin:first].strip():
            turns += _system(text[begin:first].strip())
        for i, header in enumerate(headers):
            content = text[header.end() : headers[i + 1].start() if i + 1 < len(headers) else len(text)]
            said = without_ends(content, self.ends)
            content = said.strip() if self.trims else said if said != content else content.removesuffix("\n")
            role = _role(header)
            if role == "system":
                turns += _system(content)
            elif header[1] == "[INST]" and (folded := _LLAMA2_SYSTEM.match(content)) is not None:
                turns += [*_system(folded[1].strip()), {"role": "user", "content": content[folded.end() :].strip()}]
            else:
                turns.append({"role": role, "content": content})
        return turns


# A BOS, or what stands in its place.
_BEGIN: Final = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|endoftext\|>|<\uff5cbegin▁of▁sentence\uff5c>)\s*)*"
)
_ROLES: Final = {
    "user": "user", "human": "user", "[INST]": "user", "User": "user",
    "assistant": "assistant", "model": "assistant", "gpt": "assistant", "[/INST]": "assistant",
    "Assistant": "assistant",
    "system": "system", "developer": "system", "[SYSTEM_PROMPT]": "system",
}  # fmt: skip
# So many letters of a prompt's end are looked for in a query that does not begin with the prompt.
_TAIL: Final = 64
# What templates say where nobody said anything to the system, and the dates that Llama 3's put before it.
_DEFAULT_SYSTEMS: Final = frozenset(
    {
        "",
        "You are a helpful assistant.",
        "You are a helpful assistant",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    }
)
_LLAMA3_DATES: Final = re.compile(r"\A(?:Cutting Knowledge Date:[^\n]*\n)?Today Date:[^\n]*\n*")
_LLAMA2_SYSTEM: Final = re.compile(r"\A\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)
_NO_THOUGHT: Final = re.compile(r"\A\s*<think>\s*</think>\s*")

FORMATS: Final = (
    ChatFormat("ChatML", re.compile(r"<\|im_start\|>(\w+)(?:\n|<\|im_sep\|>\n?)"), ("<|im_end|>", "<|endoftext|>")),
    ChatFormat(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n*"),
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
        trims=True,
    ),
    ChatFormat("Gemma", re.compile(r"<start_of_turn>(user|model)\n?"), ("<end_of_turn>", "<eos>", "<pad>"), trims=True),
    ChatFormat(
        "Llama 2 and Mistral",
        re.compile(r"(\[/?INST\]|\[SYSTEM_PROMPT\])"),
        ("[/SYSTEM_PROMPT]", "</s><s>", "</s>", "<s>"),
        trims=True,
    ),
    ChatFormat(
        "Zephyr and Phi 3",
        re.compile(r"<\|(system|user|assistant)\|>\n?"),
        ("<|end|>", "</s>", "<|endoftext|>"),
    ),
    ChatFormat(
        "DeepSeek",
        re.compile(r"<\uff5c(User|Assistant)\uff5c>"),
        ("<\uff5cend▁of▁sentence\uff5c>",),
        trims=True,
        preamble="<\uff5cbegin▁of▁sentence\uff5c>",
    ),
    ChatFormat("Granite", re.compile(r"<\|start_of_role\|>(\w+)<\|end_of_role\|>"), ("<|end_of_text|>",)),
)


def read_chat(query: str, prompt: str | None) -> Chat | None:
    """The conversation that a chat template of a known family rendered; None where none is recognised.

    Args:
        query: Prompt and completion.
        prompt: The prompt alone, as the template rendered it, with the header of the answer; tells where the
            completion begins. None: it begins behind the last header of an answer.
    """
    told = prompt if prompt is not None and prompt.strip() else None
    for chat_format in FORMATS:
        if chat_format.opens(told or query):
            return chat_format.read(query, told)
    return None


def prompt_end(query: str, prompt: str) -> int | None:
    """Where the prompt ends in a query, which a tokenizer made of both.

    It may have lost the beginning of a long prompt, and decoding may have made other blanks than there were. None where
    the query begins otherwise.
    """
    if query.startswith(prompt):
        return len(prompt)
    tail = prompt[-_TAIL:]
    at = query.find(tail) + len(tail)
    # The cut may have gone through a letter of several tokens.
    if tail.strip() and at >= len(tail) and prompt.endswith(query[:at].lstrip("\ufffd")):
        return at
    at, text = _begin(query), prompt[_begin(prompt) :]
    for letter in text:
        if letter.isspace():
            continue
        while at < len(query) and query[at].isspace():
            at += 1
        if not query.startswith(letter, at):
            return None
        at += 1
    return at if text.strip() else None


def without_ends(text: str, ends: Sequence[str]) -> str:
    """A turn without what ends it, however often, and what follows that; blanks of its own stay."""
    end = at = len(text)
    while at:
        if text[at - 1].isspace():
            at -= 1
            continue
        mark = next((mark for mark in ends if text.endswith(mark, 0, at)), None)
        if mark is None:
            break
        end = at = at - len(mark)
    return text[:end]


def _begin(text: str) -> int:
    """Where a text begins behind what begins every text."""
    found = _BEGIN.match(text)
    return 0 if found is None else found.end()


def _role(header: re.Match[str]) -> str:
    # What tools and programs say is said to the assistant.
    return _ROLES.get(header[1], "user")


def _system(content: str) -> list[Message]:
    said = _LLAMA3_DATES.sub("", content)
    return [] if said.strip() in _DEFAULT_SYSTEMS else [{"role": "system", "content": said}]
