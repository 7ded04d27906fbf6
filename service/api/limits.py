"""Bounds that depend on settings, checked before any work; every violation of a request is reported at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from service.api.evidence_schemas import AdaptRequest, PairIn, RankingIn, RatingIn
from service.api.feedback_schemas import EventIn, FeedbackRequest
from service.api.schemas import MAX_PAIRWISE, USER_ID_PATTERN, USER_ID_RULE, ChatMessage, ScoreItemIn
from service.api.suggest_schemas import MAX_QUESTIONS, CandidateIn, SuggestRequest
from service.errors import FieldIssue, InvalidInput
from service.operations.user_states import NOBODYS_VERSION

_USER_ID = re.compile(USER_ID_PATTERN)
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")

# How far a caller's clock may be ahead of this server's.
MAX_AHEAD: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request."""

    max_pairs: int
    max_completions: int
    max_text_bytes: int
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def check_adapt(self, user_id: str, request: AdaptRequest, idempotency_key: str | None) -> None:
        """Refuse an adapt request that is out of bounds.

        Raises:
            InvalidInput: With every issue.
        """
        issues = list(_change_issues(user_id, idempotency_key))
        if not (request.pairs or request.ratings or request.rankings):
            issues.append(FieldIssue("pairs", "says nothing of the user; give pairs, ratings or rankings"))
        too_many = self._too_many_texts(request)
        if too_many is not None:
            _raise_any([*issues, too_many])
        for at, item in _items(request):
            issues += self._item_issues(at, item, _texts(item))
        _raise_any(issues)

    def check_feedback(self, user_id: str, request: FeedbackRequest, idempotency_key: str | None) -> None:
        """Refuse a feedback request that is out of bounds.

        Raises:
            InvalidInput: With every issue.
        """
        issues = list(_change_issues(user_id, idempotency_key))
        texts = sum(len(event.texts) for event in request.events)
        if texts > 2 * self.max_pairs:
            message = f"has {texts} completions in all, at most {2 * self.max_pairs}; send several calls"
            _raise_any([*issues, FieldIssue("events", message)])
        for i, event in enumerate(request.events):
            issues += self._item_issues(f"events[{i}]", event, event.texts)
        _raise_any(issues)

    def check_suggest(self, user_id: str, request: SuggestRequest) -> None:
        """Refuse a suggest request that is out of bounds.

        Raises:
            InvalidInput: With every issue.
        """
        issues = list(_user_id_issues(user_id, "user_id"))
        sizes = [len(candidate.completions) for candidate in request.candidates]
        questions = sum(size * (size - 1) // 2 for size in sizes)
        if sum(sizes) > self.max_completions:
            message = f"has {sum(sizes)} completions in all, at most {self.max_completions}; send fewer"
            _raise_any([*issues, FieldIssue("candidates", message)])
        if questions > MAX_QUESTIONS:
            message = f"has {questions} pairs of completions in all, at most {MAX_QUESTIONS}; send fewer"
            _raise_any([*issues, FieldIssue("candidates", message)])
        for i, candidate in enumerate(request.candidates):
            issues += self._candidate_issues(f"candidates[{i}].", candidate)
        _raise_any(issues)

    def _item_issues(
        self, at: str, item: PairIn | RatingIn | RankingIn | EventIn, texts: Iterable[tuple[str, str]]
    ) -> Iterator[FieldIssue]:
        yield from self._prompt_issues(item.prompt, f"{at}.prompt")
        for part, text in texts:
            yield from self._text_issues(text, f"{at}.{part}")
        if item.event_time is not None and item.event_time > self.clock() + MAX_AHEAD:
            yield FieldIssue(f"{at}.event_time", "is in the future; give the time at which the user said it")

    def _too_many_texts(self, request: AdaptRequest) -> FieldIssue | None:
        """Names the kind with which the limit is passed; pairs alone are counted as pairs."""
        if len(request.pairs) > self.max_pairs:
            return FieldIssue("pairs", f"has {len(request.pairs)}, at most {self.max_pairs}; send several calls")
        texts = 2 * len(request.pairs)
        most = 2 * self.max_pairs
        for kind, of_kind in (
            ("ratings", len(request.ratings)),
            ("rankings", sum(len(ranking.completions) for ranking in request.rankings)),
        ):
            texts += of_kind
            if texts > most:
                return FieldIssue(
                    kind,
                    f"brings the texts of this request to {texts}, at most {most} (a pair has two, a rating one, a "
                    "ranking one for each completion); send several calls",
                )
        return None

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
                if item.user_id is not None:
                    issues += _user_id_issues(item.user_id, f"{field}user_id")
                elif item.min_version:
                    issues.append(FieldIssue(f"{field}min_version", NOBODYS_VERSION))
                issues += self._candidate_issues(field, item)
        _raise_any(issues)

    def check_texts(self, field: str, number: int) -> None:
        """Refuse a request of too many texts that stand by themselves.

        Raises:
            InvalidInput: On `field`.
        """
        if number > self.max_completions:
            message = f"has {number} texts, at most {self.max_completions}; send several requests"
            raise InvalidInput.single(field, message)

    def check_rerank(self, query: str, documents: list[str], further: Mapping[str, object]) -> None:
        """Refuse a rerank request that is out of bounds.

        Args:
            query: The prompt.
            documents: The candidates' texts.
            further: Fields of the request that have no meaning here; some say that another answer is expected.

        Raises:
            InvalidInput: With every issue.
        """
        issues: list[FieldIssue] = []
        if "user_id" in further:
            issues.append(FieldIssue("user_id", "is called user here; or name the user in model, behind an @"))
        if further.get("rank_fields") not in (None, ["text"]):
            issues.append(FieldIssue("rank_fields", "only text is read; join the fields into text yourself"))
        if len(documents) > self.max_completions:
            message = (
                f"has {len(documents)}, at most {self.max_completions}; send several requests, whose rewards compare"
            )
            _raise_any([*issues, FieldIssue("documents", message)])
        issues += self._text_issues(query, "query")
        for i, document in enumerate(documents):
            issues += self._text_issues(document, f"documents[{i}]")
        _raise_any(issues)

    def _candidate_issues(self, prefix: str, item: ScoreItemIn | CandidateIn) -> Iterator[FieldIssue]:
        yield from self._prompt_issues(item.prompt, f"{prefix}prompt")
        for i, completion in enumerate(item.completions):
            yield from self._text_issues(completion, f"{prefix}completions[{i}]")

    def _prompt_issues(self, prompt: str | list[ChatMessage], field: str) -> Iterator[FieldIssue]:
        if isinstance(prompt, str):
            yield from self._text_issues(prompt, field)
        else:
            yield from self._text_issues("".join(message.content for message in prompt), field)

    def _text_issues(self, text: str, field: str) -> Iterator[FieldIssue]:
        # A character takes at most four bytes: the exact count is needed only near the limit.
        if len(text) * 4 > self.max_text_bytes and len(text.encode()) > self.max_text_bytes:
            yield FieldIssue(field, f"has {len(text.encode())} bytes, at most {self.max_text_bytes}; shorten it")


def check_change(user_id: str, idempotency_key: str | None) -> None:
    """Refuse what no change of a user can be asked with.

    Raises:
        InvalidInput: With every issue.
    """
    _raise_any(list(_change_issues(user_id, idempotency_key)))


def check_user_id(user_id: str, field: str = "user_id") -> None:
    """Refuse an id that no user can have.

    Raises:
        InvalidInput: The rule, on `field`.
    """
    _raise_any(list(_user_id_issues(user_id, field)))


def is_user_id(text: str) -> bool:
    """Whether a user can be called so."""
    return _USER_ID.fullmatch(text) is not None


def _change_issues(user_id: str, idempotency_key: str | None) -> Iterator[FieldIssue]:
    yield from _user_id_issues(user_id, "user_id")
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        yield FieldIssue("Idempotency-Key", "must be 1 to 255 printable ASCII characters without spaces")


def _items(request: AdaptRequest) -> Iterator[tuple[str, PairIn | RatingIn | RankingIn]]:
    for kind in ("pairs", "ratings", "rankings"):
        for i, item in enumerate(getattr(request, kind)):
            yield f"{kind}[{i}]", item


def _texts(item: PairIn | RatingIn | RankingIn) -> Iterator[tuple[str, str]]:
    match item:
        case PairIn():
            yield "chosen", item.chosen
            yield "rejected", item.rejected
        case RatingIn():
            yield "completion", item.completion
        case RankingIn():
            for i, completion in enumerate(item.completions):
                yield f"completions[{i}]", completion


def _user_id_issues(user_id: str, field: str) -> Iterator[FieldIssue]:
    if not is_user_id(user_id):
        yield FieldIssue(field, f"must be {USER_ID_RULE}")


def _raise_any(issues: list[FieldIssue]) -> None:
    if issues:
        raise InvalidInput(issues)
