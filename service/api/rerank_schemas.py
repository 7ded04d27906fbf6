"""Requests and answers of rerankers: Cohere's v2 API, and Jina's, whose path Cohere's v1 shares.

These clients are not ours and send what their own servers take. What means nothing here is not refused: the answer
lists it in `meta.warnings`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from service.api.schemas import USER_ID_RULE, NonBlank

_MAX_WARNINGS: Final = 20
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class TextDocument(BaseModel):
    """A document as an object. Of its fields only `text` is read."""

    text: str


Document = Annotated[
    Annotated[str, Tag("document-text")] | Annotated[TextDocument, Tag("document-object")],
    Discriminator(lambda document: "document-text" if isinstance(document, str) else "document-object"),
]


class _RerankRequest(BaseModel):
    """What both forms have in common."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = Field(
        None,
        description="NAME or NAME@USER: the name or checkpoint_id of a loaded checkpoint, and whose taste. null, left "
        "out or empty: the checkpoint that answers /score.",
        examples=["demo@ada"],
    )
    user: str | None = Field(
        None, description=f"Your name for the user: {USER_ID_RULE}. Nobody named: the population's order."
    )
    query: NonBlank = Field(description="The prompt.")
    documents: list[Document] = Field(
        min_length=1, description="Candidate responses, as texts or as objects with `text`; an empty one is scored."
    )
    top_n: int | None = Field(None, ge=1, description="At most so many results; null: all.")

    @property
    def texts(self) -> list[str]:
        """The documents."""
        return [each if isinstance(each, str) else each.text for each in self.documents]

    @property
    def warnings(self) -> list[str]:
        """What was sent and means nothing here."""
        names = [name if _NAME.fullmatch(name) else "a field" for name in self.model_extra or {}]
        return [f"{name}: has no effect here" for name in names[:_MAX_WARNINGS]]


class CohereRerankRequest(_RerankRequest):
    """Cohere's v2 rerank request, and `user`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "",
                    "user": "ada",
                    "query": "How do I repot a cactus?",
                    "documents": ["- Gloves on\n- New pot, gritty soil\n- Water after a week", "Well, it depends..."],
                    "top_n": 2,
                }
            ]
        }
    )


class JinaRerankRequest(_RerankRequest):
    """Jina's rerank request, and `user`."""

    return_documents: bool | None = Field(True, description="Whether results bring their texts.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "",
                    "user": "ada",
                    "query": "How do I repot a cactus?",
                    "documents": [{"text": "- Gloves on\n- New pot, gritty soil"}, "Well, it depends..."],
                    "top_n": 1,
                    "return_documents": True,
                }
            ]
        }
    )


class RankedDocumentOut(BaseModel):
    """One document of the answer."""

    index: int = Field(description="Its place in the request.")
    relevance_score: float = Field(
        ge=0,
        le=1,
        description="Calibrated probability that the user prefers it to the average text of the training data: "
        "1 / (1 + exp(-reward)).",
    )
    reward: float = Field(description="Log-odds, as /score gives them: compare documents by differences of this.")
    reward_std: float | None = Field(description="Posterior standard deviation, where the recipe has one.")


class RankedTextOut(RankedDocumentOut):
    """One document of the answer, with its text where it was asked for."""

    document: TextDocument | None = Field(None, description="With `return_documents`.")


class ApiVersion(BaseModel):
    """Which of Cohere's APIs this is like."""

    version: Literal["1", "2"]


class BilledUnits(BaseModel):
    """Nothing is billed; clients look for it."""

    search_units: int


class RerankMeta(BaseModel):
    """What Cohere's answers carry."""

    api_version: ApiVersion
    billed_units: BilledUnits
    warnings: list[str] = Field(description="What was sent and means nothing here.")


class _RerankResponse(BaseModel):
    """What this server says beside what a reranker says, in the words of /score."""

    id: str = Field(description="The request's id, as in X-Request-ID.")
    meta: RerankMeta
    user_id: str | None
    user_state: Literal["adapted", "cold_start", "stale", "population"] = Field(description="As of /score.")
    version: int = Field(description="The user's version; 0 for an unknown user and for nobody.")
    checkpoint_id: str
    truncated: list[int] = Field(description="Indices of the documents of which the model could not read everything.")


class CohereRerankResponse(_RerankResponse):
    """Cohere's v2 rerank answer, and more."""

    results: list[RankedDocumentOut] = Field(description="From best to worst.")


class RerankUsage(BaseModel):
    """Tokens."""

    total_tokens: int = Field(
        description="Computed for this request: what caches know is free. 0 where they are shared."
    )


class JinaRerankResponse(_RerankResponse):
    """Jina's rerank answer, and more."""

    model: str = Field(description="The name of the checkpoint that answered.")
    object: Literal["list"]
    usage: RerankUsage
    results: list[RankedTextOut] = Field(description="From best to worst.")
