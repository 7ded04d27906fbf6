"""An installation without torch says what to do instead of ending in a traceback."""

from __future__ import annotations

import importlib.util

import pytest

from service.backbone import load
from service.errors import BackboneError


def test_a_backbone_without_torch_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(load, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(BackboneError, match=r"ENGINE_URL.*metareward\[minilm\]"):
        load.load_backbone("minilm")
