"""Writes an embedded data set, shard by shard, so that a killed run goes on where it was.

The order of writes is the whole protocol: `plan.json` (what this run is) first, each shard under a temporary name and
then renamed, the columns, and `dataset.json` last. Whoever finds `plan.json` without `dataset.json` has an unfinished
data set, and goes on if its own plan is the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.datasets.columns import DatasetColumns
from service.datasets.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    BackboneInfo,
    DatasetManifest,
    SourceInfo,
    read_manifest,
    write_json,
)
from service.datasets.pairs import PairTable, RatingTable
from service.errors import ConfigurationError

DEFAULT_SHARD_TEXTS: Final = 1024
PLAN_NAME: Final = "plan.json"


def shard_path(path: Path, number: int) -> Path:
    """The file of a shard of embeddings."""
    return path / f"embeddings-{number:05d}.npy"


def _truncated_path(path: Path, number: int) -> Path:
    return path / f"truncated-{number:05d}.npy"


def _what_matters(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What of a backbone must not change between runs; the fingerprint tells its weights, under whatever name."""
    return {name: value for name, value in spec.items() if name not in {"id", "device"}}


def _save(file: Path, array: NDArray[np.generic]) -> None:
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(file)


def _save_columns(file: Path, columns: Mapping[str, NDArray[np.generic]]) -> None:
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **columns)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(file)


class EmbeddedDatasetWriter:
    """Writes one data set. Use it as a context manager: it holds a lock on the directory.

    Attributes:
        path: The directory.
        columns: Everything but the embeddings.
        texts: N.
        hidden_size: D.
        finished: The data set was already complete when it was opened; there is nothing to write.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        backbone: BackboneInfo,
        columns: DatasetColumns,
        source: SourceInfo,
        created_by: str,
        golden_texts_id: str,
        shard_texts: int = DEFAULT_SHARD_TEXTS,
    ) -> None:
        """Open `path` for writing: a new directory, or one that an earlier run of the same plan left unfinished.

        Raises:
            ConfigurationError: The columns are wrong, the directory holds something else, or another process writes
                into it.
        """
        columns.check()
        self.path = Path(path)
        self.columns = columns
        self.texts = int(columns.text_prompt_N.size)
        self.hidden_size = backbone.hidden_size
        self._backbone = backbone
        self._source = source
        self._created_by = created_by
        self._shard_texts = shard_texts
        self._input = columns.digest(golden_texts_id)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigurationError(f"another process is writing {self.path}: wait for it to end") from error
        try:
            self.finished = (self.path / MANIFEST_NAME).exists()
            self._agree()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EmbeddedDatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory. What was written stays, finished or not."""
        self._lock.close()

    def _plan(self) -> dict[str, object]:
        return {
            "format_version": FORMAT_VERSION,
            "backbone": _what_matters(self._backbone.spec),
            "input": self._input.model_dump(),
            "shard_texts": self._shard_texts,
        }

    def _agree(self) -> None:
        """Check that what stands in the directory is this data set, or begin it."""
        plan_file = self.path / PLAN_NAME
        mine = self._plan()
        if self.finished:
            manifest = read_manifest(self.path)
            found: dict[str, object] = {
                "format_version": manifest.format_version,
                "backbone": _what_matters(manifest.backbone),
                "input": manifest.input.model_dump(),
                "shard_texts": manifest.shard_texts,
            }
            state = "a finished data set"
        elif plan_file.exists():
            found, state = json.loads(plan_file.read_text(encoding="utf-8")), "an unfinished data set"
        else:
            strangers = sorted(file.name for file in self.path.iterdir() if file.name != ".lock")
            if strangers:
                raise ConfigurationError(
                    f"{self.path} is not empty ({', '.join(strangers[:3])}): choose another directory"
                )
            write_json(plan_file, mine)
            return
        differing = [name for name in mine if found.get(name) != json.loads(json.dumps(mine[name]))]
        if differing:
            what = {"input": "other input data or options", "backbone": "another backbone"}
            raise ConfigurationError(
                f"{self.path} holds {state} made with {' and '.join(what.get(d, f'another {d}') for d in differing)}: "
                "give the same input and backbone to go on with it, or choose another directory"
            )
        leftovers = [*self.path.rglob("*.partial")]
        if self.finished:
            leftovers += [*self.path.glob("truncated-*.npy"), *self.path.glob(PLAN_NAME)]
        for leftover in leftovers:
            leftover.unlink()

    def shards(self) -> list[range]:
        """The rows of every shard."""
        size = self._shard_texts
        return [range(start, min(start + size, self.texts)) for start in range(0, self.texts, size)]

    def pending(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        if self.finished:
            return []
        return [number for number in range(len(self.shards())) if not shard_path(self.path, number).exists()]

    def write_shard(self, number: int, h_ND: ArrayLike, truncated_N: ArrayLike | None = None) -> None:
        """Store the embeddings of one shard.

        Args:
            number: Which shard.
            h_ND: float32 [n, D], the rows `shards()[number]`.
            truncated_N: bool [n], which texts were cut; none when left out.

        Raises:
            ConfigurationError: Wrong shape, or numbers that are not finite.
        """
        rows = self.shards()[number]
        h = self._checked(h_ND, len(rows), f"shard {number}")
        truncated = np.zeros(len(rows), np.bool_) if truncated_N is None else np.asarray(truncated_N, np.bool_)
        _save(_truncated_path(self.path, number), truncated)
        _save(shard_path(self.path, number), h)

    def _checked(self, h_ND: ArrayLike, rows: int, what: str) -> NDArray[np.float32]:
        h = np.ascontiguousarray(h_ND, dtype=np.float32)
        if h.shape != (rows, self._backbone.hidden_size):
            raise ConfigurationError(f"{what} must be [{rows}, {self._backbone.hidden_size}], got {h.shape}")
        if not np.isfinite(h).all():
            raise ConfigurationError(f"{what} holds numbers that are not finite: nothing of it was stored")
        return h

    def finish(self, golden_GD: ArrayLike) -> DatasetManifest:
        """Write the columns and, last of all, the manifest.

        Args:
            golden_GD: float32 [G, D], the golden texts embedded by the same backbone.

        Raises:
            ConfigurationError: Some shards are missing.
        """
        if self.finished:
            return read_manifest(self.path)
        if missing := self.pending():
            raise ConfigurationError(f"{len(missing)} shard(s) are not written yet: {missing[:5]}")
        golden = self._checked(golden_GD, len(np.asarray(golden_GD)), "golden texts")
        numbers = range(len(self.shards()))
        truncated_N = np.concatenate([np.load(_truncated_path(self.path, number)) for number in numbers])
        columns = self.columns
        _save(self.path / "golden.npy", golden)
        _save(self.path / "text_prompt.npy", columns.text_prompt_N)
        _save(self.path / "text_key.npy", columns.text_key_N)
        _save(self.path / "text_truncated.npy", truncated_N)
        write_json(self.path / "users.json", list(columns.users))
        (self.path / "splits").mkdir(exist_ok=True)
        for name, table in columns.splits.items():
            _save_columns(self.path / "splits" / f"{name}.npz", table.columns())
        if columns.ratings is not None:
            _save_columns(self.path / "ratings.npz", columns.ratings.columns())
        manifest = DatasetManifest(
            format_version=FORMAT_VERSION,
            created_by=self._created_by,
            source=self._source,
            backbone=dict(self._backbone.spec),
            hidden_size=self._backbone.hidden_size,
            texts=self.texts,
            prompts=int(columns.text_prompt_N.max()) + 1,
            users=len(columns.users),
            ratings=None if columns.ratings is None else len(columns.ratings),
            golden_texts=len(golden),
            truncated_texts=int(truncated_N.sum()),
            shard_texts=self._shard_texts,
            splits={name: len(table) for name, table in columns.splits.items()},
            input=self._input,
        )
        write_json(self.path / MANIFEST_NAME, manifest.model_dump())
        self.finished = True
        (self.path / PLAN_NAME).unlink()
        for number in numbers:
            _truncated_path(self.path, number).unlink()
        return manifest


def write_embedded_dataset(
    path: str | Path,
    *,
    backbone: BackboneInfo,
    h_ND: ArrayLike,
    text_prompt_N: ArrayLike,
    users: Sequence[str],
    splits: Mapping[str, PairTable],
    golden_GD: ArrayLike,
    golden_texts_id: str = "none",
    ratings: RatingTable | None = None,
    text_key_N: ArrayLike | None = None,
    source: SourceInfo | None = None,
    created_by: str = "write_embedded_dataset",
    shard_texts: int = DEFAULT_SHARD_TEXTS,
) -> DatasetManifest:
    """Write a data set whose embeddings are in memory.

    Args:
        path: A new directory.
        backbone: Which backbone made the embeddings.
        h_ND: float32 [N, D], the texts.
        text_prompt_N: int [N], which prompt each text answers.
        users: Different user ids.
        splits: Name -> pairs.
        golden_GD: float32 [G, D], the golden texts.
        golden_texts_id: Identifies the golden texts.
        ratings: Graded ratings, or None.
        text_key_N: uint8 [N, 32]; made from the embeddings' bytes when left out.
        source: What the data set was made from.
        created_by: The command that made it.
        shard_texts: Rows of a shard.

    Raises:
        ConfigurationError: Something does not fit; the message says what.
    """
    h = np.ascontiguousarray(h_ND, dtype=np.float32)
    keys = (
        np.frombuffer(b"".join(hashlib.sha256(row.tobytes()).digest() for row in h), np.uint8).reshape(len(h), 32)
        if text_key_N is None
        else np.asarray(text_key_N, np.uint8)
    )
    columns = DatasetColumns(np.asarray(text_prompt_N, np.int32), keys, users, splits, ratings)
    with EmbeddedDatasetWriter(
        path,
        backbone=backbone,
        columns=columns,
        source=source or SourceInfo(format="arrays", name="memory"),
        created_by=created_by,
        golden_texts_id=golden_texts_id,
        shard_texts=shard_texts,
    ) as writer:
        for number in writer.pending():
            rows = writer.shards()[number]
            writer.write_shard(number, h[rows.start : rows.stop])
        return writer.finish(golden_GD)
