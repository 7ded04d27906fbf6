"""A real vLLM behind the REST layer, started as `metareward checkpoint export-hf` says."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from models import random_llama
from servers import free_port

from benchmarks.random_checkpoint import checkpoint_on
from benchmarks.server import ServerProcess
from benchmarks.vllm_environment import SETTINGS, NoVllm, vllm_python
from benchmarks.worker import WorkerProcess
from service.backbone.golden import GOLDEN_TEXTS
from service.backbone.load import load_backbone
from service.training.export_hf import export_hf

START_TIMEOUT_S = 280.0
SCORE = {
    "user_id": "ada",
    "prompt": "Why do cats purr?",
    "completions": ["Mostly when content.", "The text ends as a turn ends.<|im_end|>", "<|endoftext|>", "word " * 200],
}
ADAPT = {"pairs": [{"prompt": "Why is the sky blue?", "chosen": "Scattering.", "rejected": "Great question!"}]}


def vllm() -> Path:
    try:
        return vllm_python()
    except NoVllm as reason:
        # An environment of 3 GB that nothing else needs: CI goes without.
        pytest.skip(str(reason))


@pytest.mark.timeout(600)
def test_the_rest_layer_over_a_real_vllm_gives_the_rewards_of_our_worker(tmp_path: Path) -> None:
    python = vllm()
    directory = random_llama(tmp_path / "llama", hidden_size=256, intermediate_size=512)  # no head size below 32
    backbone = load_backbone(str(directory), device="cpu", dtype="float32")
    checkpoint = checkpoint_on(backbone)
    checkpoint.save(tmp_path / "checkpoint")
    export = export_hf(checkpoint, tmp_path / "export")
    port = free_port()
    command = shlex.split(export.serve_command)
    command[command.index("--port") + 1] = str(port)
    environment = {**os.environ, **SETTINGS, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}
    log = tmp_path / "vllm.log"
    with log.open("w") as lines:
        process = subprocess.Popen(
            [str(python.with_name("vllm")), *command[1:], "--enforce-eager"],
            env=environment,
            cwd=tmp_path,
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(url):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        ids = [backbone.renderer.tokenise(*text, truncate=False).token_ids for text in GOLDEN_TEXTS]
        expected_BK = backbone.forward(ids).double().numpy() @ checkpoint.A_KD.T.astype(float)
        body = {"model": export.heads_id, "input": ids, "use_activation": False}
        rows = httpx.post(f"{url}/classify", json=body, timeout=60).raise_for_status().json()["data"]
        np.testing.assert_allclose([row["probs"] for row in rows], expected_BK, rtol=0, atol=1e-4)
        named = {"CHECKPOINT": str(tmp_path / "checkpoint")}
        with WorkerProcess(tmp_path / "worker", **named) as worker:
            of_vllm, of_worker = (
                rewards(tmp_path / f"data-{n}", each, named) for n, each in enumerate((url, worker.url))
            )
        np.testing.assert_allclose(of_vllm, of_worker, rtol=0, atol=1e-4)
        assert np.ptp(of_worker) > 0.1, "the completions are told apart"
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models").status_code == 200
    except httpx.TransportError:
        return False


def rewards(folder: Path, engine: str, named: dict[str, str]) -> list[float]:
    """What a server over this engine says before and after adapting."""
    with ServerProcess(folder, ENGINE_URL=engine, **named) as server, server.client() as client:
        assert client.get("/ready").json() == {"ready": True, "degraded": []}
        found = []
        for _ in range(2):
            found += client.post("/score", json=SCORE).raise_for_status().json()["rewards"]
            client.post("/users/ada/adapt", json=ADAPT).raise_for_status()
    return found
