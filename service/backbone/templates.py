"""Rendering by the model's own chat template: a (prompt, completion) to the token ids that a reward model reads.

The hidden state is that of the *true last token of the rendered text*, whatever the template ends with. Published
reward models (Skywork and others) render `apply_chat_template(messages + answer, tokenize=False)` and tokenise the
string, dropping a BOS that the tokeniser would put before the template's own: the same ids as here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from service.backbone.chat_formats import without_ends
from service.backbone.chat_jinja import compile_chat_template
from service.backbone.prompt_memo import PromptMemo, Seams
from service.backbone.protocol import DoubledBos, Message, TokenisedText, UnrenderableText
from service.backbone.tokenizer_files import encode_text, fit_ids, vocabulary_size
from service.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from service.backbone.tokenizer_files import FileTokenizer

_SCHEME: Final = "chat-template-1"
# Of a private use area: no tokenizer, template or text gives it a meaning.
_PLACEHOLDER: Final = "\ue000"
# Llama 3 templates print today's date into the system turn. A reward must not change at midnight, nor a cached one
# differ from a fresh one, so the date is the one that those templates name as their own default: a Friday.
_TEMPLATE_DATE: Final = "26 Jul 2024"
_TEMPLATE_DATE_PARTS: Final = {
    "%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26",
    "%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00", "%j": "208",
}  # fmt: skip


def _with_fixed_clock(template: str) -> str:
    """The template with `strftime_now` shadowed by a macro that knows one day."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f" | replace('{part}', '{value}')" for part, value in _TEMPLATE_DATE_PARTS.items())
    # The empty expression keeps Jinja from taking the template's own first newline for the end of the macro's line.
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


@dataclass(frozen=True, slots=True)
class _Seam:
    """What a template writes between a question and its answer, and behind the answer.

    Attributes:
        header: Between them.
        end: Behind the answer.
        ends: What a policy may have ended its answer with.
        trims: Whether blanks around an answer are left out.
    """

    header: str
    end: str
    ends: tuple[str, ...]
    trims: bool


class ChatTemplateRenderer:
    """The model's own chat template and tokenizer; see `service.backbone.protocol.Renderer`."""

    has_chat_template = True

    def __init__(self, tokenizer: FileTokenizer | PreTrainedTokenizerBase, max_tokens: int, model: str) -> None:
        """`model` names the backbone in errors.

        Raises:
            BackboneError: The tokenizer has no chat template or one that is no Jinja, or no `tokenizer.json` form (a
                "fast" tokenizer).
        """
        import jinja2
        import tokenizers

        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not isinstance(template, str) or not template.strip():
            raise BackboneError(
                f"backbone {model} has no chat template, so there is no one way to show it a prompt and a response: "
                "name a chat or reward model, or put the template it was trained with into chat_template.jinja "
                "beside its tokenizer"
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise BackboneError(f"backbone {model} has no tokenizer.json; save its tokenizer in the fast format")
        # A private copy: encode() of one that neither pads nor truncates changes no state, so threads may share it.
        self._tokenizer = tokenizers.Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        template = _with_fixed_clock(template)
        # The Jinja source that is rendered: whoever renders with it elsewhere gets the same text.
        self.chat_template = template
        try:
            self._template = compile_chat_template(template)
        except jinja2.TemplateSyntaxError as error:
            raise BackboneError(f"backbone {model} has a chat template that is no Jinja: {error.message}") from error
        self._template_error: type[Exception] = jinja2.TemplateError
        self._variables = {**tokenizer.special_tokens_map, "date_string": _TEMPLATE_DATE}
        self.doubled_bos = DoubledBos(tokenizer.bos_token_id)
        self._seams = Seams(self._tokenizer)
        self._seam = self._find_seam(tokenizer.special_tokens_map.get("eos_token"))
        self.max_tokens = max_tokens
        self.vocab_size = vocabulary_size(self._tokenizer)
        special = repr(sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()))
        identity = "\0".join((_SCHEME, _TEMPLATE_DATE, template, special, self._tokenizer.to_str()))
        self.template_id = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def tokenise(
        self, messages: Sequence[Message], completion: str, *, truncate: bool, memo: PromptMemo | None = None
    ) -> TokenisedText:
        """As the protocol says; when shortening, tokens go from the start, after BOS, and the end is kept."""
        text = self._answered(messages, completion) if completion.strip() else self._unanswered(messages, completion)
        ids = self._encode(text) if memo is None else self._seams.encode(self._encode, text, completion, memo)
        ids = self.doubled_bos.drop(ids)
        if not ids:
            raise UnrenderableText("is rendered to nothing by this model's chat template")
        return self.fit(ids, truncate=truncate)

    def tokenise_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As the protocol says."""
        # Clients render with the model's template, which writes BOS, and leave `add_special_tokens` at its default.
        return self.doubled_bos.drop(encode_text(self._tokenizer, text, add_special_tokens=add_special_tokens))

    def settle(self, prompt: str, answer: str) -> str | None:
        """As the protocol says."""
        seam, asked = self._seam, prompt.rstrip()
        if seam is None or not asked.endswith(seam.header.strip()):
            return None
        said = without_ends(answer, seam.ends)
        behind = seam.header[len(seam.header.rstrip()) :]
        return f"{asked}{behind}{said.strip() if seam.trims else said}{seam.end}"

    def _find_seam(self, eos: object) -> _Seam | None:
        asked, said = _PLACEHOLDER, 2 * _PLACEHOLDER
        question: list[Message] = [{"role": "user", "content": asked}]
        try:
            text = self._answered(question, said)
            trims = text == self._answered(question, f" {said} ")
        except UnrenderableText:
            return None
        before, _, end = text.rpartition(said)
        header = before.rpartition(asked)[2]
        # A line break alone tells no template from another.
        ends = tuple(mark for mark in (end.rstrip(), end.strip(), eos) if isinstance(mark, str) and mark)
        return _Seam(header, end, ends, trims) if len(header.strip()) > 1 else None

    def fit(self, ids: list[int], *, truncate: bool) -> TokenisedText:
        """As the protocol says."""
        return fit_ids(ids, self.max_tokens, self.doubled_bos.bos, truncate=truncate)

    def _encode(self, text: str) -> list[int]:
        return encode_text(self._tokenizer, text, add_special_tokens=False)

    def _answered(self, messages: Sequence[Message], completion: str) -> str:
        try:
            return self._render([*messages, {"role": "assistant", "content": completion}])
        except self._template_error as error:
            raise UnrenderableText(
                "is refused by this model's chat template; check the order of roles, and whether it takes a system turn"
            ) from error

    def _unanswered(self, messages: Sequence[Message], blank: str) -> str:
        """The text of an answer that says nothing: that of any other one, without what it says.

        Templates may leave out a turn that is empty, or refuse it. Without its header and end the last token would be
        the prompt's, whose hidden state no reward model was trained to read as an answer's.
        """
        placeholder = _PLACEHOLDER
        while any(placeholder in message["content"] for message in messages):
            placeholder += _PLACEHOLDER
        before, _, behind = self._answered(messages, placeholder).rpartition(placeholder)
        try:
            text = self._render([*messages, {"role": "assistant", "content": blank}])
        except self._template_error:
            text = ""
        # Templates trim as they like, and a model reads what its template makes of it.
        if "".join(text.split()) != "".join((before + behind).split()):
            raise UnrenderableText(
                "is empty or blank, and this model's chat template leaves such an answer out; give it a reward of your "
                "own, below those of the others, or send a placeholder such as (no answer)"
            )
        return text

    def _render(self, conversation: list[Message]) -> str:
        return self._template.render(
            messages=conversation, tools=None, documents=None, add_generation_prompt=False, **self._variables
        )
