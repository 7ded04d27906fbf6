"""Rows as trainers hand them over, and what of them is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metareward_client._rows import conversation_and_answer, user_id_of

USER = {"role": "user", "content": "Name a tree."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "trees"}}]}
RESULT = {"role": "tool", "name": "trees", "content": "oak, elm"}
OAK = {"role": "assistant", "content": "Oak."}


def image() -> dict[str, Any]:
    return {"type": "image", "image": object()}


@pytest.mark.parametrize(
    ("prompt", "completion", "conversation", "answer"),
    [
        pytest.param("Name a tree.", " Oak.", "Name a tree.", " Oak.", id="texts"),
        pytest.param("Name a tree.", [OAK], "Name a tree.", "Oak.", id="text-and-messages"),
        pytest.param([USER], [OAK], [USER], "Oak.", id="messages"),
        pytest.param([USER], "Oak.", [USER], "Oak.", id="messages-and-text"),
        pytest.param([USER], [{"role": "assistant", "content": None}], [USER], "", id="nothing-said"),
        pytest.param([USER], [], [USER], "", id="no-message"),
        pytest.param(
            # As pyarrow hands messages back: every key that one of them has.
            [{"role": "user", "content": "Name a tree.", "name": None, "tool_calls": None}],
            [{"role": "assistant", "content": "Oak.", "reasoning_content": "They want a tree."}],
            [USER],
            "Oak.",
            id="more-keys",
        ),
        pytest.param(
            [
                {
                    "role": "user",
                    "content": [image(), {"type": "text", "text": "Name "}, {"type": "text", "text": "it."}],
                }
            ],
            [{"role": "assistant", "content": [{"type": "text", "text": "Oak.", "image": None}]}],
            [{"role": "user", "content": "Name it."}],
            "Oak.",
            id="blocks",
        ),
        pytest.param(
            [{"role": "developer", "content": "Be brief."}, USER, OAK, USER],
            [OAK],
            [{"role": "system", "content": "Be brief."}, USER, OAK, USER],
            "Oak.",
            id="earlier-turns",
        ),
        pytest.param([{"role": "system", "content": ""}, USER], [OAK], [USER], "Oak.", id="blank-system-message"),
        pytest.param([USER], [CALL, RESULT, OAK], [USER], "Oak.", id="tool-loop"),
        pytest.param(
            [USER],
            [{"role": "assistant", "content": "Let me look."}, RESULT, OAK],
            [USER],
            "Oak.",
            id="said-before-a-tool",
        ),
        pytest.param([USER], [OAK, RESULT, CALL], [USER], "", id="ends-in-a-tool-call"),
        pytest.param([USER, CALL, RESULT, OAK, USER], [OAK], [USER, OAK, USER], "Oak.", id="tools-in-the-prompt"),
        pytest.param(
            "Name a tree.",
            [OAK, {"role": "user", "content": "Another."}, {"role": "assistant", "content": "Elm."}],
            [USER, OAK, {"role": "user", "content": "Another."}],
            "Elm.",
            id="simulated-user",
        ),
    ],
)
def test_the_last_answer_is_scored_as_one_to_the_conversation_before_it(
    prompt: Any, completion: Any, conversation: Any, answer: str
) -> None:
    assert conversation_and_answer(prompt, completion) == (conversation, answer)


@pytest.mark.parametrize(
    ("value", "user"),
    [
        ("ada", "ada"),
        (7, "7"),
        (7.0, "7"),
        (np.int64(7), "7"),
        (np.float32(7), "7"),
        (np.str_("ada"), "ada"),
        (0, "0"),
        (None, None),
        ("", None),
        (float("nan"), None),
        (np.float64("nan"), None),
    ],
)
def test_cells_of_tables_are_users_or_nobody(value: Any, user: str | None) -> None:
    assert user_id_of(value) == user


@pytest.mark.parametrize("value", [7.5, float("inf"), True, ["ada"], {"id": "ada"}, b"ada"], ids=repr)
def test_other_cells_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="whole number, not"):
        user_id_of(value)
