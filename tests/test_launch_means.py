"""From windows to launches to intervals: one value a launch, void windows left out."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest

from study.errors import StudyError
from study.stats import (
    intervals,
    launch_means,
    mean_interval_log,
)


def windows_of(launches: int = 3) -> pd.DataFrame:
    """Two arms x launches x two levels; two windows at each load, the second one 10 % faster."""
    rows = [
        {
            "arm": arm,
            "block": block,
            "launch": f"{arm}{block}",
            "workload": "chat",
            "level": level,
            "verdict": "valid",
            "output_tok_s": 100.0 * level * (1 + block / 10) * faster,
            "drift": 0.01 * (block - 1),
        }
        for arm in ("a", "b")
        for block in range(launches)
        for level in (1, 8)
        for faster in (1.0, 1.1)
    ]
    return pd.DataFrame(rows)


def test_a_launch_gives_one_value() -> None:
    means = launch_means(windows_of(), ["output_tok_s"])
    assert len(means) == 2 * 3 * 2
    assert list(means.columns) == [
        *("arm", "block", "launch", "workload", "level"),
        *("metric", "value"),
    ]
    assert means["value"].iloc[0] == pytest.approx(105)
    assert set(launch_means(windows_of().assign(input_tokens=128))["metric"]) == {
        "output_tok_s",
        "drift",
    }


def test_void_windows_never_enter_an_estimate() -> None:
    windows = windows_of()
    windows.loc[windows["output_tok_s"] == 100, "verdict"] = "void"
    means = launch_means(windows, ["output_tok_s"])
    assert means["value"].iloc[0] == pytest.approx(110)


def test_more_windows_are_not_more_launches() -> None:
    once = windows_of()
    many = pd.concat([once] * 10, ignore_index=True)
    by, metrics = ["arm", "level"], ["output_tok_s"]
    pd.testing.assert_frame_equal(intervals(once, metrics, by), intervals(many, metrics, by))


def test_intervals_are_one_row_per_cell_and_metric() -> None:
    table = intervals(windows_of(), ["output_tok_s", "drift"], ["arm", "level"])
    assert list(table.columns) == [
        *("arm", "level", "metric", "point", "low", "high", "confidence", "method", "n")
    ]
    assert len(table) == 2 * 2 * 2
    row = table[(table["arm"] == "b") & (table["level"] == 8) & (table["metric"] == "output_tok_s")]
    expected = mean_interval_log(840 * np.array([1.0, 1.1, 1.2]))
    assert row[["point", "low", "high"]].to_numpy().ravel() == pytest.approx(astuple(expected)[1:4])
    methods = dict(zip(table["metric"], table["method"], strict=True))
    assert methods == {"output_tok_s": "t interval on the log scale", "drift": "t interval"}


def test_a_cell_of_void_windows_stays_visible() -> None:
    windows = windows_of()
    windows.loc[(windows["arm"] == "a") & (windows["level"] == 8), "verdict"] = "void"
    table = intervals(windows, ["output_tok_s"], ["arm", "level"]).set_index(["arm", "level"])
    assert table.loc[("a", 8), "n"] == 0
    assert np.isnan(float(str(table.loc[("a", 8), "point"])))
    assert table.loc[("b", 8), "n"] == 3


def test_all_windows_void_leaves_rows_of_nan() -> None:
    table = intervals(windows_of().assign(verdict="void"), ["output_tok_s"], ["arm"])
    assert table["n"].tolist() == [0, 0]
    assert table["point"].isna().all()


def test_levels_are_never_mixed_into_one_interval() -> None:
    with pytest.raises(StudyError, match="Add workload or level"):
        intervals(windows_of(), ["output_tok_s"], ["arm"])


def test_by_must_be_known() -> None:
    for by in (["colour"], []):
        with pytest.raises(StudyError, match="by must name some of arm"):
            intervals(windows_of(), ["output_tok_s"], by)
