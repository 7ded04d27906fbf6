"""Everything of an embedded data set but its embeddings: prompts, keys, users, pairs, ratings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.datasets.manifest import SPLIT_NAME_PATTERN, InputDigest
from service.datasets.pairs import PairTable, RatingTable, pair_problems
from service.errors import ConfigurationError


@dataclass(frozen=True)
class DatasetColumns:
    """Everything of a data set but its embeddings.

    Attributes:
        text_prompt_N: int32, which prompt each text answers.
        text_key_N: uint8 [N, 32], identifies each text.
        users: Different user ids.
        splits: Name -> pairs.
        ratings: Graded ratings, or None.
    """

    text_prompt_N: NDArray[np.int32]
    text_key_N: NDArray[np.uint8]
    users: Sequence[str]
    splits: Mapping[str, PairTable]
    ratings: RatingTable | None = None

    def check(self) -> None:
        """Refuse columns that no reader could use.

        Raises:
            ConfigurationError: Names the first column that is wrong.
        """
        texts = self.text_prompt_N.size
        if texts < 1:
            raise ConfigurationError("a data set needs at least one text")
        if self.text_prompt_N.dtype != np.int32 or self.text_prompt_N.min() < 0:
            raise ConfigurationError("text_prompt must be int32 and not negative")
        if self.text_key_N.shape != (texts, 32) or self.text_key_N.dtype != np.uint8:
            raise ConfigurationError(f"text_key must be uint8 [{texts}, 32]")
        if len(set(self.users)) != len(self.users):
            raise ConfigurationError("user ids must be different")
        for name, table in self.splits.items():
            if not re.match(SPLIT_NAME_PATTERN, name):
                raise ConfigurationError(f"split {name!r}: use letters, digits, '_', '-' and '.', at most 64")
            if problems := pair_problems(table, len(self.users), texts):
                raise ConfigurationError(f"split {name!r}: {'; '.join(problems)}")

    def digest(self, golden_texts_id: str) -> InputDigest:
        """What a resumed run must agree with."""
        columns = hashlib.sha256(json.dumps(list(self.users)).encode())
        columns.update(self.text_prompt_N.tobytes())
        tables: dict[str, PairTable | RatingTable] = dict(sorted(self.splits.items()))
        if self.ratings is not None:
            tables["/ratings"] = self.ratings
        for name, table in tables.items():
            columns.update(f"{name}:{len(table)}".encode())
            for column in table.columns().values():
                columns.update(np.ascontiguousarray(column).tobytes())
        return InputDigest(
            texts=hashlib.sha256(self.text_key_N.tobytes()).hexdigest(),
            columns=columns.hexdigest(),
            golden_texts_id=golden_texts_id,
        )
