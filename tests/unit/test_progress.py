"""Figures of progress, as people read them."""

import pytest

from service.cli.progress import three_digits


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.01234, "0.0123"), (4.567, "4.57"), (999.4, "999"), (999.6, "1,000"), (14_970, "15,000"), (1e6, "1,000,000")],
)
def test_three_digits_and_never_an_exponent(number: float, text: str) -> None:
    assert three_digits(number) == text
