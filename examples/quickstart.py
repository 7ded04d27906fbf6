"""Adapt a user to a few choices and score completions as they would. Run it beside `make serve`.

Usage: .venv/bin/python examples/quickstart.py [http://127.0.0.1:8000]

A server that wants keys takes one from the environment variable METAREWARD_API_KEY.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import httpx

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
choices = json.loads((Path(__file__).parent / "adapt.json").read_text())
candidates = json.loads((Path(__file__).parent / "score.json").read_text())
key = os.environ.get("METAREWARD_API_KEY")
headers = {"Authorization": f"Bearer {key}"} if key else {}

try:
    httpx.get(f"{url}/live")
except httpx.ConnectError:
    sys.exit(f"nothing answers at {url}: start the server first, with `make serve`")

with httpx.Client(base_url=url, headers=headers, timeout=60) as server:
    for user in ("nobody", "grace"):
        if user == "grace":
            server.post("/users/grace/adapt", json=choices).raise_for_status()
        answer = server.post("/score", json={**candidates, "user_id": user}).raise_for_status().json()
        print(f"{user} ({answer['user_state']}):")
        for index in answer["order"]:
            print(f"  {answer['rewards'][index]:+.2f}  {candidates['completions'][index].splitlines()[0][:70]}")
