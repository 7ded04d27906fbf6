"""Users, their versions and their evidence as the API tells of them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final

import orjson

from service.operations.retention import RetainedHiddenStates, RetainedTexts, read_retained
from service.operations.said import is_tie
from service.operations.users import KeptAnswer, StoredEvidence, StoredUser, StoredVersion, UserExport

FORMAT: Final = "metareward-user-1"
# Evidence in one part of an export's stream.
_PART: Final = 500


def user_out(user: StoredUser) -> dict[str, Any]:
    """A `UserListed`."""
    return {
        "user_id": user.user_id,
        "version": user.version,
        "checkpoint_id": user.checkpoint_id,
        "weights": user.weights_K.tolist(),
        "pairs": user.pairs,
        "carried": user.carried,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
    }


def version_out(version: StoredVersion) -> dict[str, Any]:
    """A `VersionOut`."""
    return {
        "version": version.version,
        "cause": version.cause,
        "checkpoint_id": version.checkpoint_id,
        "pairs": version.pairs,
        "created_at": version.created_at,
        "current": version.current,
    }


def evidence_out(evidence: StoredEvidence, payload: bytes | None) -> dict[str, Any]:
    """An `EvidenceOut`."""
    retained = None if payload is None else read_retained(payload)
    return {
        "id": evidence.evidence_id,
        "kind": evidence.kind,
        "strength": evidence.grade if evidence.kind == "pair" else None,
        "tie": is_tie(evidence),
        "rating": evidence.grade if evidence.kind == "rating" else None,
        "ranks": evidence.ranks,
        "weight": evidence.weight,
        "source": evidence.source,
        "event_time": evidence.event_time,
        "heads_id": evidence.heads_id,
        "live": evidence.live,
        "texts": {"messages": retained.messages, "completions": retained.completions}
        if isinstance(retained, RetainedTexts)
        else None,
    }


def export_parts(export: UserExport) -> Iterator[bytes]:
    """A `UserExport`, part by part: a thread writes each of them, and the event loop is free in between."""
    user = user_out(export.user) | {
        "heads_id": export.user.heads_id,
        "posterior_factor": None if export.user.factor is None else export.user.factor.tolist(),
    }
    yield b'{"format":' + orjson.dumps(FORMAT) + b',"user":' + orjson.dumps(user) + b',"evidence":['
    for first in range(0, len(export.evidence), _PART):
        some = [_exported_evidence(each, export.retained) for each in export.evidence[first : first + _PART]]
        yield (b"," if first else b"") + orjson.dumps(some)[1:-1]
    yield b'],"versions":' + orjson.dumps([_exported_version(each) for each in export.versions])
    yield b',"answers":' + orjson.dumps([_exported_answer(each) for each in export.answers]) + b"}"


def _exported_evidence(evidence: StoredEvidence, retained: dict[str, bytes]) -> dict[str, Any]:
    payload = retained.get(evidence.evidence_id)
    kept = None if payload is None else read_retained(payload)
    return evidence_out(evidence, payload) | {
        "content_key": evidence.content_key.hex(),
        "group": None if evidence.group is None else evidence.group.hex(),
        "tilt": evidence.tilt,
        "base_rewards": evidence.base_rewards.tolist(),
        "hidden_states": _numbers(kept) if isinstance(kept, RetainedHiddenStates) else None,
    }


def _numbers(hidden: RetainedHiddenStates) -> dict[str, Any]:
    states_ND = hidden.states_ND
    return {"shape": list(states_ND.shape), "base64": base64.b64encode(states_ND.tobytes()).decode()}


def _exported_version(version: StoredVersion) -> dict[str, Any]:
    return version_out(version) | {
        "heads_id": version.heads_id,
        "weights": None if version.weights_K is None else version.weights_K.tolist(),
    }


def _exported_answer(kept: KeptAnswer) -> dict[str, Any]:
    return {"idempotency_key": kept.key, "expires_at": kept.expires_at, "answer": orjson.loads(kept.answer)}
