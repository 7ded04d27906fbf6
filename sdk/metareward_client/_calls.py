"""Every endpoint as a function that makes its call; the only place that knows paths."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from metareward_client import answers, requests
from metareward_client._call import Call, body_of, reader
from metareward_client.answers import Score, Scores
from metareward_client.errors import FieldError, InvalidRequest, UnexpectedAnswer
from metareward_client.requests import PromptLike

_KEY = re.compile(r"[!-~]{1,255}")


def score(
    prompt: PromptLike,
    completions: Sequence[str],
    *,
    user_id: str | None,
    min_version: int,
    truncate: bool,
    return_base_rewards: bool,
    return_pairwise: bool,
) -> Call[Score]:
    """POST /score for one prompt."""
    completions = _listed(completions)
    body = body_of(
        requests.ScoreRequest,
        {
            "prompt": _listed(prompt),
            "completions": completions,
            "user_id": user_id,
            "min_version": min_version,
            "truncate": truncate,
            "return_base_rewards": return_base_rewards,
            "return_pairwise": return_pairwise,
        },
    )
    read = reader(Score)
    return Call("POST", "/score", lambda answer: _whole(read(answer), len(completions)), body)


def score_parts(items: Sequence[bytes], completions: Sequence[int], **options: bool) -> Call[list[Score]]:
    """POST /score for many items.

    Args:
        items: Each as JSON.
        completions: How many each has.
        options: Other members of the request.
    """
    others = "".join(f',"{name}":{"true" if value else "false"}' for name, value in options.items())
    body = b'{"items":[%b]%b}' % (b",".join(items), others.encode())
    read = reader(Scores)

    def parse(answer: bytes) -> list[Score]:
        scores = read(answer)
        if len(scores.results) != len(items):
            raise UnexpectedAnswer(f"The server answered {len(scores.results)} results for {len(items)} items.")
        common = {"checkpoint_id": scores.checkpoint_id, "timings_ms": scores.timings_ms}
        return [
            _whole(result.model_copy(update=common), count)
            for count, result in zip(completions, scores.results, strict=True)
        ]

    return Call("POST", "/score", parse, body)


def _whole(score: Score, completions: int) -> Score:
    """A score has a reward for each completion, and an order of all."""
    if len(score.rewards) != completions or sorted(score.order) != list(range(completions)):
        raise UnexpectedAnswer(f"The server answered {len(score.rewards)} rewards for {completions} completions.")
    return score


def rerank(
    query: str, documents: Sequence[str], *, user_id: str | None, top_n: int | None, model: str | None
) -> Call[answers.Reranked]:
    """POST /v2/rerank."""
    documents = _listed(documents)
    values = {"query": query, "documents": documents, "user": user_id, "top_n": top_n, "model": model}
    body = body_of(requests.RerankRequest, values)
    read = reader(answers.Reranked)
    expected = len(documents) if top_n is None else min(top_n, len(documents))

    def parse(answer: bytes) -> answers.Reranked:
        reranked = read(answer)
        indices = {each.index for each in reranked.results}
        if not len(reranked.results) == len(indices) == expected or not indices <= set(range(len(documents))):
            raise UnexpectedAnswer(f"The server ranked {len(reranked.results)} documents of {len(documents)}.")
        return reranked

    return Call("POST", "/v2/rerank", parse, body)


def adapt(
    user_id: str,
    *,
    pairs: Iterable[Any],
    ratings: Iterable[Any],
    rankings: Iterable[Any],
    mode: str,
    truncate: bool,
    idempotency_key: str | None,
) -> Call[answers.Adapted]:
    """POST /users/{user_id}/adapt."""
    values = {
        "pairs": _listed(pairs),
        "ratings": _listed(ratings),
        "rankings": _listed(rankings),
        "mode": mode,
        "truncate": truncate,
    }
    body = body_of(requests.AdaptRequest, values)
    return _change("POST", user_id, "adapt", answers.Adapted, idempotency_key, body)


def feedback(
    user_id: str, events: Iterable[Any], *, truncate: bool, idempotency_key: str | None
) -> Call[answers.FeedbackAdapted]:
    """POST /users/{user_id}/feedback."""
    body = body_of(requests.FeedbackRequest, {"events": _listed(events), "truncate": truncate})
    return _change("POST", user_id, "feedback", answers.FeedbackAdapted, idempotency_key, body)


def suggest(
    user_id: str, candidates: Iterable[Any], *, count: int, min_version: int, truncate: bool
) -> Call[answers.Suggestions]:
    """POST /users/{user_id}/suggest."""
    values = {"candidates": _listed(candidates), "count": count, "min_version": min_version, "truncate": truncate}
    body = body_of(requests.SuggestRequest, values)
    return Call("POST", _of_user(user_id, "suggest"), reader(answers.Suggestions), body)


def user(user_id: str) -> Call[answers.User]:
    """GET /users/{user_id}."""
    return Call("GET", _of_user(user_id), reader(answers.User))


def users(*, after: str | None, limit: int) -> Call[answers.UserPage]:
    """GET /users."""
    return Call("GET", "/users", reader(answers.UserPage), query=_query(after=after, limit=limit))


def versions(user_id: str, *, before: int | None, limit: int) -> Call[answers.VersionPage]:
    """GET /users/{user_id}/versions."""
    query = _query(before=before, limit=limit)
    return Call("GET", _of_user(user_id, "versions"), reader(answers.VersionPage), query=query)


def evidence(user_id: str, *, after: str | None, limit: int) -> Call[answers.EvidencePage]:
    """GET /users/{user_id}/evidence."""
    query = _query(after=after, limit=limit)
    return Call("GET", _of_user(user_id, "evidence"), reader(answers.EvidencePage), query=query)


def delete_evidence(user_id: str, ids: Iterable[str], *, idempotency_key: str | None) -> Call[answers.Change]:
    """DELETE /users/{user_id}/evidence."""
    if isinstance(ids, str):
        raise InvalidRequest("Nothing was sent.", errors=[FieldError("ids", "is one text; give a list of ids")])
    query = tuple(("id", each) for each in ids)
    return _change("DELETE", user_id, "evidence", answers.Change, idempotency_key, query=query)


def rollback(user_id: str, version: int, *, idempotency_key: str | None) -> Call[answers.Change]:
    """POST /users/{user_id}/rollback."""
    body = body_of(requests.RollbackRequest, {"version": version})
    return _change("POST", user_id, "rollback", answers.Change, idempotency_key, body)


def reset(user_id: str, *, forget: bool, idempotency_key: str | None) -> Call[answers.Change]:
    """POST /users/{user_id}/reset."""
    body = body_of(requests.ResetRequest, {"forget": forget})
    return _change("POST", user_id, "reset", answers.Change, idempotency_key, body)


def export(user_id: str) -> Call[answers.UserExport]:
    """GET /users/{user_id}/export."""
    return Call("GET", _of_user(user_id, "export"), reader(answers.UserExport))


def erase(user_id: str) -> Call[None]:
    """DELETE /users/{user_id}: the one change that takes no key."""
    return Call("DELETE", _of_user(user_id), lambda _: None, repeatable=False, answered=frozenset({204}))


def info() -> Call[answers.Info]:
    """GET /info."""
    return Call("GET", "/info", reader(answers.Info))


def ready() -> Call[answers.Ready]:
    """GET /ready, which says no with a 503."""
    return Call("GET", "/ready", reader(answers.Ready), answered=frozenset({200, 503}))


def live() -> Call[answers.Live]:
    """GET /live."""
    return Call("GET", "/live", reader(answers.Live))


def _change(
    method: str,
    user_id: str,
    what: str,
    model: type[answers.ChangeT],
    idempotency_key: str | None,
    body: bytes | None = None,
    query: tuple[tuple[str, str], ...] = (),
) -> Call[answers.ChangeT]:
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    if not _KEY.fullmatch(key):
        message = "must be 1 to 255 printable ASCII characters without spaces"
        raise InvalidRequest("Nothing was sent.", errors=[FieldError("idempotency_key", message)])
    return Call(method, _of_user(user_id, what), reader(model), body, query, idempotency_key=key)


def _of_user(user_id: str, what: str | None = None) -> str:
    if not isinstance(user_id, str) or not user_id:
        raise InvalidRequest("Nothing was sent.", errors=[FieldError("user_id", "must be a text that is not empty")])
    path = f"/users/{quote(user_id, safe='')}"
    return path if what is None else f"{path}/{what}"


def _listed(values: Any) -> Any:
    """A column of a data set, an array or a generator as a list; anything else as it is, to be refused by name."""
    is_one = isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable)
    return values if is_one else list(values)


def _query(**parameters: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in parameters.items() if value is not None)
