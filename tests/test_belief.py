"""The chapter on belief: what it counts is what the gates said."""

from __future__ import annotations

import pandas as pd

from study.chapters import belief
from study.frames import Frames
from study.sentences import Values


def found() -> Frames:
    """Three windows: valid, valid with an open gate, void."""
    windows = pd.DataFrame(
        {"launch": ["a", "a", "b"], "workload": "short", "level": [1, 4, 1],
         "again": [False, False, True], "verdict": ["valid", "valid", "void"]}
    )  # fmt: skip
    said = [
        ("a", 1, "errors", "pass"), ("a", 1, "steady_part", "pass"),
        ("a", 4, "errors", "pass"), ("a", 4, "steady_part", "cannot judge"),
        ("b", 1, "errors", "fail"), ("b", 1, "steady_part", "cannot judge"),
    ]  # fmt: skip
    judgements = pd.DataFrame(said, columns=["launch", "level", "gate", "verdict"])
    judgements = judgements.assign(workload="short", scope="window")
    judgements["again"] = judgements["launch"] == "b"
    metric = judgements.iloc[:1].assign(gate="percentile_supported", scope="metric", verdict="fail")
    return Frames(pd.DataFrame(), windows, pd.concat([judgements, metric], ignore_index=True))


def test_windows_are_counted_by_what_is_proven() -> None:
    values = Values()
    assert "1 of all is a second try" in belief.verdicts(found(), values)
    counted = {key.removeprefix("belief."): one["value"] for key, one in values.known.items()}
    assert counted == {
        "windows": 3, "valid": 2, "void": 1, "gates": 2, "unproven": 1, "again": 1,
    }  # fmt: skip


def test_the_bars_show_window_gates_only() -> None:
    drawn = belief.gates(found())
    assert drawn.figure is not None
    assert drawn.frame["gate"].tolist() == ["errors", "steady_part"]
    assert drawn.frame[["pass", "fail"]].to_numpy()[0].tolist() == [2, 1]


def test_levels_that_are_one_load_are_named() -> None:
    seen = pd.DataFrame(
        {"arm": "a", "workload": "short", "level": [8, 16, 32], "verdict": "valid",
         "requests_s": [4.0, 8.0, 8.05], "e2e_p50_s": [2.0, 2.0, 2.02]}
    )  # fmt: skip
    table = belief.distinct(Frames(pd.DataFrame(), seen, pd.DataFrame()))
    assert table.data["verdict"].tolist() == ["fail"]
    assert "16 and 32 are one and the same load" in table.data["text"][0]


def test_nothing_measured_is_said() -> None:
    nothing = belief.together([])
    assert "nothing to believe" in belief.verdicts(nothing, Values())
    assert belief.gates(nothing).figure is None
    assert "No arm" in belief.distinct(nothing).caption
