"""`python -m benchmarks [NAME ...]`: run all benchmarks, or one with its options."""

from __future__ import annotations

import importlib
import sys

DEFAULTS = ("solve", "score", "startup")
# These take minutes, or need data to be named.
OTHERS = (
    "score_redis",
    "maml",
    "fit",
    "footprint",
    "overload",
    "demo",
    "jester",
    "jester_over_http",
    "lore",
    "ceiling",
    "ceiling_new_texts",
    "vllm_environment",
    "vllm_peer",
    "packing",
    "equality",
    "gpu",
    "concurrent",
)
NAMES = DEFAULTS + OTHERS


def main() -> None:
    """Run the named benchmark, or every one with its defaults."""
    name, *options = sys.argv[1:] or [""]
    if name in ("-h", "--help") or (name and name not in NAMES):
        print(f"usage: python -m benchmarks [{'|'.join(NAMES)}] [options]")
        raise SystemExit(0 if name in ("-h", "--help") else 2)
    for chosen in [name] if name else DEFAULTS:
        print(f"== {chosen}")
        importlib.import_module(f"benchmarks.{chosen}").main(options)


if __name__ == "__main__":
    main()
