"""Whom a foreign client means by `model` and `user`: a loaded checkpoint, and a user where one is named."""

from __future__ import annotations

from service.api.limits import is_user_id
from service.api.schemas import USER_ID_RULE
from service.errors import FieldIssue, InvalidInput, NotFound
from service.operations.serving import ServedCheckpoint, Serving


def parse_model(model: str | None, user: str | None, serving: Serving) -> tuple[ServedCheckpoint, str | None]:
    """The checkpoint that is to answer, and for whom.

    Clients of other services have one field that every one of them lets through, `model`; so it may carry the user too.

    Args:
        model: NAME or NAME@USER, parted at the first `@`, where NAME is the name or the checkpoint_id of a loaded
            checkpoint. Of those that share a name, the one that answers /score is meant. None and an empty NAME mean
            that one as well.
        user: The request's `user`, which may name whom `model` does not.
        serving: What is loaded.

    Returns:
        The checkpoint and the user's id; None for nobody in particular, that is the population.

    Raises:
        InvalidInput: An id that no user can have, two different users, or a name that says too little.
        NotFound: No loaded checkpoint is called so.
    """
    name, at, named_user = (model or "").partition("@")
    issues = []
    if at and not is_user_id(named_user):
        issues.append(FieldIssue("model", f"must name a user behind the @: {USER_ID_RULE}; or leave the @ out"))
    elif at and user is not None and user != named_user:
        issues.append(FieldIssue("user", "is another one than model names behind its @; name one user, in one place"))
    if user is not None and not is_user_id(user):
        issues.append(FieldIssue("user", f"must be {USER_ID_RULE}; or leave it out for the population's reward"))
    if issues:
        raise InvalidInput(issues)
    return _checkpoint_of(name, serving), named_user if at else user


def _checkpoint_of(name: str, serving: Serving) -> ServedCheckpoint:
    active = serving.active
    by_id = serving.get(name)
    if by_id is not None:
        return by_id
    if name in ("", active.checkpoint.name):
        return active
    named = [served for served in serving.loaded if served.checkpoint.name == name]
    if not named:
        raise NotFound(
            "model: no loaded checkpoint has this name or checkpoint_id. GET /info lists them; leave model out, or "
            "send it empty, for the one that answers /score"
        )
    if len(named) > 1:
        message = "is the name of several loaded checkpoints, none of which answers /score; give a checkpoint_id"
        raise InvalidInput([FieldIssue("model", message)])
    return named[0]
