"""What every route that changes a user takes and answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Response

from service.api.json_route import json_response
from service.operations.changes import Changed

IdempotencyKey = Annotated[
    str | None,
    Header(description="Any string of yours, new for each call: a repeated call gets the first one's answer."),
]


def changed_response(changed: Changed, **more: Any) -> Response:
    """The answer to a change of a user; `more` are members of it."""
    outcome, report = changed.outcome, changed.outcome.report
    return json_response(
        {
            "user_id": outcome.user_id,
            "version": outcome.version,
            "cause": outcome.cause,
            "checkpoint_id": outcome.checkpoint_id,
            "weights": outcome.weights,
            **more,
            "pairs_stored": outcome.pairs_stored,
            "pairs_deleted": outcome.pairs_deleted,
            "pairs_total": outcome.pairs_total,
            "carried": outcome.carried,
            "left_out": outcome.left_out,
            "exact": outcome.exact,
            "support_before": {name: report[f"support_{name}_before"] for name in ("loss", "accuracy")},
            "support_after": {name: report[f"support_{name}_after"] for name in ("loss", "accuracy")},
            "replayed": outcome.replayed,
            "timings_ms": changed.timings_ms,
        }
    )


def adapted_response(changed: Changed, **more: Any) -> Response:
    """The answer to new evidence; `more` are members of it."""
    received = changed.outcome.pairs_received
    return changed_response(changed, pairs_received=received, evidence_ids=changed.evidence_ids, **more)
