"""Variance components against REML, planted truths, and what they say of requests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from study.components import SOURCES, components, components_of_windows
from study.errors import StudyError

TRUTH = (0.05, 0.02, 0.3)


def nested(
    seed: int,
    counts: tuple[int, int, int] = (5, 3, 20),
    truth: tuple[float, float, float] = TRUTH,
    equal: bool = True,
    levels: int = 1,
) -> pd.DataFrame:
    """Launches x windows x requests of about 0.2 s; windows of a launch take the levels in turn."""
    rng = np.random.default_rng(seed)
    rows = []
    for launch in range(counts[0]):
        shift = rng.normal(0, truth[0])
        for window in range(counts[1]):
            mean = shift + rng.normal(0, truth[1]) + (window % levels)
            size = counts[2] if equal else rng.integers(counts[2] // 2, 2 * counts[2])
            times = 0.2 * np.exp(mean + rng.normal(0, truth[2], size))
            rows += [(launch, f"{launch}.{window}", window % levels, one) for one in times]
    return pd.DataFrame(rows, columns=["launch", "window", "level", "ttft_s"])


def test_equal_counts_give_what_restricted_maximum_likelihood_gives() -> None:
    frame = nested(1, (8, 4, 6), (0.2, 0.2, 0.1))
    theirs = smf.mixedlm(
        "np.log(ttft_s) ~ 1",
        frame,
        groups="launch",
        re_formula="1",
        vc_formula={"window": "0 + C(window)"},
    ).fit()
    ours = components(frame, "ttft_s")
    assert ours.launch.point**2 == pytest.approx(float(theirs.cov_re.iloc[0, 0]), rel=0.01)
    assert ours.window.point**2 == pytest.approx(float(theirs.vcomp[0]), rel=0.01)
    assert ours.request.point**2 == pytest.approx(theirs.scale, rel=0.01)


def test_means_and_spreads_of_windows_are_all_it_needs() -> None:
    frame = nested(2, equal=False, levels=3).assign(arm="a", workload="short")
    logs = np.log(frame["ttft_s"])
    keys = ["window", "launch", "arm", "workload", "level"]
    windows = logs.groupby([frame[key] for key in keys]).agg(["mean", "std", "size"])
    windows.columns = pd.Index(["ttft_log_mean", "ttft_log_sd", "requests_finished"])
    ours = components_of_windows(windows.reset_index(), "ttft")
    theirs = components(frame, "ttft_s")
    for source in SOURCES:
        one, other = getattr(ours, source), getattr(theirs, source)
        assert (one.n, one.unit) == (other.n, other.unit)
        np.testing.assert_allclose((one.point, one.high), (other.point, other.high), rtol=1e-9)


@pytest.mark.parametrize(
    ("equal", "levels", "counts"),
    [(True, 1, (5, 3, 20)), (False, 1, (5, 3, 20)), (True, 4, (5, 4, 20)), (True, 1, (3, 2, 20))],
)
def test_planted_components_are_found_and_covered(
    equal: bool, levels: int, counts: tuple[int, int, int]
) -> None:
    """Without bias in the variances; levels that differ by a factor of e change nothing."""
    runs, truth = 250, (0.05, 0.02, 0.05)
    found = [
        components(nested(seed, counts, truth, equal, levels), "ttft_s") for seed in range(runs)
    ]
    for name, sd in zip(SOURCES, truth, strict=True):
        said = [getattr(one, name) for one in found]
        variances = np.array([one.point**2 for one in said])
        assert abs(variances.mean() - sd**2) < 4 * variances.std() / np.sqrt(runs) + 0.1 * sd**2
        covered = np.mean([one.low <= sd <= one.high for one in said])
        assert covered > 0.95 - 0.01 - 3 * np.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize("levels", [[(0.05, 15), (0.2, 100)], [(0.15, 10), (0.05, 100)]])
def test_windows_are_told_apart_though_levels_differ_in_spread_and_requests(
    levels: list[tuple[float, int]],
) -> None:
    """As they do: at a high level a window has more requests, and they vary more."""
    runs, truth, launches = 250, 0.02, 10
    found = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        rows = []
        for launch in range(launches):
            shift = rng.normal(0, 0.05)
            for level, (sd, size) in enumerate(levels):
                logs = shift + level + rng.normal(0, truth) + rng.normal(0, sd, size)
                rows += [(launch, f"{launch}.{level}", level, 0.2 * np.exp(one)) for one in logs]
        frame = pd.DataFrame(rows, columns=["launch", "window", "level", "ttft_s"])
        found.append(components(frame, "ttft_s").window)
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered > 0.95 - 0.01 - 3 * np.sqrt(0.95 * 0.05 / runs)


def test_a_single_request_in_each_window_says_nothing_of_windows() -> None:
    found = components(nested(6, (5, 3, 1)), "ttft_s")
    assert np.isnan([found.request.point, found.window.point]).all()


def test_more_requests_only_measure_the_same_launches_more_exactly() -> None:
    found = components(nested(1, (20, 4, 100)), "ttft_s")
    assert found.share("request") > 0.9  # nearly all variance lies between requests
    assert sum(found.share(name) for name in SOURCES) == pytest.approx(1)
    once = found.error(3, 2, 100)
    assert found.error(3, 2, 10_000) > 0.8 * once  # and a hundred times as many do not help
    assert found.error(30, 2, 100) == pytest.approx(once / np.sqrt(10))


def test_the_table_says_what_ten_times_as_many_would_give() -> None:
    found = components(nested(2, (6, 3, 50)), "ttft_s")
    table = found.frame().set_index("source")
    assert list(table.index) == list(SOURCES)
    assert table["n"].tolist() == [6, 18, 900]
    assert table["error_tenfold"].tolist() == pytest.approx(
        [found.error(60, 3, 50), found.error(6, 30, 50), found.error(6, 3, 500)]
    )
    assert found.launch.label().endswith("n = 6 launches")
    assert found.request.label().endswith("n = 900 requests")


def test_no_launch_effect_is_found_to_be_small() -> None:
    found = components(nested(3, (30, 3, 50), (0.0, 0.02, 0.1)), "ttft_s")
    assert found.launch.low == 0
    assert found.launch.high < 0.02


def test_one_window_a_launch_cannot_tell_them_apart() -> None:
    found = components(nested(4, (5, 1, 20)), "ttft_s")
    assert np.isnan([found.launch.point, found.window.point, found.share("launch")]).all()
    assert found.request.point == pytest.approx(0.3, rel=0.2)


def test_a_window_belongs_to_one_launch() -> None:
    with pytest.raises(StudyError, match="one launch and one cell"):
        components(nested(5).assign(window="same"), "ttft_s")
    with pytest.raises(StudyError, match="lacks window"):
        components(nested(5).drop(columns="window"), "ttft_s")
