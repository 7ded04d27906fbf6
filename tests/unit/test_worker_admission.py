"""Admission by estimated wait, without threads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker.admission import Admission, Speed

tokens = st.integers(1, 10**6)
speeds = st.none() | st.floats(0.1, 1e6)


@given(tokens, speeds)
def test_an_empty_queue_admits_a_request_of_any_size(size, speed):
    assert Admission(10, 0.1).refusal(size, waiting=0, ahead=10**9, speed=speed) is None


@given(tokens, tokens, tokens, speeds)
def test_a_refusal_says_when_there_is_room_and_never_how_much_waits(size, waiting, on_device, speed):
    admission = Admission(100_000, 10.0)
    ahead = waiting + on_device
    refusal = admission.refusal(size, waiting=waiting, ahead=ahead, speed=speed)
    too_many = waiting + size > 100_000
    too_long = speed is not None and ahead / speed > 10.0
    assert (refusal is not None) == (too_many or too_long)
    if refusal is not None:
        assert 1.0 <= refusal.retry_after_s <= 60.0
        assert not any(character.isdigit() for character in str(refusal))


def test_the_time_to_come_back_is_the_time_until_there_is_room():
    refusal = Admission(10**9, 10.0).refusal(1, waiting=2500, ahead=3000, speed=100.0)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(20.0)
    full = Admission(1000, 1000.0).refusal(500, waiting=1000, ahead=1000, speed=100.0)
    assert full is not None
    assert full.retry_after_s == pytest.approx(5.0)


def test_speed_follows_recent_work_and_forgets_old():
    speed = Speed()
    assert speed.tokens_per_s is None
    for _ in range(10):
        speed.note(1000, 1.0)
    assert speed.tokens_per_s == pytest.approx(1000.0)
    for _ in range(60):
        speed.note(100, 1.0)
    assert speed.tokens_per_s == pytest.approx(100.0, rel=0.01)


def test_light_work_tells_the_least_that_a_device_can_do():
    speed = Speed()
    speed.note(20, 0.01)
    assert speed.tokens_per_s == pytest.approx(2000.0)
    for _ in range(1000):
        speed.note(10, 0.01)
    assert speed.tokens_per_s == pytest.approx(2000.0), "a bound from below lowers nothing"
    speed.note(8192, 0.1, full=True)
    assert speed.tokens_per_s == pytest.approx(75_000, rel=0.1)
    for _ in range(1000):
        speed.note(20, 0.01)
    assert speed.tokens_per_s == pytest.approx(75_000, rel=0.1)
    for _ in range(60):
        speed.note(500, 1.0)
    assert speed.tokens_per_s == pytest.approx(500.0, rel=0.01), "a device that has become slow is found out"
