"""What `model` and `user` of foreign clients mean, over several loaded checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from switching import NEW, OLD, Switching, checkpoint

from service.api.model_names import parse_model
from service.errors import InvalidInput, NotFound
from service.operations.serving import Serving
from service.store import open_database

# Two that share their name with the active one, and with one another.
TWIN = checkpoint(5, 3, name=OLD.name, backbone="twin")
SPARE = checkpoint(6, 3, name="spare")
SPARE_TOO = checkpoint(7, 3, name="spare", backbone="other")
IDS = {name: globals()[name].checkpoint_id for name in ("OLD", "NEW", "TWIN", "SPARE_TOO")}


@pytest.fixture(scope="module")
def serving(migrated_sqlite_file: object) -> Iterator[Serving]:
    database = open_database(f"sqlite:///{migrated_sqlite_file}")

    async def load() -> Serving:
        return Switching(database, OLD, TWIN, NEW, SPARE, SPARE_TOO).serving

    yield asyncio.run(load())
    database.close()


@pytest.mark.parametrize(
    ("model", "user", "meant", "who"),
    [
        (None, None, "OLD", None),
        ("", None, "OLD", None),
        ("old", None, "OLD", None),
        ("new", None, "NEW", None),
        ("{TWIN}", None, "TWIN", None),
        ("{SPARE_TOO}", "ada", "SPARE_TOO", "ada"),
        ("new@ada", None, "NEW", "ada"),
        ("{NEW}@ada@example.org", None, "NEW", "ada@example.org"),
        ("@ada", None, "OLD", "ada"),
        ("new@ada", "ada", "NEW", "ada"),
        (None, "ada", "OLD", "ada"),
    ],
)
def test_a_model_names_a_checkpoint_and_a_user(
    serving: Serving, model: str | None, user: str | None, meant: str, who: str | None
) -> None:
    served, user_id = parse_model(model and model.format(**IDS), user, serving)
    assert (served.checkpoint_id, user_id) == (IDS[meant], who)


@pytest.mark.parametrize(
    ("model", "user", "fields"),
    [
        ("old@", None, ["model"]),
        ("old@two words", None, ["model"]),
        ("old@ada", "bob", ["user"]),
        ("old", "", ["user"]),
        ("@", "two words", ["model", "user"]),
        ("spare", None, ["model"]),
    ],
)
def test_what_says_too_little_or_too_much_is_refused(
    serving: Serving, model: str | None, user: str | None, fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_model(model, user, serving)
    assert [issue.field for issue in refused.value.issues] == fields


@pytest.mark.parametrize("model", ["rerank-v3.5", "old ", "old:ada"])
def test_other_models_are_not_found(serving: Serving, model: str) -> None:
    with pytest.raises(NotFound, match="GET /info") as refused:
        parse_model(model, None, serving)
    assert model not in str(refused.value)
