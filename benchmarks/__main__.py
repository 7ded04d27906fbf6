"""`python -m benchmarks [NAME ...]`: run all benchmarks, or one with its options."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

DEFAULTS = ("solve", "score", "startup")
# These take minutes, or need data to be named.
OTHERS = (
    "score_redis",
    "maml",
    "fit",
    "footprint",
    "users_at_scale",
    "overload",
    "demo",
    "jester",
    "jester_over_http",
    "lore",
    "ceiling",
    "ceiling_new_texts",
    "suggest",
    "drift",
    "fidelity",
    "implicit",
    "carry_over",
    "vllm_environment",
    "vllm_peer",
    "packing",
    "equality",
    "gpu",
    "at_once",
    "single_samples",
    "client_import",
)
NAMES = DEFAULTS + OTHERS


def main() -> None:
    """Run the named benchmark, or every one with its defaults."""
    name, *options = sys.argv[1:] or [""]
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    if name in ("-h", "--help"):
        print(_help())
        return
    if name and name not in NAMES:
        raise SystemExit(f"no benchmark {name!r}; `python -m benchmarks --help` lists them")
    for chosen in [name] if name else DEFAULTS:
        print(f"== {chosen}")
        importlib.import_module(f"benchmarks.{chosen}").main(options)


def _help() -> str:
    """What each measures, from the first line of its module, which is not imported."""
    width = max(map(len, NAMES))
    lines = ["usage: python -m benchmarks [NAME [OPTIONS]]; NAME --help tells its options", ""]
    for title, names in (("Without a name:", DEFAULTS), ("By name; they take minutes, or need data:", OTHERS)):
        lines += [title, *(f"  {name:<{width}}  {_first_line(name)}" for name in names), ""]
    return "\n".join(lines).rstrip()


def _first_line(name: str) -> str:
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
