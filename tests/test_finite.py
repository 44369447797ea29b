"""What is not finite enters no statistic."""

import math
import statistics
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import finite

UNKNOWN = st.sampled_from([math.nan, math.inf, -math.inf])
KNOWN = st.floats(min_value=-1e6, max_value=1e6)


@given(st.lists(KNOWN, min_size=1), st.lists(UNKNOWN), st.randoms())
def test_what_is_unknown_changes_no_statistic(
    known: list[float], unknown: list[float], random: Random
) -> None:
    mixed = [*known, *unknown]
    random.shuffle(mixed)
    values = np.array(mixed)
    assert sorted(finite.only(values)) == sorted(known)
    assert finite.mean(values) == pytest.approx(statistics.fmean(known), abs=1e-6)
    assert finite.median(values) == pytest.approx(statistics.median(known), abs=1e-6)


@given(st.lists(UNKNOWN))
def test_of_nothing_there_is_no_statistic(unknown: list[float]) -> None:
    assert math.isnan(finite.mean(np.array(unknown)))
    assert math.isnan(finite.median(np.array(unknown)))
