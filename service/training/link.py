"""Linking a checkpoint to another one on its backbone: the maps that carry users, and what they lose.

Maps and fidelity need hidden states only, no choices: differences between texts of one prompt, of an embedded data set.
Those of some prompts are held out, and the fidelities are measured on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.checkpoints import Checkpoint, MapFrom
from service.datasets.embedded import EmbeddedDataset
from service.errors import ConfigurationError
from service.mrm.carry import diffs_fidelity, fidelity, maps_from_products, prior_draws

# More differences than that change nothing in the third digit, and cost time.
_MOST_DIFFERENCES: Final = 200_000
_MOST_HELD_OUT: Final = 2000
_FEWEST: Final = 50
# With fewer prompts of several texts than that, texts are held out and not prompts.
_FEWEST_PROMPTS: Final = 20
_MOST_PARTNERS: Final = 8
_HELD_OUT: Final = 0.2
_DRAWS: Final = 256
_TEXTS_AT_ONCE: Final = 4096

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Differences:
    """Pairs of texts of one prompt: rows of the data set, [N, 2] each."""

    fitted: IntArray
    held_out: IntArray


def link(new: Checkpoint, old: Checkpoint, dataset: EmbeddedDataset, *, seed: int = 0) -> MapFrom:
    """How users are carried from `old` to `new`.

    Args:
        new: The checkpoint to be linked.
        old: The one whose users are to be carried.
        dataset: Of the backbone of both.
        seed: Decides which differences are looked at, and which of them are held out.

    Raises:
        ConfigurationError: The two and the data set are not of one backbone, the heads are the same, or the data set
            has too few prompts with several texts.
    """
    for name, backbone in ((old.name, old.backbone), (f"the data set {dataset.path}", dataset.backbone)):
        if (backbone.fingerprint, backbone.template_id) != (new.backbone.fingerprint, new.backbone.template_id):
            raise ConfigurationError(
                f"{new.name} is on {new.backbone.id}, and {name} on {backbone.id}, or on other weights or another "
                "template of it: only hidden states of one backbone can be compared"
            )
    if new.heads_id == old.heads_id:
        raise ConfigurationError(
            f"{new.name} and {old.name} have the same heads: what was measured with one holds for the other, unlinked"
        )
    found = _differences(dataset.text_prompt_N.astype(np.int64), np.random.default_rng(seed))
    if min(len(found.fitted), len(found.held_out)) < _FEWEST:
        raise ConfigurationError(
            f"the data set {dataset.path} has {len(found.fitted)} + {len(found.held_out)} differences between texts of "
            f"one prompt; {_FEWEST} to fit and {_FEWEST} to hold out are the least: embed more texts to each prompt"
        )
    A_new, A_old = new.A_KD.astype(np.float64), old.A_KD.astype(np.float64)
    diffs_new, diffs_old = _projected(dataset, found.fitted, np.vstack([A_new, A_old]), len(A_new))
    maps = maps_from_products(diffs_new.T @ diffs_new, diffs_new.T @ diffs_old, diffs_old.T @ diffs_old)
    held_out_ND = dataset.gather(found.held_out[:, 0]).astype(np.float64) - dataset.gather(found.held_out[:, 1])
    return MapFrom(
        heads_id=old.heads_id,
        checkpoint_id=old.checkpoint_id,
        name=old.name,
        maps=maps,
        start=old.start,
        fidelity=fidelity(maps, A_new, A_old, held_out_ND, prior_draws(old.start, _DRAWS, seed)),
        differences_fidelity=diffs_fidelity(maps, A_new, A_old, held_out_ND, prior_draws(new.start, _DRAWS, seed)).mean,
        differences=len(found.fitted),
        held_out=len(found.held_out),
        data=dataset.manifest.source.name,
    )


def _differences(prompt_N: IntArray, rng: np.random.Generator) -> _Differences:
    """Each text beside another one of its prompt, in a random order."""
    order = rng.permutation(len(prompt_N))
    order = order[np.argsort(prompt_N[order], kind="stable")]
    prompts, first, counts = np.unique(prompt_N[order], return_index=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    if len(several) >= _FEWEST_PROMPTS:
        held = rng.permutation(several)[: max(1, round(_HELD_OUT * len(several)))]
        is_held = np.isin(prompts, prompts[held])
        parts = [
            [order[first[i] : first[i] + counts[i]] for i in several if is_held[i] == wanted]
            for wanted in (False, True)
        ]
    else:
        parts = [[], []]
        for i in several:
            texts = order[first[i] : first[i] + counts[i]]
            cut = round((1 - _HELD_OUT) * len(texts))
            parts[0].append(texts[:cut])
            parts[1].append(texts[cut:])
    fitted, held_out = (
        rng.permutation(np.concatenate([np.zeros((0, 2), np.int64), *map(_beside, part)])) for part in parts
    )
    return _Differences(fitted[:_MOST_DIFFERENCES], held_out[:_MOST_HELD_OUT])


def _beside(texts: IntArray) -> IntArray:
    """Each text with the next ones in a circle, `_MOST_PARTNERS` at most, and no two twice: [n, 2]."""
    shifts = range(1, min(len(texts) // 2, _MOST_PARTNERS) + 1)
    circles = [np.stack([texts, np.roll(texts, -shift)], axis=1) for shift in shifts]
    if len(texts) % 2 == 0 and len(texts) // 2 in shifts:
        circles[-1] = circles[-1][: len(texts) // 2]  # half of the circle is the other half
    return np.concatenate([np.zeros((0, 2), np.int64), *circles])


def _projected(
    dataset: EmbeddedDataset, pairs: IntArray, heads_KD: npt.NDArray[np.float64], split: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Base-reward differences [N, K] of pairs, under the first `split` heads and under the others."""
    rows, place = np.unique(pairs, return_inverse=True)
    rewards_NK = np.empty((len(rows), len(heads_KD)))
    for begin in range(0, len(rows), _TEXTS_AT_ONCE):
        some = slice(begin, begin + _TEXTS_AT_ONCE)
        rewards_NK[some] = dataset.gather(rows[some]).astype(np.float64) @ heads_KD.T
    place = place.reshape(pairs.shape)
    diffs = rewards_NK[place[:, 0]] - rewards_NK[place[:, 1]]
    return diffs[:, :split], diffs[:, split:]
