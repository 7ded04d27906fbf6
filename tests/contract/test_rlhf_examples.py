"""Examples of RLHF stacks as they are written, against a server; only trainers, which need GPUs, are stood in for."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
HTTPX_PAGE = ROOT / "docs/rlhf/httpx.md"
SCORE = json.loads((EXAMPLES / "score.json").read_text())
# `python3 -m TRAINER ARGUMENTS` writes them down; everything else is Python as it is.
STAND_IN = """#!/bin/sh
test "$1" != -m || exec {python} -c 'import json, sys; json.dump(sys.argv[1:], open("{arguments}", "w"))' "$@"
exec {python} "$@"
"""
# What verl_data.py needs of pyarrow, which trainers bring and the server does not.
PYARROW = {
    "__init__.py": "class Table:\n    from_pylist = list\n",
    "parquet.py": "import json\ndef write_table(rows, path):\n    json.dump(rows, open(path, 'w'))\n",
}


class Launched:
    """What a launch script asked its trainer to do."""

    def __init__(self, script: str, url: str, folder: Path) -> None:
        stand_in, written = folder / "python3", folder / "arguments.json"
        stand_in.write_text(STAND_IN.format(python=shlex.quote(sys.executable), arguments=written))
        stand_in.chmod(0o755)
        (folder / "pyarrow").mkdir()
        for name, content in PYARROW.items():
            (folder / "pyarrow" / name).write_text(content)
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "METAREWARD_URL": url,
            "DATA": str(folder),
        }
        # From elsewhere: scripts find their files by themselves.
        subprocess.run([EXAMPLES / script, "more=1"], env=environment, cwd=folder, check=True, timeout=60)
        self.arguments: list[str] = json.loads(written.read_text())
        assert self.arguments[0] == "-m"
        self.trainer = self.arguments[1]
        assert self.arguments[-1] == "more=1"

    def hydra(self, name: str) -> str:
        """A value as verl is given it."""
        (value,) = (each.partition("=")[2] for each in self.arguments if each.lstrip("+").startswith(f"{name}="))
        return value

    def flag(self, name: str) -> str:
        """A value as OpenRLHF is given it."""
        return self.arguments[self.arguments.index(name) + 1]


def module_of(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("module_of_a_trainer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reward_of(api: httpx.Client, user: str | None, prompt: Any, completion: str) -> float:
    body = {"user_id": user, "prompt": prompt, "completions": [completion]}
    return float(api.post("/score", json=body).raise_for_status().json()["rewards"][0])


def test_the_verl_script_trains_on_rewards_of_its_data(
    server: ServerProcess, api: httpx.Client, tmp_path: Path
) -> None:
    launched = Launched("verl_grpo.sh", server.url, tmp_path)
    assert launched.trainer == "verl.trainer.main_ppo"
    rows = json.loads(Path(launched.hydra("data.train_files")).read_text())
    options = "reward.custom_reward_function"
    score = getattr(module_of(launched.hydra(f"{options}.path")), launched.hydra(f"{options}.name"))
    base_url, timeout = (launched.hydra(f"{options}.reward_kwargs.{each}") for each in ("base_url", "timeout"))

    async def all_of_them() -> list[dict[str, float]]:
        ground_truth = [row["reward_model"]["ground_truth"] for row in rows]
        return await asyncio.gather(
            *(
                score(row["data_source"], "Oak.", truth, row["extra_info"], base_url=base_url, timeout=float(timeout))
                for row, truth in zip(rows, ground_truth, strict=True)
            )
        )

    expected = [reward_of(api, row["extra_info"]["user_id"], row["prompt"], "Oak.") for row in rows]
    assert [found["score"] for found in asyncio.run(all_of_them())] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("script", ["openrlhf_file.sh", "openrlhf_url.sh"])
def test_the_openrlhf_scripts_train_on_rewards_of_their_data(
    server: ServerProcess, api: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    launched = Launched(script, server.url, tmp_path)
    assert launched.trainer == "openrlhf.cli.train_ppo_ray"
    remote = launched.flag("--reward.remote_url")
    rows = [json.loads(line) for line in Path(launched.flag("--data.prompt_dataset")).read_text().splitlines()]
    monkeypatch.setenv("METAREWARD_URL", server.url)
    found, expected = [], []
    for row in rows:
        messages, label = row[launched.flag("--data.input_key")], row[launched.flag("--data.label_key")]
        # --data.apply_chat_template, of a policy such as Qwen's.
        prompt = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)
        prompt += "<|im_start|>assistant\n"
        sample = {"query": [f"{prompt}Oak.<|im_end|>"], "prompts": [prompt], "labels": [label]}
        if remote.endswith(".py"):
            answer = module_of(remote).reward_func(*sample.values())
        else:
            answer = httpx.post(remote, json=sample).raise_for_status().json()
        found.append(answer["rewards"][0])
        expected.append(reward_of(api, json.loads(label)["user_id"], messages, "Oak."))
    assert found == pytest.approx(expected, abs=1e-6)


def best_of_n(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / "best_of_n_httpx.py", *arguments],
        env={"PATH": os.environ["PATH"], "METAREWARD_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def busy_server(server: ServerProcess) -> Iterator[tuple[str, list[int]]]:
    """What stands before the server and is busy twice, once without saying for how long; and what it answered."""
    answered: list[int] = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(answered) < 2:
                status, content = 503, b"busy"
            else:
                answer = httpx.post(server.url + self.path, content=body, headers={"Content-Type": "application/json"})
                status, content = answer.status_code, answer.content
            self.send_response(status)
            if not answered:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            answered.append(status)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{busy.server_port}", answered
        busy.shutdown()


def test_best_of_n_over_plain_http_waits_for_a_busy_server(
    busy_server: tuple[str, list[int]], api: httpx.Client, fresh_user: str
) -> None:
    api.post(f"/users/{fresh_user}/adapt", json=json.loads((EXAMPLES / "adapt.json").read_text())).raise_for_status()
    url, answered = busy_server
    hers, everybodys = best_of_n(url, fresh_user), best_of_n(url)
    assert answered == [503, 503, 200, 200]
    assert hers.stdout.rstrip("\n") == SCORE["completions"][1], "she likes it plain"
    assert everybodys.stdout.rstrip("\n") == SCORE["completions"][0]
    assert hers.stderr.startswith(f"{fresh_user} (adapted):")
    assert everybodys.stderr.startswith("everybody (population):")


def test_best_of_n_over_plain_http_says_what_is_wrong(server: ServerProcess, tmp_path: Path) -> None:
    refused = best_of_n(server.url, "no spaces, please")
    assert refused.returncode == 1
    assert "422" in refused.stderr
    assert "user_id" in refused.stderr
    nobody_there = best_of_n("http://127.0.0.1:9", METAREWARD_TIMEOUT_S="0.5")
    assert nobody_there.returncode == 1
    assert "no answer within 0.5 s" in nobody_there.stderr


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.mark.parametrize("stack", ["verl", "openrlhf"])
def test_the_data_of_a_page_is_read_by_its_reward_function(
    server: ServerProcess,
    api: httpx.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stack: str,
) -> None:
    monkeypatch.setenv("METAREWARD_URL", server.url)
    monkeypatch.chdir(tmp_path)
    pyarrow = types.ModuleType("pyarrow")
    pyarrow.parquet = types.SimpleNamespace(write_table=lambda *_: None)  # type: ignore[attr-defined]
    pyarrow.Table = types.SimpleNamespace(from_pylist=list)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", pyarrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", pyarrow.parquet)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / f"docs/rlhf/{stack}.md", "python"):
        exec(compile(block, stack, "exec"), names)
    for (user, text), row in zip(names["asked"], names["rows"], strict=True):
        if stack == "verl":
            # The page's own: the user does not see what is thought.
            answer = names["compute_score"](row["data_source"], "<think>Hm.</think>Oak.", "", row["extra_info"])
            found = asyncio.run(answer)["score"]
        else:
            found = names["reward_func"](["[user] ... [/] Oak.</s>"], ["[user] ... [/] "], [row["label"]])["rewards"][0]
        assert found == pytest.approx(reward_of(api, user, text, "Oak."), abs=1e-6)


def test_the_page_of_plain_http_runs_as_written(
    server: ServerProcess, fresh_user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(text: str) -> str:
        # Other tests have an Ada of their own.
        for ada in ('"ada"', "/ada/"):
            text = text.replace(ada, ada.replace("ada", fresh_user))
        return text.replace("http://127.0.0.1:8000", server.url)

    names: dict[str, Any] = {}
    for block in blocks(HTTPX_PAGE, "python"):
        exec(compile(here(block), str(HTTPX_PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "'user_state': 'adapted', 'version': 1" in printed
    assert "best of n: Gloves on" in printed
    assert "None population" in printed
    commands = [line for block in blocks(HTTPX_PAGE, "sh") for line in block.replace("\\\n", " ").splitlines()]
    answers = [
        json.loads(
            subprocess.run([*shlex.split(here(command)), "--fail-with-body"], capture_output=True, check=True).stdout
        )
        for command in commands
    ]
    assert [answer["version"] for answer in answers] == [2, 2]
