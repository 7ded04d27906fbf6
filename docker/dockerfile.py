"""docker/Dockerfile, read: stages and their instructions, and what .dockerignore keeps out."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = Path(__file__).parent / "Dockerfile"
DOCKERIGNORE = Path(__file__).parent / "Dockerfile.dockerignore"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word in upper case and the rest, continuation lines joined and comments dropped."""

    word: str
    rest: str

    @property
    def exec_form(self) -> list[str] | None:
        """The command where it is a JSON array (of a HEALTHCHECK: after CMD), else None."""
        text = self.rest[self.rest.index("CMD") + 3 :].strip() if self.word == "HEALTHCHECK" else self.rest
        return json.loads(text) if text.startswith("[") else None

    @property
    def copied(self) -> tuple[str | None, list[str], str]:
        """Of a COPY: the stage it copies from (None: the context), sources, destination."""
        words = shlex.split(self.rest)
        stage = next((w.removeprefix("--from=") for w in words if w.startswith("--from=")), None)
        paths = [w for w in words if not w.startswith("--")]
        return stage, paths[:-1], paths[-1]

    @property
    def assignments(self) -> dict[str, str]:
        """Of ENV, ARG or LABEL: names and values, not expanded."""
        words = (word.partition("=") for word in shlex.split(self.rest))
        return {name: value for name, _, value in words}


@dataclass
class Stage:
    """One FROM, what it is called, and what follows."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)


def read_stages(path: Path = DOCKERFILE) -> dict[str, Stage]:
    """The stages by name, in order. ARGs before the first FROM are given to every stage."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    current, shared = None, []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        instruction = Instruction(word.upper(), rest.strip())
        if instruction.word == "FROM":
            base, _, name = instruction.rest.partition(" AS ")
            current = stages[name] = Stage(base.strip(), name.strip(), list(shared))
        elif current is None:
            shared.append(instruction)
        else:
            current.instructions.append(instruction)
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those it is FROM, the oldest first."""
    stage = stages[name]
    return [*(lineage(stages, stage.base) if stage.base in stages else []), stage]


def is_ignored(path: str, patterns: list[str] | None = None) -> bool:
    """Whether a path of the context is kept out: the last pattern that matches it or a folder of it decides."""
    if patterns is None:
        lines = (line.strip() for line in DOCKERIGNORE.read_text().splitlines())
        patterns = [line for line in lines if line and not line.startswith("#")]
    ignored = False
    parts = Path(path).parts
    for pattern in patterns:
        wanted = pattern.removeprefix("!").strip("/")
        folders = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        anywhere = wanted.removeprefix("**/")
        if any(
            fnmatch.fnmatchcase(folder, wanted) and folder.count("/") == wanted.count("/") for folder in folders
        ) or (anywhere != wanted and any(fnmatch.fnmatchcase(part, anywhere) for part in parts)):
            ignored = not pattern.startswith("!")
    return ignored
