"""POST /v1/openrlhf/get_reward: a reward server of OpenRLHF's (`--reward.remote_url`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.classify_request import json_object
from service.api.deps import limits_of, runtime_of
from service.api.errors import documented
from service.api.json_route import body_bytes, json_response, read_aside
from service.api.limits import Limits, check_user_id, is_user_id
from service.api.openapi import described_body
from service.api.openrlhf_schemas import GetRewardRequest, GetRewardResponse
from service.errors import InvalidInput
from service.mrm.combine import average_probability
from service.operations.openrlhf import read_queries, users_of
from service.operations.rendered import check_bytes
from service.operations.text_rewards import RewardedTexts

router = APIRouter(tags=["reward model"], route_class=RoleRoute)


@router.post(
    "/v1/openrlhf/get_reward",
    response_model=GetRewardResponse,
    responses=documented(413, 415, 421, 422, 500, 503),
    openapi_extra=needs("score") | described_body(GetRewardRequest),
    summary="Rewards for OpenRLHF",
)
async def get_reward(
    request: Request,
    user: Annotated[
        str | None,
        Query(description="Whose rewards; labels are not looked at then. Write + as %2B.", examples=["ada"]),
    ] = None,
    truncate: Annotated[
        bool, Query(description="Shorten texts that are too long, instead of refusing them.", examples=[True])
    ] = True,
) -> Response:
    """Rewards of a policy's samples, as `--reward.remote_url` of OpenRLHF asks for them.

    Known chat formats are read back into messages and scored in the backbone's own template, so the reward is that of
    `/score` for the same messages. In an unknown one, what `prompts` says is the user's message.
    """
    if user is not None:
        check_user_id(user, "user")
    content = await body_bytes(request)
    body = json_object(content)
    runtime, limits = runtime_of(request), limits_of(request)
    queries = _queries(body, limits)
    prompts = _texts(body, "prompts", len(queries))
    check_bytes(((f"query[{i}]", query) for i, query in enumerate(queries)), limits.max_text_bytes)
    # A query may hold the end of its prompt only; what is scored then is the whole prompt.
    check_bytes(((f"prompts[{i}]", prompt or "") for i, prompt in enumerate(prompts)), limits.max_text_bytes)
    users = [user] * len(queries) if user is not None else users_of(_list(body, "labels", len(queries)), is_user_id)
    if not queries:
        return json_response({"rewards": [], "scores": [], "extra_logs": {}})
    served = runtime.serving.active
    read = await read_aside(content, read_queries, queries, prompts, served.base_rewards.renderer)
    rewarded = await runtime.text_rewards(
        served, caller_of(request).tenant_id, [each.text for each in read], users, truncate=truncate
    )
    return json_response(
        {
            "rewards": rewarded.rewards_B.tolist(),
            "scores": average_probability(rewarded.rewards_B).tolist(),
            "extra_logs": _logs(rewarded, [each.recognised for each in read]),
        }
    )


def _queries(body: dict[str, Any], limits: Limits) -> list[str]:
    queries = body.get("query")
    if not isinstance(queries, list):
        raise InvalidInput.single("query", "must be a list of texts")
    limits.check_texts("query", len(queries))
    wrong = next((i for i, query in enumerate(queries) if not isinstance(query, str)), None)
    if wrong is not None:
        raise InvalidInput.single(f"query[{wrong}]", "is no text")
    return queries


def _list(body: dict[str, Any], field: str, length: int) -> list[Any]:
    """A list of `length`; nothing in its place says nothing of any of them.

    Raises:
        InvalidInput: It is something else.
    """
    value = body.get(field)
    if value is None:
        return [None] * length
    if not isinstance(value, list) or len(value) != length:
        raise InvalidInput.single(field, f"must be a list of {length}, as long as query")
    return value


def _texts(body: dict[str, Any], field: str, length: int) -> list[Any]:
    texts = _list(body, field, length)
    wrong = next((i for i, text in enumerate(texts) if not (text is None or isinstance(text, str))), None)
    if wrong is not None:
        raise InvalidInput.single(f"{field}[{wrong}]", "is no text")
    return texts


def _logs(rewarded: RewardedTexts, recognised: Sequence[bool]) -> dict[str, list[float]]:
    """Numbers beside each reward; the trainer averages them over a batch."""
    standings = [user.standing for user in rewarded.users]
    logs = {
        standing: [float(each == standing) for each in standings] for standing in ("cold_start", "population", "stale")
    }
    truncated = [0.0] * len(standings)
    for i in rewarded.base.truncated:
        truncated[i] = 1.0
    logs |= {"truncated": truncated, "unknown_format": [float(not each) for each in recognised]}
    if rewarded.std_B is not None:
        logs["reward_std"] = rewarded.std_B.tolist()
    return logs
