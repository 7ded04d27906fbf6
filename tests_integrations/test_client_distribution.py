"""What an installation of the client brings, in an environment that had nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Walks the requirements that have no extra, as pip does.
NEEDED = """
import importlib.metadata, json, re
def needs(name, found):
    for line in importlib.metadata.requires(name) or []:
        requirement, _, marker = line.partition(";")
        other = re.split(r"[^A-Za-z0-9._-]", requirement.strip())[0]
        if "extra" not in marker and other not in found and is_installed(other):
            found.add(other)
            needs(other, found)
    return found
def is_installed(name):
    try:
        return bool(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False
def same(names):
    return sorted({re.sub(r"[-_.]+", "-", name).lower() for name in names})
everything = [each.metadata["Name"] for each in importlib.metadata.distributions()]
asked = importlib.metadata.requires("metareward-client")
print(json.dumps([asked, same(needs("metareward-client", {"metareward-client"})), same(everything)]))
"""


def test_it_brings_httpx_and_pydantic_and_what_they_need_and_types(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "-c", "constraints.txt", "./sdk"], cwd=ROOT, check=True)
    answer = subprocess.run([python, "-c", NEEDED], capture_output=True, text=True, check=True, cwd=tmp_path)
    asked, needed, everything = json.loads(answer.stdout)
    assert sorted(each.split(">")[0] for each in asked) == ["httpx", "pydantic"]
    assert set(everything) - {"pip", "setuptools"} == set(needed)
    names = "from metareward_client import AsyncClient, Client; import metareward_client as m; print(m.__file__)"
    home = subprocess.run([python, "-c", names], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert Path(home.stdout.strip()).with_name("py.typed").exists()
