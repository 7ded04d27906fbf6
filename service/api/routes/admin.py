"""POST /admin/self-check, and the checkpoints: GET /admin/checkpoints, POST activate, rollback and shadow."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, needs
from service.api.checkpoint_schemas import (
    ActivateRequest,
    CheckpointRollbackRequest,
    CheckpointsOut,
    ShadowRequest,
)
from service.api.deps import runtime_of
from service.api.errors import documented
from service.api.json_route import json_response
from service.api.schemas import SelfCheckOut, SelfCheckRequest
from service.operations.checkpoints import CheckpointsInfo, LoadedCheckpoint

router = APIRouter(tags=["admin"], route_class=RoleRoute)


@router.post(
    "/admin/self-check",
    response_model=SelfCheckOut,
    responses=documented(413, 415, 421, 422, 500, 503),
    openapi_extra=needs("admin"),
    summary="Does the engine give the recorded numbers?",
)
async def self_check(request: Request, body: SelfCheckRequest) -> Response:
    """Let every worker score the golden texts in company, one by one, and beside the checkpoint's record.

    It takes its turn in the engine's queue; calls at the same time, or within a second of its end, share one check.
    200 whatever it finds. Where the engine of this process fails, /ready says no until a later check passes; a remote
    worker that fails is taken out until it passes.
    """
    report = await runtime_of(request).self_checks()
    return json_response(report.as_json())


@router.get(
    "/admin/checkpoints",
    response_model=CheckpointsOut,
    responses=documented(421, 500),
    openapi_extra=needs("admin"),
    summary="What is loaded, and what answers",
)
async def list_checkpoints(request: Request) -> Response:
    """The checkpoints of this server: which answers, which scores beside it, and whose users each can take over."""
    return json_response(_told(runtime_of(request).checkpoints.list()))


@router.post(
    "/admin/checkpoints/activate",
    response_model=CheckpointsOut,
    responses=documented(409, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("admin"),
    summary="Let another checkpoint answer",
)
async def activate_checkpoint(request: Request, body: ActivateRequest) -> Response:
    """Switch every server on this database to a loaded checkpoint, for all tenants.

    This one switches before it answers, the others within about a second. Requests that began before are finished with
    the checkpoint that they began with. A server that has not loaded it goes on with its own and is `degraded`.
    """
    return json_response(_told(await runtime_of(request).checkpoints.activate(body.checkpoint_id)))


@router.post(
    "/admin/checkpoints/rollback",
    response_model=CheckpointsOut,
    responses=documented(409, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("admin"),
    summary="Let the checkpoint answer that did before",
)
async def rollback_checkpoint(request: Request, body: CheckpointRollbackRequest) -> Response:
    """Undo the last activation. What users said meanwhile is kept; the checkpoint before sees of it what it can."""
    return json_response(_told(await runtime_of(request).checkpoints.rollback()))


@router.post(
    "/admin/checkpoints/shadow",
    response_model=CheckpointsOut,
    responses=documented(409, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("admin"),
    summary="Let a checkpoint score beside the active one",
)
async def shadow_checkpoint(request: Request, body: ShadowRequest) -> Response:
    """Score /score requests with a second checkpoint too, behind their answers, and tell how the two agree.

    Nobody sees what it scores, no answer waits for it, and tenants do not pay for it.
    """
    return json_response(_told(await runtime_of(request).checkpoints.shadow(body.checkpoint_id)))


def _told(info: CheckpointsInfo) -> dict[str, Any]:
    return {
        "active": info.wanted,
        "generation": info.generation,
        "changed_at": info.changed_at,
        "checkpoints": [_checkpoint(loaded) for loaded in info.loaded],
    }


def _checkpoint(loaded: LoadedCheckpoint) -> dict[str, Any]:
    served, checkpoint, agreement = loaded.served, loaded.served.checkpoint, loaded.agreement
    return {
        "checkpoint_id": checkpoint.checkpoint_id,
        "name": checkpoint.name,
        "heads_id": checkpoint.heads_id,
        "heads": checkpoint.heads,
        "recipe": checkpoint.recipe,
        "backbone": checkpoint.backbone.id,
        "active": loaded.active,
        "shadow": loaded.shadow,
        "previous": loaded.previous,
        "healthy": served.engine.healthy,
        "maps": [
            {
                "from_name": each.name,
                "from_checkpoint_id": each.checkpoint_id,
                "from_heads_id": each.heads_id,
                "fidelity": each.fidelity.mean,
                "fidelity_low": each.fidelity.low,
                "differences_fidelity": each.differences_fidelity,
                "used": each.heads_id in served.view.maps,
            }
            for each in checkpoint.maps
        ],
        "agreement": None
        if agreement is None
        else {
            "items": agreement.items,
            "same_best": agreement.best_share,
            "kendall_tau": agreement.kendall_tau,
            "probability_difference": agreement.mean_probability_difference,
            "dropped": agreement.dropped,
            "failed": agreement.failed,
        },
    }
