"""An example of every answer, for the OpenAPI document. The examples of requests stand beside their models."""

from __future__ import annotations

from typing import Any, Final

_CHECKPOINT_ID: Final = "c8125af2ad0645cf"
_HEADS_ID: Final = "0f3a6c1d2b4e5f60"
_WEIGHTS: Final = [-0.187, -0.448, 0.057]
_SCORED: Final[dict[str, Any]] = {
    "user_id": "ada",
    "user_state": "adapted",
    "version": 1,
    "rewards": [3.277, 1.732],
    "reward_std": [1.988, 1.297],
    "order": [0, 1],
    "best_probability": [0.5, 0.824],
    "best_std": [0.0, 1.512],
    "truncated": [],
    "carried": None,
}
_COLD: Final[dict[str, Any]] = {**_SCORED, "user_id": "bob", "user_state": "cold_start", "version": 0}
_NOBODYS: Final[dict[str, Any]] = {**_SCORED, "user_id": None, "user_state": "population", "version": 0}
_USER: Final[dict[str, Any]] = {
    "user_id": "ada",
    "version": 1,
    "checkpoint_id": _CHECKPOINT_ID,
    "weights": _WEIGHTS,
    "pairs": 8,
    "carried": None,
    "created_at": "2026-01-02T03:04:05Z",
    "updated_at": "2026-01-02T03:04:05Z",
}
_VERSION: Final[dict[str, Any]] = {
    "version": 1,
    "cause": "adapt",
    "checkpoint_id": _CHECKPOINT_ID,
    "pairs": 8,
    "created_at": "2026-01-02T03:04:05Z",
    "current": True,
}
_EVIDENCE: Final[dict[str, Any]] = {
    "id": "pair-7",
    "kind": "pair",
    "strength": 2.5,
    "tie": False,
    "rating": None,
    "ranks": None,
    "weight": 1.0,
    "source": None,
    "event_time": "2026-01-02T03:04:05Z",
    "heads_id": _HEADS_ID,
    "live": True,
    "texts": None,
}
_CHANGE: Final[dict[str, Any]] = {
    "user_id": "ada",
    "version": 1,
    "cause": "adapt",
    "checkpoint_id": _CHECKPOINT_ID,
    "weights": _WEIGHTS,
    "pairs_stored": 8,
    "pairs_deleted": 0,
    "pairs_total": 8,
    "carried": 0,
    "left_out": 0,
    "exact": None,
    "support_before": {"loss": 1.093, "accuracy": 0.0},
    "support_after": {"loss": 0.12, "accuracy": 1.0},
    "replayed": False,
    "timings_ms": {"tokenise": 1.9, "engine": 58.0, "solve": 0.3, "store": 2.1, "total": 62.5},
}
_RERANKED: Final[dict[str, Any]] = {
    "id": "9f86d081884c7d65",
    "results": [
        {"index": 0, "relevance_score": 0.9636, "reward": 3.277, "reward_std": 1.988},
        {"index": 1, "relevance_score": 0.8497, "reward": 1.732, "reward_std": 1.297},
    ],
    "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}, "warnings": []},
    "user_id": "ada",
    "user_state": "adapted",
    "version": 1,
    "checkpoint_id": _CHECKPOINT_ID,
    "truncated": [],
}
_TIMINGS_MS: Final = {"user": 0.01, "tokenise": 1.2, "engine": 31.0, "total": 32.4}

SELF_CHECK: Final[dict[str, Any]] = {
    "passed": True,
    "workers": [
        {
            "worker": "here",
            "status": "passed",
            "detail": "float32: batched 3.6e-07 (at most 0.001), neighbours 0.0e+00 (at most 0.001), ...",
            "dtype": "float32",
            "comparisons": [
                {"against": "batched", "difference": 3.6e-07, "tolerance": 0.001, "passed": True},
                {"against": "neighbours", "difference": 0.0, "tolerance": 0.001, "passed": True},
                {"against": "recorded", "difference": 4.1e-07, "tolerance": 0.001, "passed": True},
            ],
        }
    ],
    "seconds": 0.41,
    "ended_at": 1767323045.5,
}

_CHECKPOINT: Final[dict[str, Any]] = {
    "checkpoint_id": _CHECKPOINT_ID,
    "name": "spring",
    "heads_id": _HEADS_ID * 4,
    "heads": 8,
    "recipe": "map",
    "backbone": "minilm",
    "active": True,
    "shadow": False,
    "previous": False,
    "healthy": True,
    "maps": [],
    "agreement": None,
}
CHECKPOINTS: Final[dict[str, Any]] = {
    "active": _CHECKPOINT_ID,
    "generation": 4,
    "changed_at": "2026-01-02T03:04:05Z",
    "checkpoints": [
        _CHECKPOINT,
        {
            **_CHECKPOINT,
            "checkpoint_id": "1f3a5c7e9b2d4f60",
            "name": "summer",
            "heads_id": "1d2b4e5f600f3a6c" * 4,
            "heads": 16,
            "active": False,
            "shadow": True,
            "maps": [
                {
                    "from_name": "spring",
                    "from_checkpoint_id": _CHECKPOINT_ID,
                    "from_heads_id": _HEADS_ID * 4,
                    "fidelity": 0.97,
                    "fidelity_low": 0.93,
                    "differences_fidelity": 0.91,
                    "used": True,
                }
            ],
            "agreement": {
                "items": 5120,
                "same_best": 0.91,
                "kendall_tau": 0.84,
                "probability_difference": 0.04,
                "dropped": 3,
                "failed": 0,
            },
        },
    ],
}

# By the name of the model.
ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "AdaptResponse": {**_CHANGE, "pairs_received": 8, "evidence_ids": [f"p{i}" for i in range(1, 9)]},
    "FeedbackResponse": {
        **_CHANGE,
        "cause": "feedback",
        "pairs_received": 9,
        "evidence_ids": ["copy-7", *(f"e{i}" for i in range(2, 10))],
        "events_received": 6,
        "stored_by_source": {"chosen": 4, "copied": 1, "dwell": 3},
    },
    "SuggestResponse": {
        "user_id": "ada",
        "user_state": "adapted",
        "version": 1,
        "suggestions": [
            {"candidate": 0, "a": 1, "b": 2, "information_gain_nats": 0.113, "preference_probability": 0.41},
            {"candidate": 1, "a": 0, "b": 1, "information_gain_nats": 0.047, "preference_probability": 0.68},
        ],
        "truncated": [[], []],
        "checkpoint_id": _CHECKPOINT_ID,
        "timings_ms": _TIMINGS_MS,
    },
    "ChangeResponse": {
        **_CHANGE,
        "version": 3,
        "cause": "rollback",
        "pairs_deleted": 2,
        "exact": True,
        "timings_ms": {"solve": 0.3, "store": 2.1},
    },
    "VersionPage": {"versions": [_VERSION], "next": None},
    "EvidencePage": {"evidence": [_EVIDENCE], "next": None},
    "UserExport": {
        "format": "metareward-user-1",
        "user": {**_USER, "heads_id": _HEADS_ID, "posterior_factor": [0.9, 0.1, 0.8, 0.0, -0.1, 0.7]},
        "evidence": [
            {
                **_EVIDENCE,
                "content_key": "5d" * 32,
                "group": None,
                "tilt": 0.0,
                "base_rewards": [0.31, -0.2, 0.05],
                "hidden_states": None,
            }
        ],
        "versions": [{**_VERSION, "heads_id": _HEADS_ID, "weights": _WEIGHTS}],
        "answers": [],
    },
    "ScoreOneResponse": {**_SCORED, "checkpoint_id": _CHECKPOINT_ID, "timings_ms": _TIMINGS_MS},
    "ScoreManyResponse": {
        "results": [_SCORED, _COLD, _NOBODYS],
        "checkpoint_id": _CHECKPOINT_ID,
        "timings_ms": _TIMINGS_MS,
    },
    "ClassifyAnswer": {
        "id": "classify-9f86d081884c7d65",
        "object": "list",
        "created": 1767323045,
        "model": "demo@ada",
        "data": [{"index": 0, "label": "LABEL_0", "probs": [3.277], "num_classes": 1}],
        "usage": {"prompt_tokens": 17, "total_tokens": 17, "completion_tokens": 0},
    },
    "RewardModelsOut": {
        "object": "list",
        "data": [
            {
                "id": "demo",
                "object": "model",
                "created": 1767323045,
                "owned_by": "metareward",
                "root": "minilm",
                "parent": None,
                "max_model_len": 512,
            }
        ],
    },
    "GetRewardResponse": {
        "rewards": [3.277, 0.412],
        "scores": [0.964, 0.602],
        "extra_logs": {"cold_start": [0.0, 1.0], "truncated": [0.0, 0.0], "reward_std": [1.988, 2.417]},
    },
    "CohereRerankResponse": _RERANKED,
    "JinaRerankResponse": {
        **_RERANKED,
        "model": "demo",
        "object": "list",
        "usage": {"total_tokens": 42},
        "results": [{**_RERANKED["results"][0], "document": {"text": "- Gloves on\n- New pot, gritty soil"}}],
        "meta": {**_RERANKED["meta"], "api_version": {"version": "1"}},
    },
    "UserOut": {**_USER, "drift": 0.0, "half_life_days": None},
    "UserPage": {"users": [_USER], "next": None},
    "InfoOut": {
        "version": "0.1.0",
        "checkpoint": {"name": "demo", "checkpoint_id": _CHECKPOINT_ID, "recipe": "map", "heads": 8},
        "checkpoints": [{"name": "demo", "checkpoint_id": _CHECKPOINT_ID, "heads": 8, "active": True, "shadow": False}],
        "backbone": {"id": "minilm", "hidden_size": 384, "max_tokens": 512, "dtype": "float32", "device": "cpu"},
        "limits": {"max_pairs": 1000, "max_completions": 4096, "max_text_bytes": 262144},
    },
    "LiveOut": {"live": True},
    "ReadyOut": {"ready": True, "degraded": []},
    "SelfCheckOut": SELF_CHECK,
    "CheckpointsOut": CHECKPOINTS,
    "Problem": {
        "type": "urn:metareward:problem:invalid-input",
        "title": "Invalid input",
        "status": 422,
        "detail": "1 problem with the request; nothing was done.",
        "request_id": "9f86d081884c7d65",
        "errors": [{"field": "pairs[0].chosen", "message": "is empty; send the text that the user saw"}],
    },
}
