"""The Dockerfile: linted, and every path, port and name in it compared with what it names."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from programs import ROOT, program, run

from service.settings import Settings

sys.path.insert(0, str(ROOT / "docker"))
import dockerfile

STAGES = dockerfile.read_stages()
TARGETS = {"api": ("port", "metrics_port"), "worker-cpu": ("worker_port", "worker_metrics_port")}
TARGETS["worker-cuda"] = TARGETS["worker-cpu"]
NOT_SETTINGS = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "HF_HOME"} | {
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
}


def instructions(target: str, word: str) -> list[dockerfile.Instruction]:
    return [i for stage in dockerfile.lineage(STAGES, target) for i in stage.instructions if i.word == word]


def default(setting: str) -> object:
    return Settings.model_fields[setting].default


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = program("hadolint", "`make install` brings it")
    assert run(hadolint, "--failure-threshold", "style", dockerfile.DOCKERFILE) == ""


def test_hadolint_would_say_it(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nRUN pip install torch\nCMD metareward serve\n")
    with pytest.raises(AssertionError, match="DL3007"):
        run(program("hadolint", "`make install` brings it"), careless)


def test_what_is_copied_exists_and_is_let_through() -> None:
    copied = {p for s in STAGES.values() for i in s.instructions if i.word == "COPY" for p in i.copied[1]}
    context = {path for path in copied if not path.startswith("/")}
    assert context == {"constraints.txt", "pyproject.toml", "README.md", "migrations", "service"}
    for path in context:
        files = [p for p in (ROOT / path).rglob("*") if p.is_file()] if (ROOT / path).is_dir() else [ROOT / path]
        kept = [str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts]
        assert kept
        assert not [file for file in kept if dockerfile.is_ignored(file)]


@pytest.mark.parametrize(
    "path", [".env", "docker/.env", ".git/config", "runs/data", "tests/conftest.py", "service/__pycache__/x.pyc"]
)
def test_what_must_not_get_into_an_image_is_kept_out(path: str) -> None:
    assert dockerfile.is_ignored(path)


def test_stages_copy_from_stages() -> None:
    for stage in STAGES.values():
        for instruction in stage.instructions:
            if instruction.word == "COPY" and instruction.copied[0]:
                assert instruction.copied[0] in STAGES
    assert set(TARGETS) <= set(STAGES)


def test_the_base_image_is_pinned() -> None:
    (base,) = {i.assignments["BASE_IMAGE"] for s in STAGES.values() for i in s.instructions if "BASE_IMAGE=" in i.rest}
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert {stage.base for stage in STAGES.values()} <= {"${BASE_IMAGE}", *STAGES}


def test_every_installed_version_is_constrained() -> None:
    lines = [i.rest for s in STAGES.values() for i in s.instructions if i.word == "RUN" and "pip install" in i.rest]
    assert len(lines) == 4
    for line in lines:
        assert line.count("pip install") == line.count("--constraint constraints.txt")


def test_only_the_worker_has_pytorch() -> None:
    def installed(name: str) -> str:
        return " ".join(i.rest for s in dockerfile.lineage(STAGES, name) for i in s.instructions if i.word == "RUN")

    assert "torch" in installed("build-worker")
    assert "torch" not in installed("build-api")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_somebody_by_number_and_gets_its_signals(target: str) -> None:
    assert instructions(target, "USER")[-1].rest == "10001:10001"
    assert instructions(target, "STOPSIGNAL")[-1].rest == "SIGTERM"
    assert instructions(target, "ENTRYPOINT")[-1].exec_form == ["metareward"]
    assert instructions(target, "CMD")[-1].exec_form == [target.partition("-")[0].replace("api", "serve")]


@pytest.mark.parametrize("target", TARGETS)
def test_ports_and_environment_are_those_of_the_settings(target: str) -> None:
    port, metrics_port = TARGETS[target]
    assert instructions(target, "EXPOSE")[-1].rest == f"{default(port)} {default(metrics_port)}"
    health = instructions(target, "HEALTHCHECK")[-1].exec_form
    assert health is not None
    assert health[:2] == ["python", "-c"]
    compile(health[2], "HEALTHCHECK", "exec")
    assert f"'{port.upper()}', '{default(port)}'" in health[2]
    names = {name for i in instructions(target, "ENV") for name in i.assignments} - NOT_SETTINGS
    assert names <= {name.upper() for name in Settings.model_fields}
    given = {name: value for i in instructions(target, "ENV") for name, value in i.assignments.items()}
    assert not [name for name in given if re.search("KEY|PASSWORD|SECRET|TOKEN$", name)]
