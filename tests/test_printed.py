"""Printed digits, what they leave open, and the class that follows from a comparison."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.claims.evidence import CLASSES, GRAVITY, Class, Evidence, Relation, classify
from study.claims.printed import Number, ends, exact, printed, stated, through
from study.errors import StudyError


@given(st.decimals(-1000, 1000, places=3), st.integers(0, 3))
def test_a_printed_number_leaves_half_a_unit_of_its_last_digit(true: object, places: int) -> None:
    value = float(str(true))
    found = printed(f"{value:.{places}f}")
    assert found.low - 1e-9 <= value <= found.high + 1e-9
    assert found.high - found.low == pytest.approx(10.0**-places)


def test_what_a_claim_states() -> None:
    assert stated("") == ()
    assert stated("0.82") == (printed("0.82"),)
    (span,) = stated("3 to 5")
    assert (span.low, span.value, span.high) == (2.5, 4.0, 5.5)
    assert stated("5 / 8") == (printed("5"), printed("8"))
    assert ends("100 to 200") == (printed("100"), printed("200"))
    assert printed("1.4", decimals=2).low == pytest.approx(1.395)
    with pytest.raises(StudyError, match="must be digits"):
        printed("about 3")


@given(
    st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 0.05), st.floats(0, 0.05),
    st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_limits_hold_every_value_that_rounding_allows(
    a: float, b: float, wide_a: float, wide_b: float, at_a: float, at_b: float
) -> None:
    above, below = Number(a, a - wide_a, a + wide_a), Number(b, b - wide_b, b + wide_b)
    quotient = through(lambda x, y: x / y, above, below)
    x, y = a + wide_a * (2 * at_a - 1), b + wide_b * (2 * at_b - 1)
    assert quotient.low - 1e-9 <= x / y <= quotient.high * (1 + 1e-12) + 1e-9
    assert quotient.value == a / b


def of(value: float, low: float, high: float, relation: Relation = "equals") -> Evidence:
    return Evidence((Number(value, low, high),), "", "", relation, missing="the rest")


@pytest.mark.parametrize(
    ("text", "evidence", "expected"),
    [
        ("1.45", of(1.449, 1.446, 1.452), "confirmed"),
        ("1.40", of(1.3947, 1.3908, 1.3987), "confirmed within rounding"),
        ("1.40", of(1.38, 1.375, 1.385), "contradicted by the source's own numbers"),
        ("230", of(545, 545, 545, "at least"), "contradicted by the source's own numbers"),
        ("600", of(545, 545, 545, "at least"), "not derivable"),
        ("500", of(445, 442, 445, "at most"), "contradicted by the source's own numbers"),
        ("400", of(445, 442, 445, "at most"), "not derivable"),
        ("9", of(33, 33, 34, "alone"), "not derivable"),
    ],
)
def test_the_class_follows_from_the_comparison(
    text: str, evidence: Evidence, expected: Class
) -> None:
    assert classify(stated(text), evidence) == expected


@given(st.floats(1, 100), st.floats(0, 1), st.floats(0, 1))
def test_a_bound_never_confirms(stated_value: float, down: float, up: float) -> None:
    for relation in ("at most", "at least", "alone"):
        found = classify((exact(stated_value),), of(50, 50 - down, 50 + up, relation))
        assert "confirmed" not in found


def test_of_several_numbers_the_gravest_class_counts() -> None:
    both = Evidence((exact(5), exact(9)), "nodes", "")
    assert classify(stated("5 / 8"), both) == "contradicted by the source's own numbers"
    assert classify(stated("4 to 10"), both) == "confirmed"  # each against the only one
    assert sorted(GRAVITY) == sorted(CLASSES)


def test_nothing_to_compare_is_an_error_and_so_is_a_bound_without_what_is_missing() -> None:
    with pytest.raises(StudyError, match="nothing to compare"):
        classify((), Evidence((exact(1),), "", ""))
    with pytest.raises(StudyError, match="a bound confirms nothing"):
        Evidence((exact(1),), "", "", "at most")
