"""The access log under a flood of refusals."""

from __future__ import annotations

import logging

import pytest

from service.observability.access_log import MOST_ERRORS_A_SECOND, AccessLog


def test_a_flood_of_refusals_is_counted_and_not_written(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    log = AccessLog("errors", clock=lambda: now)

    def refuse() -> None:
        log.note("POST", "/score", 503, 0.001, bytes_in=10, bytes_out=10, stages={})

    with caplog.at_level(logging.INFO):
        for _ in range(MOST_ERRORS_A_SECOND + 30):
            refuse()
        assert len(caplog.records) == MOST_ERRORS_A_SECOND
        now = 101.2
        refuse()
    assert [record.getMessage() for record in caplog.records[-2:]] == [
        "30 more requests were refused, failed or slow",
        "POST /score 503",
    ]


def test_every_request_is_written_where_that_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog("all", clock=lambda: 100.0)
    with caplog.at_level(logging.INFO):
        for _ in range(MOST_ERRORS_A_SECOND + 30):
            log.note("POST", "/score", 200, 0.001, bytes_in=10, bytes_out=10, stages={})
    assert len(caplog.records) == MOST_ERRORS_A_SECOND + 30
