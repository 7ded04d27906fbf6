"""What clients of a vLLM reward model ask: POST /classify and GET /v1/models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.classify_answer import classify_answer
from service.api.classify_request import ClassifyRequest, json_object, read_classify
from service.api.deps import limits_of, runtime_of
from service.api.errors import documented
from service.api.json_route import body_bytes, json_response, read_aside
from service.api.limits import Limits
from service.api.model_names import parse_model
from service.api.openapi import described_body
from service.api.vllm_schemas import ClassifyAnswer, ClassifyConversationIn, ClassifyTextsIn, RewardModelsOut
from service.operations.base_rewards import BaseRewardReader
from service.operations.rendered import check_bytes, checked_ids, rendered_text
from service.operations.texts import AnyText, RenderedText, Text

router = APIRouter(tags=["reward model"], route_class=RoleRoute)
_STARTED: Final = int(time.time())


@router.post(
    "/classify",
    response_model=ClassifyAnswer,
    responses=documented(404, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("score") | described_body(ClassifyTextsIn, ClassifyConversationIn),
    summary="A user's reward model, as vLLM serves one",
)
async def classify(request: Request) -> Response:
    """The reward of texts for one user, in vLLM's form: `probs` holds one number, the raw reward.

    Any client of a vLLM reward model gets a user's reward where its `model` says NAME@USER. Without a user `probs` are
    the K base rewards. Texts are used as they are; the reward is that of `/score` where they are in the backbone's own
    template. Fields of vLLM's that are not listed change nothing.
    """
    body = await body_bytes(request)
    asked = await read_aside(body, read_classify, json_object(body))
    runtime, limits = runtime_of(request), limits_of(request)
    served, user = parse_model(asked.model, asked.user, runtime.serving)
    reader = served.base_rewards
    texts = await read_aside(body, _texts, asked, limits, reader)
    tenant = caller_of(request).tenant_id
    if user is None:
        base = await runtime.text_rewards.base_rewards(served, tenant, texts, truncate=asked.truncate)
        rewards_BK = base.rewards_BK
    else:
        users = [user] * len(texts)
        rewarded = await runtime.text_rewards(served, tenant, texts, users, truncate=asked.truncate)
        base, rewards_BK = rewarded.base, rewarded.rewards_B[:, None]
    tokens = await reader.count_tokens(texts, base, truncate=asked.truncate)
    return json_response(classify_answer(asked.model or served.checkpoint.name, rewards_BK, tokens))


@router.get(
    "/v1/models",
    response_model=RewardModelsOut,
    responses=documented(421, 500),
    openapi_extra=needs("score"),
    summary="Which reward models are served",
)
async def models(request: Request) -> Response:
    """The loaded checkpoints by NAME, the active one first; of several with one name all but the first by their id."""
    serving = runtime_of(request).serving
    active = serving.active
    listed: dict[str, dict[str, object]] = {}
    for served in [active, *(other for other in serving.loaded if other is not active)]:
        checkpoint = served.checkpoint
        name = checkpoint.checkpoint_id if checkpoint.name in listed else checkpoint.name
        listed[name] = {
            "id": name,
            "object": "model",
            "created": _STARTED,
            "owned_by": "metareward",
            "root": checkpoint.backbone.id,
            "parent": None,
            "max_model_len": served.base_rewards.renderer.max_tokens,
        }
    return json_response({"object": "list", "data": list(listed.values())})


def _texts(asked: ClassifyRequest, limits: Limits, reader: BaseRewardReader) -> Sequence[AnyText]:
    """What is to be scored, checked.

    Raises:
        InvalidInput: Too many texts, too long ones, or what are no token ids of this backbone.
    """
    if asked.messages:
        *prompt, completion = asked.messages
        content = "".join(message["content"] for message in asked.messages)
        check_bytes([("messages", content)], limits.max_text_bytes)
        return [Text(prompt, completion["content"], "messages")]
    limits.check_texts("input", len(asked.texts) + len(asked.ids))
    renderer = reader.renderer
    if asked.texts:
        check_bytes(((f"input[{i}]", text) for i, text in enumerate(asked.texts)), limits.max_text_bytes)
        special = asked.add_special_tokens
        return [
            rendered_text(t, f"input[{i}]", renderer, add_special_tokens=special) for i, t in enumerate(asked.texts)
        ]
    # No token is less than a byte of text: ids that are to be shortened get the bound of texts.
    longest = max(renderer.max_tokens, limits.max_text_bytes) if asked.truncate else renderer.max_tokens
    checked = checked_ids(asked.ids, "input", vocab_size=renderer.vocab_size, max_tokens=longest)
    return [RenderedText(tuple(ids), f"input[{i}]") for i, ids in enumerate(checked)]
