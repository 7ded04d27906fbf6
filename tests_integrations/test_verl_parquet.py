"""The data set of examples/verl_data.py as verl 0.9.1 reads it (`utils/dataset/rl_dataset.py`): parquet by datasets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from datasets import load_dataset
from deployment import Server
from metareward_client.verl import compute_score

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_rows_that_went_through_parquet_get_the_reward_of_score(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    train = tmp_path / "train.parquet"
    subprocess.run([sys.executable, EXAMPLES / "verl_data.py", EXAMPLES / "prompts.jsonl", train], check=True)
    rows = load_dataset("parquet", data_files=str(train), cache_dir=str(tmp_path / "cache"))["train"]
    asked = [json.loads(line) for line in (EXAMPLES / "prompts.jsonl").read_text().splitlines()]
    httpx.post(f"{server.url}/users/ada/adapt", json=json.loads((EXAMPLES / "adapt.json").read_text()), timeout=60)

    async def all_of_them() -> list[dict[str, float]]:
        return await asyncio.gather(
            *(
                compute_score(
                    data_source=row["data_source"],
                    solution_str="Oak.",
                    ground_truth=row["reward_model"]["ground_truth"],
                    extra_info=row["extra_info"],
                    base_url=server.url,
                )
                for row in rows
            )
        )

    items = [{"user_id": each["user_id"], "prompt": each["prompt"], "completions": ["Oak."]} for each in asked]
    results = httpx.post(f"{server.url}/score", json={"items": items}, timeout=60).raise_for_status().json()["results"]
    found = asyncio.run(all_of_them())
    assert [each["score"] for each in found] == pytest.approx([each["rewards"][0] for each in results], abs=1e-6)
    # One prompt, two people.
    assert found[0]["score"] != pytest.approx(found[3]["score"], abs=0.01)
