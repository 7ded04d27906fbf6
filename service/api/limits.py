"""Bounds that depend on settings, checked before any work; every violation of a request is reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from service.api.evidence_schemas import AdaptRequest
from service.api.schemas import MAX_PAIRWISE, USER_ID_PATTERN, USER_ID_RULE, ChatMessage, ScoreItemIn
from service.errors import FieldIssue, InvalidInput

_USER_ID = re.compile(USER_ID_PATTERN)
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request."""

    max_pairs: int
    max_completions: int
    max_text_bytes: int

    def check_adapt(self, user_id: str, request: AdaptRequest, idempotency_key: str | None) -> None:
        """Refuse an adapt request that is out of bounds.

        Raises:
            InvalidInput: With every issue.
        """
        issues = list(_user_id_issues(user_id, "user_id"))
        if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
            issues.append(FieldIssue("Idempotency-Key", "must be 1 to 255 printable ASCII characters without spaces"))
        if len(request.pairs) > self.max_pairs:
            issues.append(
                FieldIssue("pairs", f"has {len(request.pairs)}, at most {self.max_pairs}; send several calls")
            )
        for i, pair in enumerate(request.pairs[: self.max_pairs]):
            issues += self._prompt_issues(pair.prompt, f"pairs[{i}].prompt")
            issues += self._text_issues(pair.chosen, f"pairs[{i}].chosen")
            issues += self._text_issues(pair.rejected, f"pairs[{i}].rejected")
        _raise_any(issues)

    def check_score(self, items: list[tuple[str, ScoreItemIn]], *, pairwise: bool = False) -> None:
        """Refuse a score request that is out of bounds; `items` come with their field prefixes.

        Args:
            items: What is asked.
            pairwise: Whether every two completions of an item are to be compared.

        Raises:
            InvalidInput: With every issue.
        """
        issues: list[FieldIssue] = []
        total = sum(len(item.completions) for _, item in items)
        compared = sum(len(item.completions) ** 2 for _, item in items) if pairwise else 0
        if total > self.max_completions:
            issues.append(
                FieldIssue("completions", f"{total} in all, at most {self.max_completions}; split the request")
            )
        elif compared > MAX_PAIRWISE:
            issues.append(
                FieldIssue(
                    "return_pairwise",
                    f"asks for {compared} pairs of completions, at most {MAX_PAIRWISE}; "
                    "send fewer completions a request, or leave it out",
                )
            )
        else:
            for field, item in items:
                issues += _user_id_issues(item.user_id, f"{field}user_id")
                issues += self._prompt_issues(item.prompt, f"{field}prompt")
                for i, completion in enumerate(item.completions):
                    issues += self._text_issues(completion, f"{field}completions[{i}]")
        _raise_any(issues)

    def _prompt_issues(self, prompt: str | list[ChatMessage], field: str) -> Iterator[FieldIssue]:
        if isinstance(prompt, str):
            yield from self._text_issues(prompt, field)
        else:
            yield from self._text_issues("".join(message.content for message in prompt), field)

    def _text_issues(self, text: str, field: str) -> Iterator[FieldIssue]:
        # A character takes at most four bytes: the exact count is needed only near the limit.
        if len(text) * 4 > self.max_text_bytes and len(text.encode()) > self.max_text_bytes:
            yield FieldIssue(field, f"has {len(text.encode())} bytes, at most {self.max_text_bytes}; shorten it")


def check_user_id(user_id: str) -> None:
    """Refuse an id that no user can have.

    Raises:
        InvalidInput: The rule, on the field `user_id`.
    """
    _raise_any(list(_user_id_issues(user_id, "user_id")))


def _user_id_issues(user_id: str, field: str) -> Iterator[FieldIssue]:
    if not _USER_ID.fullmatch(user_id):
        yield FieldIssue(field, f"must be {USER_ID_RULE}")


def _raise_any(issues: list[FieldIssue]) -> None:
    if issues:
        raise InvalidInput(issues)
