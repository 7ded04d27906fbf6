"""A model's tokenizer and chat template from its files alone: `tokenizers` and Jinja, no transformers and no torch.

Every process of a deployment reads a model this way where it can (a directory or a hub id with `tokenizer.json`), so
that a REST replica without torch and a worker with it make the same token ids of a text. transformers reads what is
left: GGUF files, tokenizers without `tokenizer.json`, and those whose template names a special token that the files
leave to the tokenizer's class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.backbone.protocol import TextTooLong, TokenisedText, UnrenderableText

if TYPE_CHECKING:
    import tokenizers

_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULT_TEMPLATE: Final = "default"


@dataclass(frozen=True, slots=True)
class FileTokenizer:
    """What the files say, by the names that transformers gives it.

    Attributes:
        backend_tokenizer: Text to token ids.
        chat_template: The Jinja source, or None where the model has none.
        special_tokens_map: Named special tokens: `bos_token` to `<s>`.
        bos_token_id: The id of `bos_token`, or None.
        max_positions: The longest text that the model's config allows, or None where it does not say.
    """

    backend_tokenizer: tokenizers.Tokenizer
    chat_template: str | None
    special_tokens_map: Mapping[str, str]
    bos_token_id: int | None
    max_positions: int | None


def read_tokenizer_files(find: Callable[[str], Path | None]) -> FileTokenizer | None:
    """Read a model's tokenizer; None where its files do not say everything.

    Args:
        find: The file of a name, or None where the model has no such file. Its errors pass through.

    Raises:
        OSError, ValueError: A file cannot be read or is no JSON.
        Exception: `tokenizer.json` is not what the name says (the library has no type of its own for that).
    """
    import tokenizers

    if (tokenizer_file := find("tokenizer.json")) is None or (config_file := find("config.json")) is None:
        return None
    settings = {**_json(find("special_tokens_map.json")), **_json(find("tokenizer_config.json"))}
    special = {name: text for name in _SPECIAL if (text := _content(settings.get(name))) is not None}
    template = _template(settings.get("chat_template"), find("chat_template.jinja"))
    if template is not None and any(name in template and name not in settings for name in _SPECIAL):
        return None
    tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    if any(tokenizer.token_to_id(token) is None for token in special.values()):
        return None
    bos = special.get("bos_token")
    positions = _json(config_file).get("max_position_embeddings")
    return FileTokenizer(
        backend_tokenizer=tokenizer,
        chat_template=template,
        special_tokens_map=special,
        bos_token_id=None if bos is None else tokenizer.token_to_id(bos),
        max_positions=positions if isinstance(positions, int) else None,
    )


def encode_text(tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text.

    Raises:
        UnrenderableText: It is not Unicode.
    """
    ids: list[int] = encoding_of(tokenizer, text, add_special_tokens=add_special_tokens).ids
    return ids


def encoding_of(
    tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool, offsets: bool = False
) -> tokenizers.Encoding:
    """A text's tokens; where they are in it costs a quarter more.

    Raises:
        UnrenderableText: It is not Unicode.
    """
    # Of all its methods those for batches alone let go of the interpreter: `encode` would hold up the event loop,
    # whichever thread it is called from, half a second for a long text.
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    try:
        return encode([text], add_special_tokens=add_special_tokens)[0]
    except (TypeError, UnicodeError) as error:
        raise UnrenderableText("is not valid Unicode text (a lone surrogate?)") from error


def vocabulary_size(tokenizer: tokenizers.Tokenizer) -> int:
    """One more than the largest token id; added tokens may lie behind a gap."""
    added = tokenizer.get_added_tokens_decoder()
    return max(tokenizer.get_vocab_size(with_added_tokens=True), 1 + max(added, default=-1))


def fit_ids(ids: list[int], max_tokens: int, opening: int | None, *, truncate: bool) -> TokenisedText:
    """See `service.backbone.protocol.Renderer.fit`; `opening` is the id that stays at the start where it stands there.

    Raises:
        TextTooLong: More than `max_tokens`, and not `truncate`.
    """
    if len(ids) <= max_tokens:
        return TokenisedText(tuple(ids), truncated=False)
    if not truncate:
        raise TextTooLong(len(ids), max_tokens)
    start = (ids[0],) if ids[0] == opening else ()
    return TokenisedText((*start, *ids[len(ids) - max_tokens + len(start) :]), truncated=True)


def _json(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return content


def _content(token: object) -> str | None:
    """A special token is its text, or an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template(setting: object, file: Path | None) -> str | None:
    if file is not None:
        return file.read_text(encoding="utf-8")
    if isinstance(setting, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in setting if isinstance(entry, dict)}
        setting = named.get(_DEFAULT_TEMPLATE)
    return setting if isinstance(setting, str) else None
