"""The claims of benchmarks/coverage.py, each at a reduced size: seconds instead of minutes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import coverage
from study import stats

RUNS = 300
FEW: dict[coverage.Claim, int] = {coverage.knees: 10, coverage.families: 150}


@pytest.mark.parametrize("claim", coverage.CLAIMS, ids=lambda claim: claim.__name__)
def test_each_claim_holds_within_its_simulation_error(claim: coverage.Claim) -> None:
    rows = list(claim(np.random.default_rng(1), FEW.get(claim, RUNS)))
    assert rows
    for one in rows:
        # Some forty shares are looked at here: four standard errors, of a share that is no 0 or 1.
        room = 4 * np.sqrt(0.05 * 0.95 / one.runs)
        assert one.least - room <= one.share <= one.most + room, one


def test_too_narrow_intervals_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark can fail: with 80 % for 95 %, it says so of every setting."""
    real = stats.over_launches
    monkeypatch.setattr(stats, "over_launches", lambda one: real(one, confidence=0.8))
    rows = coverage.coverage(np.random.default_rng(1), RUNS)
    assert not any(one.holds for one in rows)


def test_the_law_of_a_knee_is_known_by_hand() -> None:
    """A hard cap at 12: proportional below, so 95 % is reached at 11.4."""
    assert coverage._knee_of(lambda level: np.minimum(12.0, level)) == pytest.approx(11.4, abs=0.01)


def test_a_mean_of_autocorrelated_requests_varies_as_theirs_would() -> None:
    """The shortcut that draws a window's mean at once, against requests one after the other."""
    rng = np.random.default_rng(2)
    window = np.log(coverage._requests(rng, 4000)).mean(axis=1)
    drawn = coverage.launch_logs(rng, 0.0, False, (4000,)) * np.sqrt(coverage.WINDOWS)
    with_launches = np.sqrt(drawn.var() + 0.05**2)
    assert window.std() == pytest.approx(with_launches, rel=0.05)
