"""The manifest of an embedded data set: its layout on disk, read strictly.

DIR/dataset.json            written last: a directory without it is unfinished
    text_prompt.npy         int32 [N]: which prompt each text answers
    text_key.npy            uint8 [N, 32]: SHA-256 of each text's messages and completion
    text_truncated.npy      bool [N]: the text was longer than the backbone's limit
    embeddings-00000.npy    float32 [n, D], consecutive rows; every shard but the last has `shard_texts` rows
    golden.npy              float32 [G, D]: the golden texts, embedded by the same backbone
    users.json              the user ids
    ratings.npz             optional: user, text, rating
    splits/NAME.npz         user, part, chosen, rejected, strength, conversation
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ConfigurationError

FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "dataset.json"
SPLIT_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


@dataclass(frozen=True)
class BackboneInfo:
    """Which backbone made the embeddings.

    Attributes:
        id: The backbone's name.
        fingerprint: Identifies its weights and tokeniser.
        template_id: Identifies how prompt and completion become token ids.
        hidden_size: D.
        spec: The backbone's whole description, as it wrote it (JSON).
    """

    id: str
    fingerprint: str
    template_id: str
    hidden_size: int
    spec: Mapping[str, Any]

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> BackboneInfo:
        """Read a backbone's description.

        Raises:
            ConfigurationError: A needed field is missing or of another type.
        """
        wanted: dict[str, type] = {"id": str, "fingerprint": str, "template_id": str, "hidden_size": int}
        for name, kind in wanted.items():
            if not isinstance(spec.get(name), kind):
                raise ConfigurationError(f"backbone.{name} must be a {kind.__name__}, got {spec.get(name)!r}")
        if spec["hidden_size"] < 1:
            raise ConfigurationError(f"backbone.hidden_size must be at least 1, got {spec['hidden_size']}")
        return cls(**{name: spec[name] for name in wanted}, spec=dict(spec))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SourceInfo(_Strict):
    """What a data set was made from.

    Attributes:
        format: `jsonl`, `ratings`, or what else the maker calls it.
        name: File or directory name of the input (not its path).
        options: Every option that shaped the splits (seed, margin, ...).
    """

    format: str
    name: str
    options: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class InputDigest(_Strict):
    """What a resumed run must agree with besides the backbone: the same texts, the same pairs, the same golden texts.

    Attributes:
        texts: SHA-256 over the text keys, in order.
        columns: SHA-256 over prompts, users, ratings and splits.
        golden_texts_id: Identifies the golden texts.
    """

    texts: str
    columns: str
    golden_texts_id: str


class DatasetManifest(_Strict):
    """`dataset.json`."""

    format_version: Literal[1]
    created_by: str
    source: SourceInfo
    backbone: dict[str, Any]
    hidden_size: int = Field(ge=1)
    texts: int = Field(ge=1)
    prompts: int = Field(ge=1)
    users: int = Field(ge=0)
    ratings: int | None = Field(ge=0)
    golden_texts: int = Field(ge=0)
    truncated_texts: int = Field(ge=0)
    shard_texts: int = Field(ge=1)
    splits: dict[str, int]
    input: InputDigest

    def backbone_info(self) -> BackboneInfo:
        """The backbone as training and checkpoints name it."""
        return BackboneInfo.from_spec(self.backbone)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is either the old one or the new one, whole, whatever happens."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_manifest(path: Path) -> DatasetManifest:
    """Read `dataset.json` of the data set in `path`.

    Raises:
        ConfigurationError: Not a finished data set, or a manifest that this version does not understand; the message
            names the field and what to do.
    """
    file = path / MANIFEST_NAME
    if not file.is_file():
        hint = (
            "it is unfinished: run the same `metareward embed` again, it goes on where it stopped"
            if (path / "plan.json").is_file()
            else "make one with `metareward embed --output DIR`"
        )
        raise ConfigurationError(f"{path} is not an embedded data set ({MANIFEST_NAME} is missing): {hint}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
        found = raw.get("format_version") if isinstance(raw, dict) else None
        raise ConfigurationError(
            f"{file}: format_version is {found!r}, this version reads {FORMAT_VERSION}: embed the data again"
        )
    try:
        manifest = DatasetManifest.model_validate(raw)
    except ValidationError as error:
        issues = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"{file}: {issues}: embed the data again") from error
    if manifest.backbone_info().hidden_size != manifest.hidden_size:
        raise ConfigurationError(f"{file}: hidden_size is not the backbone's hidden_size: embed the data again")
    return manifest
