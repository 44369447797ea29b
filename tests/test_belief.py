"""The chapter on belief: what it counts is what the gates said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import stub
from simulate import simulate

from study import ledgers, sentences, validity
from study.chapters import architecture, belief
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
        "windows": 3, "valid": 2, "void": 1, "gates": 2, "unproven": 1, "unproven.most_often": 1,
        "again": 1, "void.errors": 1,
    }  # fmt: skip
    assert "1 void (most often by `errors` 1)" in belief.verdicts(found(), Values()).replace(
        "*", ""
    )


def test_where_none_is_fully_proven_that_is_said() -> None:
    seen = found()
    opened = seen.judgements.assign(verdict="cannot judge")
    said = belief.verdicts(replace(seen, judgements=opened), Values())
    assert "In all of the valid ones at least one gate could not judge" in said
    closed = seen.judgements.assign(verdict="pass")
    said = belief.verdicts(replace(seen, judgements=closed), Values())
    assert said.endswith("Every gate could judge every valid one.")


def drifting(*shares: float) -> Frames:
    """A launch for each share, of two windows around it, and a second try that says otherwise."""
    rows = [
        {"launch": str(number), "again": again, "drift": share + by}
        for number, share in enumerate(shares)
        for again, by in ((False, -0.04), (False, 0.04), (False, float("nan")), (True, 0.9))
    ]
    return replace(found(), windows=pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((-0.01, 0.0, 0.01), "no shared drift is shown, and one beyond 5 % is excluded"),
        ((0.020, 0.021, 0.022), "they share a drift, within the 5 %"),
        ((-0.11, -0.10, -0.12), "**they share a drift beyond 5 %**"),
        ((-0.1, 0.1, 0.0), ": a shared drift beyond 5 % is not excluded"),
        ((0.03, 0.05, 0.04), "**they share a drift**, and that it lies beyond 5 % is not excluded"),
        ((0.0,), "too few launches to tell"),
        ((), "too few launches to tell"),
    ],
)
def test_a_drift_that_windows_share_is_found_by_all_of_them(
    shares: tuple[float, ...], words: str
) -> None:
    values = Values()
    seen = drifting(*shares) if shares else drifting(float("nan"))
    assert words in belief.drift(seen, values)
    mean = sum(shares) / len(shares) if shares else float("nan")
    said = values.known["belief.drift"]
    assert said["n"] == len(shares)
    assert said["point"] == pytest.approx(100 * mean, nan_ok=True)


def paced(follows: float, noise: float = 0.0) -> Frames:
    """Two cells of four windows at paces up to 1.5 times as slow, and a second try that is not
    looked at; throughput is the cell's own, and follows the pace with this power."""
    slower = np.array([1.0, 1.5, 1.2, 1.1])
    apart = np.exp(noise * np.array([1.0, 1.0, -1.0, -1.0]))
    rows = [
        {"launch": f"{number}", "experiment": "any", "arm": "a", "workload": "short",
         "level": level, "again": False, "pace_s": 0.0003 * slow,
         "output_tok_s": 100.0 * level * slow**follows * by}
        for level in (1, 4)
        for number, (slow, by) in enumerate(zip(slower, apart, strict=True))
    ]  # fmt: skip
    rows.append(rows[0] | {"again": True, "pace_s": 0.009})
    return replace(found(), windows=pd.DataFrame(rows))


@pytest.mark.parametrize("follows", [-1.0, -0.3, 0.0])
def test_throughput_that_follows_the_cores_pace_is_found(follows: float) -> None:
    values = Values()
    said = belief.pace(paced(follows), values)
    assert "the slowest window it took 1.50 times" in said and "median one 1.15 times" in said
    slope = values.known["belief.pace_slope"]
    assert slope["point"] == pytest.approx(follows, abs=1e-9) and slope["n"] == 4  # launches
    if follows:
        assert values.known["belief.pace_share"]["value"] == pytest.approx(1.0)
    noisy = Values()
    belief.pace(paced(follows, noise=0.2), noisy)
    told = noisy.known["belief.pace_slope"]
    assert told["low"] < follows < told["high"]
    assert noisy.known["belief.pace_share"]["value"] < 0.9


def test_without_windows_enough_the_pace_alone_is_told() -> None:
    seen = paced(-1.0)
    few = replace(seen, windows=seen.windows.iloc[[0, 5]])
    said = belief.pace(few, Values())
    assert "it took 1.50 times" in said and said.endswith("so few windows cannot tell.")
    old = replace(seen, windows=seen.windows.drop(columns="pace_s"))
    assert belief.pace(old, Values()) == ""
    alone = replace(seen, windows=seen.windows.iloc[[0]])  # beside which nothing is slow
    assert belief.pace(alone, Values()) == ""


def test_every_gate_says_what_it_asks() -> None:
    judged = validity.judge_window(simulate("any"))
    assert {said.gate for said in judged} == set(ledgers.ASKS)


def test_the_bars_show_window_gates_only() -> None:
    drawn = belief.gates(found())
    assert drawn.figure is not None
    assert drawn.frame["gate"].tolist() == ["errors", "steady_part"]
    assert drawn.frame[["pass", "fail"]].to_numpy()[0].tolist() == [2, 1]


@pytest.mark.parametrize(("windows", "narrow"), [(49, False), (990, True)])
def test_every_part_of_a_bar_has_its_number_or_it_is_said(windows: int, narrow: bool) -> None:
    """One failure of 49 was drawn without its number, and nothing told why."""
    seen = found()
    many = seen.judgements.iloc[[0] * (windows - 1)].assign(gate="warm", verdict="pass")
    one = seen.judgements.iloc[[0]].assign(gate="warm", verdict="fail")
    drawn = belief.gates(replace(seen, judgements=pd.concat([many, one], ignore_index=True)))
    assert drawn.figure is not None
    numbers = [text.get_text() for text in drawn.figure.axes[0].texts]
    assert numbers == ([f"{windows - 1}"] if narrow else [f"{windows - 1}", "1"])
    assert ("too narrow for its number" in drawn.caption) == narrow


def test_levels_that_are_one_load_are_named() -> None:
    seen = pd.DataFrame(
        {"arm": "a", "workload": "short", "level": [8, 16, 32], "verdict": "valid",
         "requests_s": [4.0, 8.0, 8.05], "e2e_p50_s": [2.0, 2.0, 2.02]}
    )  # fmt: skip
    table = belief.distinct(Frames(pd.DataFrame(), seen, pd.DataFrame()))
    assert table.data["verdict"].tolist() == ["fail"]
    assert "16 and 32 are one and the same load" in table.data["text"][0]
    assert table.shown["verdict"].tolist() == ["fail"] and "0 of 1" in table.caption
    sound = seen.assign(requests_s=[4.0, 8.0, 16.0])
    table = belief.distinct(Frames(pd.DataFrame(), sound, pd.DataFrame()))
    assert table.shown.empty and table.data["verdict"].tolist() == ["pass"]
    assert "1 of 1" in table.caption and 'class="missing"' not in table._repr_html_()


def test_of_an_experiment_only_what_is_in_doubt_is_shown() -> None:
    seen = found()
    sound = seen.judgements.iloc[:1].assign(gate="times")
    with_one = replace(seen, judgements=pd.concat([seen.judgements, sound], ignore_index=True))
    table = ledgers.doubts(with_one)
    assert set(table.shown["gate"]) == {"errors", "steady_part", "percentile_supported"}
    assert "Passed everywhere: times." in table.caption
    pd.testing.assert_frame_equal(table.data, ledgers.verdicts(with_one).data)
    alone = ledgers.doubts(replace(seen, judgements=sound))
    assert alone.shown.empty and alone.caption == "Every gate passed everywhere: times."


def test_nothing_measured_is_said() -> None:
    nothing = belief.together([])
    assert "nothing to believe" in belief.verdicts(nothing, Values())
    assert belief.gates(nothing).figure is None
    assert "No arm" in belief.distinct(nothing).caption


def test_what_no_block_compares_has_no_caution_and_no_valid_window_no_proof() -> None:
    asked = stub.experiment(launches=1)
    planned = stub.launches(asked)
    cells = [
        (launch.arm.name, window.workload.name, window.level, launch.block)
        for launch in planned
        for window in launch.arm.windows
    ]
    said = {
        void: (
            architecture.lead("x", found, planned, Values()),
            sentences.outcomes("x", found, planned, Values()),
        )
        for void, found in ((True, stub.frames(asked, void=cells)), (False, stub.frames(asked)))
    }
    assert "no block allows" in said[True][0] and "That ratio" not in said[True][0]
    assert "That ratio holds more than attention" in said[False][0]
    assert "judge" not in said[True][1]
    assert "at least one gate could not judge" in said[False][1]
