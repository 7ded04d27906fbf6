from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from people import make_people
from typer.testing import CliRunner

from service.checkpoints import load_checkpoint
from service.cli.evaluate import evaluate
from service.cli.train import train
from service.errors import InvalidInput

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(train)
app.command()(evaluate)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_train_then_evaluate(tmp_path: Path) -> None:
    make_people(spread=2.0).write(tmp_path / "data")
    output = tmp_path / "checkpoint"
    said = run("train", "--data", tmp_path / "data", "--output", output, "--heads", 3, "--seed", 2, "--name", "tiny")
    checkpoint = load_checkpoint(output)
    assert checkpoint.checkpoint_id in said
    assert (checkpoint.name, checkpoint.training["seed"]) == ("tiny", 2)
    assert json.loads((output / "training.json").read_text())["summary"]["heads"] == 3

    numbers, plots = tmp_path / "out" / "evaluation.json", tmp_path / "plots"
    arguments = ("--checkpoint", output, "--data", tmp_path / "data", "--json", numbers, "--plots", plots)
    said = run("evaluate", *arguments, "--shots", "0,10,30")
    assert "tuned BT" in said
    report = json.loads(numbers.read_text())
    assert report["checkpoint_id"] == checkpoint.checkpoint_id
    assert [row["shots"] for row in report["by_shots"]] == [0, 10, 30]
    assert report["users"] == 12
    # these people differ much and say so often: what they chose must help
    assert report["by_shots"][2]["accuracy"] > report["baseline"]["accuracy"] + 0.05
    for name in ("accuracy.png", "calibration.png", "gains.png"):
        assert (plots / name).read_bytes().startswith(b"\x89PNG")

    said = run("evaluate", "--checkpoint", output, "--data", tmp_path / "data", "--shots", "0", "--no-baseline")
    assert "tuned BT" not in said


def test_a_split_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    people = make_people()
    people.write(tmp_path / "data", warm=people.table, cold=people.table)
    with pytest.raises(InvalidInput, match="choose one of"):
        run("train", "--data", tmp_path / "data", "--output", tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_checkpoint_of_another_split_of_the_data_is_told(tmp_path: Path) -> None:
    people = make_people()
    people.write(tmp_path / "data", one=people.table, two=people.table)
    data = ("--data", tmp_path / "data")
    run("train", *data, "--split", "one", "--output", tmp_path / "checkpoint", "--heads", 2)
    judge = ("evaluate", *data, "--checkpoint", tmp_path / "checkpoint", "--shots", "0", "--no-baseline", "--split")
    assert "may have taught it" in run(*judge, "two")
    assert "may have taught it" not in run(*judge, "one")


@pytest.mark.parametrize("shots", ["five", "5,,10", "-1"])
def test_impossible_shots_are_refused(tmp_path: Path, shots: str) -> None:
    with pytest.raises(InvalidInput, match="--shots"):
        run("evaluate", "--checkpoint", tmp_path, "--data", tmp_path, f"--shots={shots}")
