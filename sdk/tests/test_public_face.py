"""What is promised of the package as a whole: its names, its twins, its tree of errors, and what it needs."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import metareward_client as mc
from metareward_client import errors

PACKAGE = Path(mc.__file__).parent
MODULES = ["metareward_client", *(f"metareward_client.{found.name}" for found in pkgutil.iter_modules([str(PACKAGE)]))]


def public_methods(cls: type) -> dict[str, Any]:
    return {
        name: method
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and not (hasattr(method, "__qualname__") and "BaseModel" in method.__qualname__)
    }


def test_both_clients_have_the_same_methods() -> None:
    blocking, awaited = public_methods(mc.Client), public_methods(mc.AsyncClient)
    assert blocking.keys() == awaited.keys()
    assert {"score", "score_many", "reward", "rerank", "adapt", "feedback", "erase", "close"} <= blocking.keys()
    for name, method in blocking.items():
        assert inspect.signature(method) == inspect.signature(awaited[name]), name
        assert method.__doc__ == awaited[name].__doc__, name
        assert inspect.iscoroutinefunction(awaited[name]), name
    assert inspect.signature(mc.Client) == inspect.signature(mc.AsyncClient)


def test_every_public_name_is_documented() -> None:
    assert mc.__all__ == sorted(mc.__all__, key=str.lower)
    for name in mc.__all__:
        found = getattr(mc, name)
        if name in ("Event", "Prompt"):
            assert re.search(rf'^{name} = .*?^"""\w', (PACKAGE / "requests.py").read_text(), re.MULTILINE | re.DOTALL)
            continue
        assert found.__module__.startswith("metareward_client"), name
        assert found.__dict__.get("__doc__", "").strip(), name
        for method_name, method in public_methods(found).items():
            if method.__module__.startswith("metareward_client"):
                assert method.__doc__, f"{name}.{method_name}"
    for module in MODULES:
        assert importlib.import_module(module).__doc__, module


@pytest.mark.parametrize("name", ["score", "score_many", "reward", "rerank", "adapt", "feedback", "suggest"])
def test_every_argument_is_explained(name: str) -> None:
    method = getattr(mc.Client, name)
    explained = set(re.findall(r"^    (\w+): ", inspect.getdoc(method) or "", re.MULTILINE))
    assert explained == inspect.signature(method).parameters.keys() - {"self"}


def test_every_setting_is_explained() -> None:
    settings = (inspect.getdoc(mc.Client) or "").partition("Args:")[2].partition("Raises:")[0]
    explained = set(re.findall(r"^    (\w+): ", settings, re.MULTILINE))
    assert explained == inspect.signature(mc.Client).parameters.keys()


def drawn_tree() -> dict[str, str | None]:
    """Each class of the drawing in the docstring of `errors`, with the one that it hangs on."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:[│ ]   )*)([├└]── )?([A-Z]\w+)(?:  |$)", line)
        if match:
            depth = len(match[1]) // 4 + bool(match[2])
            parents[match[3]] = above[depth - 1] if depth else None
            above[depth:] = [match[3]]
    return parents


def test_the_tree_of_errors_is_as_drawn() -> None:
    real: dict[str, str | None] = {}
    for name, found in inspect.getmembers(errors, inspect.isclass):
        if issubclass(found, BaseException):
            of_ours = [base.__name__ for base in found.__bases__ if base.__module__ == errors.__name__]
            real[name] = of_ours[0] if of_ours else None
    assert drawn_tree() == real
    assert real["MetarewardError"] is None
    assert real.keys() <= set(mc.__all__)


@pytest.mark.parametrize("name", sorted(drawn_tree()))
def test_every_error_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("What happened.", status=418, request_id="r1", idempotency_key="k1", kind="tea")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__
    assert str(again) == "What happened. (status 418, request r1)"


def test_what_is_public_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    for cls in (mc.Client, mc.AsyncClient):
        for name, method in public_methods(cls).items():
            hints = inspect.get_annotations(method)
            assert hints.keys() == inspect.signature(method).parameters.keys() - {"self"} | {"return"}, name


@pytest.mark.parametrize(
    ("program", "not_yet"),
    [
        ("import metareward_client", {"pydantic", "asyncio", "httpx"}),
        ("from metareward_client import MetarewardError", {"pydantic", "asyncio", "httpx"}),
        (
            "from metareward_client import Client; Client()",
            {"asyncio", "httpx", "numpy", "torch", "service"},
        ),
        ("from metareward_client import AsyncClient; AsyncClient()", {"httpx", "httpcore", "numpy", "torch"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(program: str, not_yet: set[str]) -> None:
    program += "; import sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not_yet & set(found.split()) == set()


def test_what_is_not_there_is_missed_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        mc.Clinet  # type: ignore[attr-defined] # noqa: B018
    assert set(mc.__all__) <= set(dir(mc))
    assert mc.errors.NotFound is mc.NotFound


def test_requests_and_answers_are_values() -> None:
    pair = mc.Pair(prompt="p", chosen="a", rejected="b")
    assert pair == mc.Pair(prompt="p", chosen="a", rejected="b")
    assert pickle.loads(pickle.dumps(pair)) == pair
    with pytest.raises(ValueError, match="frozen"):
        pair.chosen = "c"  # type: ignore[misc]
    with pytest.raises(ValueError, match="colour"):
        mc.Pair(prompt="p", chosen="a", rejected="b", colour="red")  # type: ignore[call-arg]
    assert typing.get_type_hints(mc.ScoreItem)["user_id"] == str | None


README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_readme_has_the_same_tree_and_the_same_settings() -> None:
    tree = [line for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    assert [line for line in README.splitlines() if line.startswith("    ") and line.strip() in "\n".join(tree)] == tree
    rows = README.partition("## Settings")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) == list(inspect.signature(mc.Client).parameters)


def test_the_readme_names_every_method() -> None:
    named = set(re.findall(r"`(\w+)[`(]", README.partition("## Methods")[2].partition("\n## ")[0]))
    assert public_methods(mc.Client).keys() - {"close"} <= named
