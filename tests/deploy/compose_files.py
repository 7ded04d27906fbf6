"""docker/compose*.yaml as Compose reads them: variables put in, later files on top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from programs import ROOT

FOLDER = ROOT / "docker"
VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:[-?])([^}]*))?\})")


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """`${A}`, `${A:-default}`, `${A:?message}` and `$$` replaced; a message for a variable that is empty is raised."""

    def value(found: re.Match[str]) -> str:
        name, operator, other = found.groups()
        if name is None:
            return "$"
        given = environment.get(name, "")
        if not given and operator == ":?":
            raise ValueError(f"{name}: {other}")
        return given or (other if operator == ":-" else "")

    return VARIABLE.sub(value, text)


def variables(text: str) -> set[str]:
    """The variables that a file asks for."""
    return {found[1] for found in VARIABLE.finditer(text) if found[1]}


def example_environment() -> dict[str, str]:
    """docker/.env.example, with every empty secret filled in."""
    lines = [line for line in (FOLDER / ".env.example").read_text().splitlines() if re.match(r"[A-Z_]+=", line)]
    pairs = dict(line.split("=", 1) for line in lines)
    return {name: value or ("" if "URL" in name else "0123456789abcdef" * 4) for name, value in pairs.items()}


def compose(*files: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The files, merged key by key."""
    merged: dict[str, Any] = {}
    for file in files or ("compose.yaml",):
        given = example_environment() if environment is None else environment
        merged = _merge(merged, yaml.safe_load(interpolate((FOLDER / file).read_text(), given)))
    return merged


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return {**below, **above, **{key: _merge(below[key], above[key]) for key in both}}
