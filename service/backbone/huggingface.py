"""Any causal decoder in Hugging Face's format: a hub id, a local directory, or a local `.gguf` file.

A `*ForSequenceClassification` reward model is read through its base model, without its head. The head's own pooling
takes the last token that is not the pad id, which for a text that ends in that id is another token than the last;
here the last hidden state (after the final norm) is indexed at each text's own last token.
Weights come from safetensors only (or GGUF), and no code of a model's repository runs.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.backbone.batches import check_batch
from service.backbone.executors.choose import ExecutorOptions, choose_executor
from service.backbone.fingerprint import fingerprint_gguf, fingerprint_safetensors
from service.backbone.prefix_cache import PrefixCacheStats
from service.backbone.protocol import BackboneSpec, Dtype
from service.backbone.templates import ChatTemplateRenderer
from service.backbone.tokenizer_files import read_tokenizer_files
from service.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

DEFAULT_MAX_TOKENS: Final = 4096
_POOLING: Final = "last token of the rendered text, after the final norm"
_HUB_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is read from, in `from_pretrained`'s words."""

    name: str
    location: str
    gguf_file: str | None
    local_files_only: bool = False

    @classmethod
    def of(cls, name: str) -> ModelSource:
        """Tell a `.gguf` file, a directory and a hub id apart.

        Raises:
            BackboneError: Plainly a path, but nothing is there.
        """
        path = Path(name).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return cls(name, str(path.parent), path.name)
        if path.is_dir():
            return cls(name, str(path), None)
        if path.suffix == ".gguf" or name.startswith(("/", "./", "../", "~")):
            raise BackboneError(f"backbone {name!r}: no such directory or .gguf file")
        return cls(name, name, None, local_files_only=not _hub_answers())

    def file(self, name: str) -> Path | None:
        """A file of the model: beside the others, or from the hub's cache, or from the hub; None: there is none."""
        directory = Path(self.location)
        if directory.is_dir():
            return directory / name if (directory / name).is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.location, name, local_files_only=self.local_files_only))
        except EntryNotFoundError:
            return None

    def arguments(self) -> dict[str, Any]:
        """The arguments that every `from_pretrained` of this project is called with."""
        arguments: dict[str, Any] = {"trust_remote_code": False, "local_files_only": self.local_files_only}
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        return arguments


def load_chat_renderer(source: ModelSource, max_tokens: int | None) -> ChatTemplateRenderer:
    """The model's tokenizer and chat template, without its weights.

    Args:
        source: The model.
        max_tokens: The longest text to read; None for 4096. The model's own limit holds in either case.

    Raises:
        BackboneError: Not found, or no chat template.
    """
    with _explained(source):
        tokenizer = None if source.gguf_file is not None else read_tokenizer_files(source.file)
    if tokenizer is not None:
        limit = min(max_tokens or DEFAULT_MAX_TOKENS, tokenizer.max_positions or DEFAULT_MAX_TOKENS)
        return ChatTemplateRenderer(tokenizer, limit, source.name)
    if importlib.util.find_spec("transformers") is None:
        raise BackboneError(
            f"backbone {source.name!r} needs transformers to read its tokenizer: install metareward[torch], or save "
            "the tokenizer with transformers (a directory with config.json, tokenizer.json, tokenizer_config.json)"
        )
    from transformers import AutoConfig, AutoTokenizer

    with _explained(source):
        config = AutoConfig.from_pretrained(source.location, **source.arguments())
        converted = AutoTokenizer.from_pretrained(source.location, **source.arguments())
    limit = min(max_tokens or DEFAULT_MAX_TOKENS, _positions(config))
    return ChatTemplateRenderer(converted, limit, source.name)


class HuggingFaceBackbone:
    """A decoder's last hidden states; see `service.backbone.protocol.Backbone`."""

    def __init__(
        self,
        name: str,
        *,
        device: str,
        dtype: Dtype,
        max_tokens: int | None = None,
        options: ExecutorOptions | None = None,
    ) -> None:
        """Load it, and find what runs it right and fast on this device.

        Raises:
            BackboneError: Not found, no safetensors, no chat template, weights missing, not a decoder, or `options`
                ask for what cannot run it.
        """
        import torch

        source = ModelSource.of(name)
        self.renderer = load_chat_renderer(source, max_tokens)
        loaded: Any = None

        def load() -> Any:
            nonlocal loaded
            loaded = _load_decoder(source, device, torch.bfloat16 if dtype == "float8" else getattr(torch, dtype))
            return loaded

        self.executor = choose_executor(load, device, dtype, options or ExecutorOptions())
        self.vocab_size = int(loaded.get_input_embeddings().num_embeddings)
        config = loaded.config
        self.spec = BackboneSpec(
            id=name,
            kind="huggingface",
            fingerprint=_fingerprint(source, self.renderer.template_id),
            template_id=self.renderer.template_id,
            hidden_size=int(config.hidden_size),
            max_tokens=self.renderer.max_tokens,
            dtype=dtype,
            device=device,
            pooling=_POOLING,
            model_type=str(config.model_type),
        )

    @property
    def shares_prefixes(self) -> bool:
        """Whether a common prefix is computed once: where its executor packs."""
        return self.executor.shares_prefixes

    @property
    def runs_by(self) -> str:
        """Which executor was chosen, and its attention where it has several."""
        attention = getattr(self.executor, "attention", None)
        return self.executor.name if attention is None else f"{self.executor.name}/{attention.name}"

    @property
    def prefixes(self) -> PrefixCacheStats | None:
        """What its executor keeps of prefixes between batches; None where it keeps nothing."""
        return self.executor.prefixes

    def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        """As the protocol says, by the executor that was chosen."""
        check_batch(batch, self.spec.max_tokens)
        return self.executor.forward(batch, scopes)

    def release_memory(self) -> None:
        """Give back what can be computed again, and what the allocator holds for later."""
        import torch

        self.executor.release_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _load_decoder(source: ModelSource, device: str, dtype: torch.dtype) -> Any:
    """The base model in evaluation mode, every weight accounted for."""
    from transformers import AutoModel

    with _explained(source):
        model, info = AutoModel.from_pretrained(
            source.location,
            dtype=dtype,
            use_safetensors=None if source.gguf_file else True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **source.arguments(),
        )
    incomplete = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if incomplete:
        raise BackboneError(
            f"backbone {source.name!r} lacks weights that its config.json asks for, {incomplete[0]} among them; "
            "fetch or save it again"
        )
    model.to(device).eval()
    if model.config.is_encoder_decoder or not _is_causal(model, device):
        raise BackboneError(f"backbone {source.name!r} is not a causal decoder; name a reward model that is one")
    return model


def _is_causal(model: Any, device: str) -> bool:
    """Whether a token's state ignores what follows: in an encoder the last token says nothing special of the text."""
    import torch

    ids = torch.tensor([[1, 2, 3, 4]], device=device)
    with torch.inference_mode():
        whole = model(input_ids=ids).last_hidden_state[0, 1].float()
        alone = model(input_ids=ids[:, :2]).last_hidden_state[0, 1].float()
    return bool((whole - alone).norm() < 0.1 * alone.norm())


def _hub_answers() -> bool:
    """Whether the hub sends any answer, asked once.

    Its client tries each file six times over 25 seconds and has no setting for fewer; without the hub only what its
    cache holds can be loaded, and that needs no asking.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception:  # of whichever HTTP library this version of the client uses
        return False
    return True


def _positions(config: PretrainedConfig) -> int:
    return int(getattr(config, "max_position_embeddings", DEFAULT_MAX_TOKENS))


def _fingerprint(source: ModelSource, rendering: str) -> str:
    if source.gguf_file is not None:
        return fingerprint_gguf(Path(source.location) / source.gguf_file, rendering)
    directory = Path(source.location)
    if not directory.is_dir():
        from transformers.utils.hub import cached_file

        config = cached_file(source.location, "config.json", local_files_only=True)
        directory = Path(str(config)).parent
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    return fingerprint_safetensors(directory / "config.json", [directory / name for name in names], rendering)


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn what loading raises into one error that names the setting and the fix; progress bars on terminals only."""
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    hub_logger.setLevel(logging.ERROR)  # what it says of retries, the one error says too
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # of transformers, safetensors, tokenizers, the hub's client: no common root
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if source.local_files_only:
            first_line = "the hub does not answer (or HF_HUB_OFFLINE is set), and its cache does not hold the model."
        raise BackboneError(
            f"backbone {source.name!r} cannot be loaded: {first_line} "
            "Set it to minilm, to a Hugging Face id (on a machine that reaches the hub or holds it in its cache), "
            "or to a local directory with config.json, tokenizer.json and *.safetensors."
        ) from error
    finally:
        hub_logger.setLevel(hub_level)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only its errors, and no progress bars where nobody watches. Does not import it: tokenizers go without."""
    if sys.modules.get("transformers") is None:
        yield
        return
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)  # that the score head is not read is on purpose
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
