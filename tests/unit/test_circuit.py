"""The policy of leaving a dependency alone, with a clock passed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.circuit import CircuitBreaker


def circuit(random_part: float = 1.0) -> CircuitBreaker:
    return CircuitBreaker(first_pause_s=1.0, max_pause_s=5.0, random_part=lambda: random_part)


def test_the_first_failure_opens_it_and_late_ones_change_nothing() -> None:
    breaker = circuit()
    assert breaker.closed
    assert breaker.fail(100.0)
    assert (breaker.state, breaker.try_at) == ("open", 101.0)
    assert not breaker.fail(100.9)
    assert breaker.try_at == 101.0


def test_one_trial_at_a_time_and_only_after_the_pause() -> None:
    breaker = circuit()
    assert not breaker.begin_trial(0.0), "there is nothing to try while it is closed"
    breaker.fail(100.0)
    assert not breaker.begin_trial(100.99)
    assert breaker.begin_trial(101.0)
    assert not breaker.begin_trial(101.0)
    assert not breaker.closed
    assert not breaker.fail(101.0), "a call that was under way is not the trial"
    breaker.end_trial(101.1, succeeded=True)
    assert breaker.closed
    with pytest.raises(ValueError, match="no trial"):
        breaker.end_trial(101.2, succeeded=True)


def test_pauses_double_up_to_a_bound_and_start_anew_after_a_success() -> None:
    breaker = circuit()
    now = 0.0
    breaker.fail(now)
    pauses = []
    for _ in range(5):
        pauses.append(breaker.try_at - now)
        now = breaker.try_at
        assert breaker.begin_trial(now)
        breaker.end_trial(now, succeeded=False)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert breaker.begin_trial(breaker.try_at)
    breaker.end_trial(now, succeeded=True)
    breaker.fail(now)
    assert breaker.try_at - now == 1.0


@given(random_part=st.floats(0, 1, exclude_max=True), failures=st.integers(1, 40))
def test_a_pause_is_between_half_and_all_of_its_length(random_part: float, failures: int) -> None:
    breaker = circuit(random_part)
    breaker.fail(0.0)
    for _ in range(failures - 1):
        assert breaker.begin_trial(1e6)
        breaker.end_trial(0.0, succeeded=False)
    longest = min(2.0 ** (failures - 1), 5.0)
    assert longest / 2 <= breaker.try_at <= longest


@pytest.mark.parametrize(("first", "longest"), [(0.0, 1.0), (2.0, 1.0)])
def test_pauses_that_cannot_be_are_refused(first: float, longest: float) -> None:
    with pytest.raises(ValueError, match="first_pause_s"):
        CircuitBreaker(first_pause_s=first, max_pause_s=longest)
