"""Candidate responses in the order that one person would like them in, by Cohere's own client.

Usage: python examples/rerank_cohere.py, beside `make serve`. Needs cohere (7.3.1 was tried), which brings httpx.
METAREWARD_URL names the server; one that wants keys takes one of the role `adapt` from METAREWARD_API_KEY.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import cohere
import httpx

URL = os.environ.get("METAREWARD_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("METAREWARD_API_KEY", "none")  # Cohere's client insists on one


def main() -> None:
    """Tell the server what Ada chose, then rerank for her and for nobody in particular."""
    here = Path(__file__).parent
    choices, question = (json.loads((here / name).read_text()) for name in ("adapt.json", "score.json"))
    told = httpx.post(f"{URL}/users/ada/adapt", json=choices, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    told.raise_for_status()

    reranker = cohere.ClientV2(base_url=URL, api_key=KEY)
    for who, model in (("ada", "@ada"), ("nobody", "")):
        ranked = reranker.rerank(model=model, query=question["prompt"], documents=question["completions"], top_n=2)
        print(f"{who}:")
        for each in ranked.results:
            text = " ".join(question["completions"][each.index].split())
            print(f"  {each.relevance_score:.2f}  {text[:60]}")


if __name__ == "__main__":
    main()
