"""A checkpoint as a model in Hugging Face's format: the backbone with the heads as a K-label classifier.

Its logits are A h, base rewards without the biases: transformers' classifiers of decoders have none, and the REST
layer adds them to what any engine answers. Weights are copied shard by shard; tokenizer and chat template are those
that this project renders with, except for the pad token where rendered texts end in it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.backbone.fingerprint import fingerprint_gguf, fingerprint_safetensors
from service.backbone.golden import golden_token_ids
from service.backbone.huggingface import ModelSource, load_chat_renderer
from service.backbone.load import MINILM
from service.backbone.pad_token import PadToken, choose_pad_token
from service.backbone.templates import ChatTemplateRenderer
from service.backbone.weights import (
    SHARD_BYTES,
    Weight,
    missing_and_extra,
    read_gguf,
    read_safetensors,
    weight_files,
    write_shards,
)
from service.checkpoints import Checkpoint
from service.errors import BackboneError, CheckpointError, ConfigurationError

if TYPE_CHECKING:
    import torch

EXPORT_DTYPES: Final = ("auto", "float32", "bfloat16")

_HEAD: Final = "score.weight"
_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip
_DOWNLOADED: Final = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model")
_CONFIG: Final = "config.json"
_NOTES: Final = frozenset({"_name_or_path", "architectures", "torch_dtype", "transformers_version"})
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    Attributes:
        directory: Where.
        heads_id: What engines are to serve it as.
        architecture: The class that reads it.
        heads: K.
        bytes: Of its tensors.
        files: How many files hold them.
        dtype: What the backbone's weights are stored in.
        pad: The pad token that transformers leaves out when it looks for a text's last token.
        max_tokens: The longest text that this project renders.
    """

    directory: Path
    heads_id: str
    architecture: str
    heads: int
    bytes: int
    files: int
    dtype: str
    pad: PadToken
    max_tokens: int

    @property
    def serve_command(self) -> str:
        """How stock vLLM serves it behind ENGINE_URL."""
        return (
            f"vllm serve {shlex.quote(str(self.directory))} --served-model-name {self.heads_id} --runner pooling "
            f"--dtype {self.dtype} --max-model-len {self.max_tokens} --host 127.0.0.1 --port 8100"
        )


def export_hf(
    checkpoint: Checkpoint,
    output: Path,
    *,
    backbone: str = "",
    dtype: str = "auto",
    shard_bytes: int = SHARD_BYTES,
) -> Export:
    """Write a checkpoint as a `*ForSequenceClassification` model with K labels.

    Args:
        checkpoint: Its heads A [K, D] become the labels' weights, in float32 whatever `dtype` is.
        output: A directory that does not exist or is empty. It appears whole or not at all.
        backbone: Where the checkpoint's backbone lies, if elsewhere than in training.
        dtype: What to store the backbone in, of `EXPORT_DTYPES`; `auto`: what it is stored in now (GGUF: float32).
        shard_bytes: The most that one file of weights holds.

    Raises:
        BackboneError: The backbone is not found, or is not a plain causal decoder.
        CheckpointError: The checkpoint was trained on another backbone.
        ConfigurationError: There is something in `output`.
    """
    name = backbone or checkpoint.backbone.id
    if name == MINILM:
        raise BackboneError(
            "minilm cannot be exported: it is an encoder with mean pooling, and engines pool a causal decoder's last "
            "token. Serve it with `metareward worker`, or train on a Hugging Face reward model"
        )
    _require_empty(output)
    source = _local(ModelSource.of(name))
    renderer = load_chat_renderer(source, None)
    _require_fit(checkpoint, source, renderer)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        export = _write(checkpoint, source, renderer, partial, output, dtype, shard_bytes)
        _require_empty(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return export


def _write(
    checkpoint: Checkpoint,
    source: ModelSource,
    renderer: ChatTemplateRenderer,
    folder: Path,
    output: Path,
    dtype: str,
    shard_bytes: int,
) -> Export:
    import torch

    number = None if dtype == "auto" else getattr(torch, dtype)
    config, weights = _read(source, number)
    stored = _stored_dtype(weights)
    labels = [f"base_reward_{head}" for head in range(checkpoint.heads)]
    config = {key: value for key, value in config.items() if key not in _NOTES}
    config |= {
        "dtype": stored,
        "num_labels": len(labels),
        "id2label": {str(head): label for head, label in enumerate(labels)},
        "label2id": {label: head for head, label in enumerate(labels)},
    }
    heads = Weight.of(_HEAD, torch.from_numpy(checkpoint.A_KD.copy()))
    config["architectures"] = [_architecture(source.name, config, [*weights, heads], folder)]
    _write_tokenizer(source, renderer, folder)
    pad = _set_pad_token(renderer, folder, config)
    _write_json(folder / _CONFIG, config)
    copied = load_chat_renderer(ModelSource(source.name, str(folder), None), None)
    if golden_token_ids(copied) != golden_token_ids(renderer):
        raise BackboneError(f"the tokenizer of {source.name!r} makes other tokens once it is copied; save it again")
    total = write_shards(folder, [*weights, heads], shard_bytes=shard_bytes)
    export = Export(
        directory=output,
        heads_id=checkpoint.heads_id,
        architecture=config["architectures"][0],
        heads=checkpoint.heads,
        bytes=total,
        files=len(weight_files(folder)),
        dtype=stored,
        pad=pad,
        max_tokens=renderer.max_tokens,
    )
    (folder / "README.md").write_text(_card(checkpoint, export), encoding="utf-8")
    return export


def _require_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} is not empty: name a directory that does not exist yet")


def _local(source: ModelSource) -> ModelSource:
    """A hub id's files on this disk; a directory or a `.gguf` file as it is."""
    if Path(source.location).is_dir():
        return source
    load_chat_renderer(source, None)  # says what is wrong with an id that is not there
    from huggingface_hub import snapshot_download

    directory = snapshot_download(
        source.location, allow_patterns=list(_DOWNLOADED), local_files_only=source.local_files_only
    )
    return ModelSource(source.name, directory, None)


def _require_fit(checkpoint: Checkpoint, source: ModelSource, renderer: ChatTemplateRenderer) -> None:
    directory, wanted = Path(source.location), checkpoint.backbone
    if source.gguf_file is not None:
        fingerprint = fingerprint_gguf(directory / source.gguf_file, renderer.template_id)
    else:
        fingerprint = fingerprint_safetensors(directory / _CONFIG, weight_files(directory), renderer.template_id)
    if (fingerprint, renderer.template_id) != (wanted.fingerprint, wanted.template_id):
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} was trained on other weights or another chat template of {wanted.id} than "
            f"{source.name} has here; give the --backbone that it was trained on"
        )


def _read(source: ModelSource, dtype: torch.dtype | None) -> tuple[dict[str, Any], list[Weight]]:
    """Config and weights of the base model; None for `dtype`: as it is stored."""
    if source.gguf_file is None:
        config = _read_json(Path(source.location) / _CONFIG)
        if "quantization_config" in config:
            raise BackboneError(f"{source.name!r} is quantised; export the model that it was made from")
        return config, read_safetensors(Path(source.location), dtype)
    weights, read = read_gguf(source, dtype)
    known = set(type(read)().to_dict()) - _NOTES  # the file's own notes are no settings
    return {key: value for key, value in read.to_dict().items() if key in known}, weights


def _stored_dtype(weights: list[Weight]) -> str:
    """In vLLM's and transformers' words, of the largest tensor."""
    largest = max(weights, key=lambda weight: weight.bytes)
    return str(largest.dtype).removeprefix("torch.")


def _architecture(name: str, config: dict[str, Any], weights: list[Weight], folder: Path) -> str:
    """The class that reads these weights as they are.

    Raises:
        BackboneError: There is none, or it asks for other weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    _write_json(folder / _CONFIG, config)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                AutoConfig.from_pretrained(folder)
            )
    except (ValueError, KeyError) as error:
        raise BackboneError(
            f"{name!r}: transformers has no sequence classification for {config.get('model_type')!r}"
        ) from error
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    missing, extra = missing_and_extra(weights, expected)
    if missing or extra:
        raise BackboneError(
            f"{name!r} cannot be exported: its weights are not those of {type(model).__name__} "
            f"({'lacks' if missing else 'has'} {(missing or extra)[0]}, for one). Only plain causal decoders are"
        )
    return type(model).__name__


def _write_tokenizer(source: ModelSource, renderer: ChatTemplateRenderer, folder: Path) -> None:
    """The tokenizer's files, and the chat template that is rendered here, clock fixed."""
    directory = Path(source.location)
    if source.gguf_file is None and (directory / "tokenizer.json").is_file():
        for name in _TOKENIZER_FILES:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, folder / name)
    else:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(source.location, **source.arguments()).save_pretrained(folder)
    settings = _read_json(folder / _TOKENIZER_CONFIG)
    settings.pop("chat_template", None)
    _write_json(folder / _TOKENIZER_CONFIG, settings)
    (folder / "chat_template.jinja").write_text(renderer.chat_template, encoding="utf-8")


def _set_pad_token(renderer: ChatTemplateRenderer, folder: Path, config: dict[str, Any]) -> PadToken:
    import tokenizers

    files = [folder / name for name in (_TOKENIZER_CONFIG, "special_tokens_map.json") if (folder / name).is_file()]
    settings = {file: _read_json(file) for file in files}
    named = settings[folder / _TOKENIZER_CONFIG].get("pad_token")
    current = named.get("content") if isinstance(named, dict) else named
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad = choose_pad_token(renderer, tokenizer, current=current, embeddings=int(config["vocab_size"]))
    config["pad_token_id"] = pad.id
    if pad.text not in (None, current):
        for file, content in settings.items():
            _write_json(file, content | {"pad_token": pad.text})
    return pad


def _card(checkpoint: Checkpoint, export: Export) -> str:
    pad = f"`{export.pad.text}` (id {export.pad.id})" if export.pad.text else f"id {export.pad.id}, which has no token"
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---
# Base rewards of {checkpoint.name}

`{Path(checkpoint.backbone.id).name if Path(checkpoint.backbone.id).is_absolute() else checkpoint.backbone.id}` with the
{export.heads} base reward heads of a metareward checkpoint as its labels.

- The logits are A h, **base rewards without the biases b**: label `base_reward_k` is head k. They are no classes: no
  softmax, no sigmoid. Rewards of a user are (logits + b) · w, with b in the checkpoint and w that user's weights; the
  REST layer of metareward does both.
- heads_id `{checkpoint.heads_id}`, checkpoint_id `{checkpoint.checkpoint_id}`.
- Input is the whole conversation with its answer, rendered by the chat template beside this file, tokenised with
  `add_special_tokens=False` where the template already writes BOS.
- The pad token is {pad}: no rendered text ends with it, so a batch
  padded on the right gives the same logits as one text alone.

vLLM, behind `ENGINE_URL=http://127.0.0.1:8100` of the REST layer (ask `/classify` with `"use_activation": false`):

```sh
{export.serve_command.replace(shlex.quote(str(export.directory)), ".")}
```
"""


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
