"""The peer of /score: a FastAPI route of the same schema that computes nothing. Serves on the port given."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI

from service.api.schemas import ScoreOneRequest, ScoreOneResponse

app = FastAPI()


@app.post("/score", response_model=ScoreOneResponse)
async def score(body: ScoreOneRequest) -> ScoreOneResponse:
    """Answers with constants of the right shape."""
    count = len(body.completions)
    return ScoreOneResponse(
        user_id=body.user_id,
        user_state="adapted",
        version=1,
        rewards=[0.123456789] * count,
        reward_std=[0.123456789] * count,
        order=list(range(count)),
        best_probability=[0.123456789] * count,
        best_std=[0.123456789] * count,
        truncated=[],
        checkpoint_id="0" * 16,
        timings_ms={"user": 0.1, "total": 0.2},
    )


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
